"""A layout as plain regions, for drawings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcdrv.errors import UsageError
from rcdrv.results.layout import Bar
from rcdrv.sim.description import BarType, DoorbellBackend, Layout
from rcdrv.sim.functions import FUNCTIONS, doorbell_place
from rcdrv.sim.layout import parse_layout


def picture(table: Any, where: str) -> tuple[Sequence[Bar], str] | None:
    """Return the BARs of a layout, and its doorbell's location as text.

    :param table: a TOML table
    :param where: its source, for messages
    :returns: None if the table is no layout, perhaps a later version's
    """
    try:
        layout = parse_layout(table, where)
    except (UsageError, AttributeError, TypeError):
        return None
    found = FUNCTIONS[layout.function].regions(layout, doorbell_place(layout))
    bars = []
    for index, bar in enumerate(layout.bars):
        if bar is None:
            continue
        words = [bar.type.value, "64-bit" if bar.wide else "32-bit"]
        if bar.prefetchable:
            words.append("prefetchable")
        reserved = bar.type is BarType.RESERVED
        bars.append(Bar(index, bar.size, ", ".join(words), tuple(found.get(index, ())), reserved))
    return bars, _doorbell_words(layout)


def _doorbell_words(layout: Layout) -> str:
    place = doorbell_place(layout)
    backend = layout.doorbell.backend
    if place is None:
        return "It has no doorbell register."
    where = f"Its doorbell is at BAR{place[0]}+{place[1]:#x}"
    if backend is DoorbellBackend.EXPOSED:
        return f"{where}, in registers that this BAR always shows."
    return f"{where}{FUNCTIONS[layout.function].doorbell_words}."
