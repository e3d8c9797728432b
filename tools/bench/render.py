"""Measurements as a table and as JSON."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rcdrv import __version__
from rcdrv.bench.setup import processor
from tools.bench.measure import Cost, Kind, Row


def heading(load: Sequence[float]) -> str:
    """Return the machine and its load in one line."""
    before, after = load
    return (
        f"{processor() or platform.machine()}, {os.cpu_count()} processors, Linux"
        f" {platform.release()}, Python {platform.python_version()}, rcdrv {__version__};"
        f" load {before:.1f} before, {after:.1f} after\n"
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows with their targets, and reasons for missed ones below the table."""
    lines = [("", "rcdrv", "", "against", "", "ratio", "target", "")]
    lines += [
        (row.what, _number(row.ours), row.unit, row.against, _number(row.theirs), *_result(row))
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    right = (1, 4, 5)
    text = ""
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text += "  ".join(cells).rstrip() + "\n"
    return text + "".join(f"\n{note}" for note in _notes(rows))


def growth(costs: Sequence[Cost]) -> str:
    """Return size and cost of each point, one line per curve."""
    lines = []
    for what in dict.fromkeys(cost.what for cost in costs):
        points = [cost for cost in costs if cost.what == what]
        lines.append(f"{what} ({points[0].unit})")
        lines.append(
            "    " + "  ".join(f"{_size(point.size)}: {_number(point.cost)}" for point in points)
        )
    return "\n".join(lines) + "\n"


def document(rows: Sequence[Row], costs: Sequence[Cost], load: Sequence[float]) -> dict[str, Any]:
    """Return all measurements in plain JSON types."""
    return {
        "setup": {
            "cpu": processor(),
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "rcdrv": __version__,
            "load": list(load),
        },
        "rows": [
            {
                "what": row.what,
                "ours": row.ours,
                "unit": row.unit,
                "against": row.against,
                "theirs": row.theirs,
                "figure": row.figure,
                "target": None if row.target is None else row.target.text(row.unit),
                "met": None if row.target is None else row.verdict == "met",
                "because": row.because,
            }
            for row in rows
        ],
        "growth": [cost._asdict() for cost in costs],
    }


def _result(row: Row) -> tuple[str, str, str]:
    if row.target is None:
        return f"{row.figure:.2f}", "", ""
    figure = f"{row.figure:+.1f}" if row.target.kind is Kind.MORE else f"{row.figure:.2f}"
    return figure, row.target.text(row.unit), row.verdict


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    slower = [row for row in rows if row.because and row.verdict != "met"]
    for because in dict.fromkeys(row.because for row in slower):
        what = "; ".join(dict.fromkeys(row.what for row in slower if row.because == because))
        yield textwrap.fill(f"{what}: {because}", 99, subsequent_indent="  ") + "\n"


def _number(value: float) -> str:
    """Format a number with three digits."""
    for digits, limit in ((0, 100), (1, 10), (2, 1)):
        if value >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"


def _size(value: int) -> str:
    for suffix, scale in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value >= scale and value % scale == 0:
            return f"{value // scale}{suffix}"
    return str(value)
