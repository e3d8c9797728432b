"""Renderers of results: TAP, JUnit, HTML, lines and a live display for a terminal."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TextIO

from rcdrv.results.observer import Observer


def for_terminal(stream: TextIO) -> Observer:
    """Return the live display if rich is installed, else lines: on a terminal in colour."""
    if find_spec("rich") is None:
        from rcdrv.report.terminal import Coloured, Plain, has_colours

        return Coloured(stream) if has_colours(stream) else Plain(stream)
    from rcdrv.report.live import Live

    return Live(stream)
