"""A layout as plain regions, for whoever draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcdrv.errors import UsageError
from rcdrv.results.layout import TEST_REGISTERS, Bar, Region, msix_regions
from rcdrv.sim.layout import VNTB_CONTROL_SIZE, BarType, DoorbellBackend, Layout, parse_layout


def picture(table: Any, where: str) -> tuple[Sequence[Bar], str] | None:
    """Return the BARs of a layout and, in words, where its doorbell is.

    :param table: a TOML table
    :param where: its source, for messages
    :returns: None for a table that is no layout: a later version's may know more
    """
    try:
        layout = parse_layout(table, where)
    except (UsageError, AttributeError, TypeError):
        return None
    found = _vntb_regions(layout) if layout.function == "epf_vntb" else _regions(layout)
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


def _regions(layout: Layout) -> dict[int, list[Region]]:
    found: dict[int, list[Region]] = {layout.register_bar: [TEST_REGISTERS]}
    if layout.msix:
        found.setdefault(layout.msix_bar, []).extend(
            msix_regions(layout.msix, layout.msix_table, layout.msix_pba)
        )
    place = layout.doorbell_place()
    if place is not None:
        found.setdefault(place[0], []).append(Region(place[1], 4, "doorbell", "doorbell"))
    return found


def _vntb_regions(layout: Layout) -> dict[int, list[Region]]:
    vntb = layout.vntb
    spads = 4 * vntb.spad_count
    found = {
        layout.register_bar: [
            Region(0, VNTB_CONTROL_SIZE, "control block", "registers"),
            Region(VNTB_CONTROL_SIZE, spads, "own scratchpads", "window"),
            Region(VNTB_CONTROL_SIZE + spads, spads, "peer's", "window"),
        ],
        vntb.db_bar: [_vntb_doorbells(layout)],
    }
    for number, (bar, size) in enumerate(zip(vntb.mw_bars, vntb.mw_sizes, strict=True), 1):
        if bar >= 0:
            found.setdefault(bar, []).append(Region(0, size, f"memory window {number}", "window"))
    return found


def _vntb_doorbells(layout: Layout) -> Region:
    """All in one place where they are a register of the endpoint's, a word each where it polls."""
    place = layout.doorbell_place()
    if place is None:
        return Region(0, 4 * layout.vntb.db_count, "doorbells", "doorbell")
    return Region(place[1], 4, "doorbells", "doorbell")


def _doorbell_words(layout: Layout) -> str:
    place = layout.doorbell_place()
    backend = layout.doorbell.backend
    if place is None:
        return "It has no doorbell register."
    where = f"Its doorbell is at BAR{place[0]}+{place[1]:#x}"
    if backend is DoorbellBackend.EXPOSED:
        return f"{where}, in registers that this BAR always shows."
    if layout.function == "epf_vntb":
        return f"{where}."
    return f"{where}, mapped while it is enabled: its BAR shows the endpoint's registers then."
