"""What of the layout space was tried: BAR types x sizes x doorbell backends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rcdrv.sim.layout import BarType, DoorbellBackend

_TYPES = [kind.value for kind in BarType if kind is not BarType.DISABLED]
_BACKENDS = [backend.value for backend in DoorbellBackend]
_FIRST, _LAST = 4, 36
"""Sizes as powers of two: 16 B to 64 GiB."""
_FIRST_RESIZABLE = 20


def _first(kind: str) -> int:
    return _FIRST_RESIZABLE if kind == BarType.RESIZABLE.value else _FIRST


class Coverage:
    """Counts the cells of the space that layouts have been in."""

    def __init__(self) -> None:
        self._cells: Counter[tuple[str, int, str]] = Counter()

    def add(self, table: Mapping[str, Any]) -> None:
        backend = table.get("doorbell", {}).get("backend", "none")
        for index in range(6):
            bar = table.get(f"bar{index}")
            if bar is not None and bar.get("size"):
                exponent = bar["size"].bit_length() - 1
                self._cells[bar.get("type", "programmable"), exponent, backend] += 1

    @property
    def share(self) -> float:
        """Of all cells, 0 to 1."""
        cells = sum(_LAST + 1 - _first(kind) for kind in _TYPES) * len(_BACKENDS)
        return len(self._cells) / cells

    def picture(self) -> str:
        """A line for each type and backend, a column for each size. A digit says how many zeros
        the number of BARs has that were tried; a dot is none."""
        marks = ("16", "256", "4K", "64K", "1M", "16M", "256M", "4G", "64G")
        lines = [" " * 23 + "".join(f"{mark:8}" for mark in marks).rstrip()]
        for kind in _TYPES:
            for backend in _BACKENDS:
                row = "".join(self._cell(kind, size, backend) for size in range(_FIRST, _LAST + 1))
                lines.append(f"{kind:12} {backend:9} {row}")
        return "\n".join(lines)

    def _cell(self, kind: str, exponent: int, backend: str) -> str:
        count = self._cells[kind, exponent, backend]
        if exponent < _first(kind):
            return "  "
        return f"{min(9, int(math.log10(count))) if count else '.'} "
