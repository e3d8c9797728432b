"""Map of a function's BARs, drawn so that four bytes in a megabyte are visible.

All BARs are strips of one width. A piece is as wide as its label needs; the rest is shared by the
logarithm of sizes. Offsets are exact, widths are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from rcdrv.report.html.markup import Markup, drawing, element, join
from rcdrv.report.html.section import head
from rcdrv.report.text import wrapped
from rcdrv.results.layout import TEST_REGISTERS, Bar, Region, msix_regions
from rcdrv.results.node import Node
from rcdrv.results.units import size_text

_LEFT, _RIGHT, WIDTH = 150, 16, 960
_ROW, _STRIP = 74, 34
_CHARACTER = 7.0
"""Upper limit of a label character's width in pixels."""


class Piece(NamedTuple):
    start: int
    end: int
    regions: tuple[Region, ...]

    @property
    def label(self) -> str:
        return " + ".join(region.name for region in self.regions)


# -- from rcdrv info -------------------------------------------------------------------------------


def of_info(info: Node, doorbell: Region | None = None, doorbell_bar: int = -1) -> Sequence[Bar]:
    """Return the BARs of ``rcdrv info --json``, with the doorbell found by a ring of the device."""
    found: dict[int, list[Region]] = {}
    table = info.find("msix_table")
    if table is not None:
        vectors = info["interrupts"]["msix"].integer
        entries, pba = msix_regions(vectors, table["offset"].integer, table["pba_offset"].integer)
        found.setdefault(table["bar"].integer, []).append(entries)
        found.setdefault(table["pba_bar"].integer, []).append(pba)
    registers = info.find("reg_bar")
    if registers is not None and info["class"].integer >> 8 != 0x0500:
        found.setdefault(registers.integer, []).append(TEST_REGISTERS)
    if doorbell is not None:
        found.setdefault(doorbell_bar, []).append(doorbell)
    bars = []
    for bar in info["bars"]:
        index, size = bar["bar"].integer, bar["size"].integer
        if index > 5 or not size:
            bar.wrong("a BAR")
        words = f"{bar['type'].text}, {bar['access'].text}"
        bars.append(Bar(index, size, words, tuple(found.get(index, ()))))
    return bars


# -- drawing ---------------------------------------------------------------------------------------


def draw(bars: Sequence[Bar], title: str, note: str = "") -> Markup:
    """Draw the map. Screen readers use :func:`table`."""
    cut = {bar.number: pieces(bar) for bar in bars}
    height = _ROW * len(bars) + 6
    words = "; ".join(
        f"BAR{bar.number} {size_text(bar.size)} {bar.what}"
        + "".join(
            f", {piece.label} at {piece.start:#x}" for piece in cut[bar.number] if piece.regions
        )
        for bar in bars
    )
    rows = [_row(bar, cut[bar.number], _ROW * row) for row, bar in enumerate(bars)]
    absent = [f"BAR{index}" for index in range(6) if index not in cut]
    return join(
        drawing(WIDTH, height, title, words, rows, "map"),
        element(
            "p",
            "Offsets are exact, widths are not to scale.",
            f" Not there: {', '.join(absent)}." if absent else None,
            f" {note}" if note else None,
            class_="note",
        ),
    )


def pieces(bar: Bar) -> list[Piece]:
    """Cut a BAR wherever a region begins or ends."""
    inside = [region for region in bar.regions if region.offset < bar.size and region.size > 0]
    cuts = sorted(
        {0, bar.size}
        | {region.offset for region in inside}
        | {min(bar.size, region.offset + region.size) for region in inside}
    )
    return [
        Piece(
            start,
            end,
            tuple(one for one in inside if one.offset <= start and end <= one.offset + one.size),
        )
        for start, end in pairwise(cuts)
    ]


def _row(bar: Bar, pieces: Sequence[Piece], top: float) -> Markup:
    needs = [_needed(piece) for piece in pieces]
    weights = [math.log2(piece.end - piece.start + 1) for piece in pieces]
    room = WIDTH - _LEFT - _RIGHT
    left = room - sum(needs)
    if left >= 0:
        widths = [
            need + left * weight / sum(weights) for need, weight in zip(needs, weights, strict=True)
        ]
    else:  # more regions than any real layout has
        widths = [room * need / sum(needs) for need in needs]
    parts: list[Markup] = []
    x = float(_LEFT)
    for piece, width in zip(pieces, widths, strict=True):
        parts.append(_piece(piece, bar, x, width, top))
        x += width
    return element(
        "g",
        element("text", f"BAR{bar.number}", x=0, y=top + 18, class_="bar"),
        element("text", size_text(bar.size), x=_LEFT - 16, y=top + 18, class_="size"),
        [
            element("text", line, x=0, y=top + 34 + 14 * number, class_="what")
            for number, line in enumerate(wrapped(bar.what, 22))
        ],
        parts,
        element("text", f"{bar.size:#x}", x=x, y=top + _STRIP + 18, class_="offset last"),
    )


def _needed(piece: Piece) -> float:
    """Return the pixels needed by the label inside and the offset below."""
    return max(len(piece.label), len(f"{piece.start:#x}") + 1) * _CHARACTER + 12


def _piece(piece: Piece, bar: Bar, x: float, width: float, top: float) -> Markup:
    role = piece.regions[-1].role if piece.regions else "reserved" if bar.reserved else "memory"
    size = piece.end - piece.start
    name = piece.label or ("reserved" if bar.reserved else "memory")
    return element(
        "g",
        element(
            "title", f"{name}: {piece.start:#x} to {piece.end - 1:#x}, {size_text(size)}"
        ),
        element("rect", x=x, y=top + 2, width=width, height=_STRIP, class_=role),
        element("text", name, x=x + width / 2, y=top + 2 + _STRIP / 2 + 4, class_="label"),
        element("text", f"{piece.start:#x}", x=x, y=top + _STRIP + 18, class_="offset"),
        class_="piece",
    )  # fmt: skip


def table(bars: Sequence[Bar]) -> Markup:
    """Return the contents of the map as table rows."""
    rows = []
    for bar in bars:
        for piece in pieces(bar):
            rows.append(
                element(
                    "tr",
                    element("td", f"BAR{bar.number}"),
                    element("td", f"{piece.start:#x}", class_="mono right"),
                    element("td", f"{piece.end - 1:#x}", class_="mono right"),
                    element("td", size_text(piece.end - piece.start), class_="right"),
                    element("td", piece.label or ("reserved" if bar.reserved else "memory")),
                )
            )
    heads = head(("BAR", "from", "to", "size", "what"))
    return element(
        "details",
        element("summary", "The same as a table"),
        element("table", heads, element("tbody", rows)),
    )
