"""Compares rcdrv with the kernel's own driver: both judge software and kernel's endpoints.

See ``python3 -m tools.compare --help`` and docs/fidelity.md.
"""
