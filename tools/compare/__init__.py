"""Compares rcdrv with the kernel's own driver: both judge the same software endpoints, in one boot.

See ``python3 -m tools.compare --help`` and docs/fidelity.md.
"""
