"""Coverage of the layout space: BAR types x sizes x doorbell backends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rcdrv.sim.description import BarType, DoorbellBackend

_TYPES = [kind.value for kind in BarType if kind is not BarType.DISABLED]
_BACKENDS = [backend.value for backend in DoorbellBackend]
_FIRST, _LAST = 4, 36
"""Sizes as powers of two: 16 B to 64 GiB."""
_FIRST_RESIZABLE = 20
_MARKS = ("16", "256", "4K", "64K", "1M", "16M", "256M", "4G", "64G")
"""Every fourth size."""

_CELL, _LEFT, _TOP = 16, 150, 46
"""Size of a cell in pixels."""


def _first(kind: str) -> int:
    return _FIRST_RESIZABLE if kind == BarType.RESIZABLE.value else _FIRST


class Coverage:
    """Counts of layouts per cell of the space."""

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
        """Share of cells tried, 0 to 1."""
        cells = sum(_LAST + 1 - _first(kind) for kind in _TYPES) * len(_BACKENDS)
        return len(self._cells) / cells

    def picture(self) -> str:
        """Return a text map: one line per type and backend, one column per size.

        A digit is the decimal magnitude of the number of BARs tried; a dot is none.
        """
        lines = [" " * 23 + "".join(f"{mark:8}" for mark in _MARKS).rstrip()]
        for kind in _TYPES:
            for backend in _BACKENDS:
                row = "".join(self._cell(kind, size, backend) for size in range(_FIRST, _LAST + 1))
                lines.append(f"{kind:12} {backend:9} {row}")
        return "\n".join(lines)

    def svg(self) -> str:
        """Return the map as SVG: darker cells have more BARs; the title has the number."""
        rows = [(kind, backend) for kind in _TYPES for backend in _BACKENDS]
        width = _LEFT + _CELL * (_LAST + 1 - _FIRST) + _CELL
        height = _TOP + _CELL * len(rows) + 2 * _CELL
        most = math.log1p(max(self._cells.values(), default=1))
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            ' font-family="sans-serif" font-size="11">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="8" y="18" font-size="13">BARs tried: type, doorbell backend, size'
            f" ({self.share:.0%} of the cells)</text>",
        ]
        for index, mark in enumerate(_MARKS):
            x = _LEFT + 4 * index * _CELL + _CELL // 2
            parts.append(f'<text x="{x}" y="{_TOP - 5}" text-anchor="middle">{mark}</text>')
        for row, (kind, backend) in enumerate(rows):
            y = _TOP + row * _CELL
            name = f"{kind} {backend}"
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 12}" text-anchor="end">{name}</text>')
            for exponent in range(_first(kind), _LAST + 1):
                count = self._cells[kind, exponent, backend]
                x = _LEFT + (exponent - _FIRST) * _CELL
                shade = f"hsl(210, 70%, {90 - 60 * math.log1p(count) / most:.0f}%)"
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}"'
                    f' fill="{shade if count else "#eee"}">'
                    f"<title>{name}, {1 << exponent} bytes: {count}</title></rect>"
                )
        return "\n".join([*parts, "</svg>"]) + "\n"

    def _cell(self, kind: str, exponent: int, backend: str) -> str:
        count = self._cells[kind, exponent, backend]
        if exponent < _first(kind):
            return "  "
        return f"{min(9, int(math.log10(count))) if count else '.'} "
