"""Fuzzing campaigns: over BAR layouts, and over the order of commands.

Needs hypothesis: ``pip install rcdrv[fuzz]``.
"""
