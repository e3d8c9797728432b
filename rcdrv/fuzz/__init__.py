"""Campaigns that look for the layout, or the order of commands, that breaks the two sides.

Needs hypothesis: ``pip install rcdrv[fuzz]``.
"""
