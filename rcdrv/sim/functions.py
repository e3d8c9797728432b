"""The endpoint functions, by the name that a layout gives them."""

from __future__ import annotations

from rcdrv.sim.description import DoorbellBackend, Layout
from rcdrv.sim.epf_test import EpfTestFunction
from rcdrv.sim.epf_vntb import EpfVntbFunction
from rcdrv.sim.function import EndpointFunction

_ALL: tuple[EndpointFunction, ...] = (
    EpfTestFunction(),
    EpfVntbFunction(),
)
FUNCTIONS = {function.name: function for function in _ALL}
TABLES = {function.table: function for function in _ALL if function.table}
"""Endpoint functions that have a table, by the table's name."""


def doorbell_place(layout: Layout) -> tuple[int, int] | None:
    """Return (BAR, offset) of an enabled doorbell, or None if ENABLE must fail."""
    doorbell = layout.doorbell
    if doorbell.backend is DoorbellBackend.NONE:
        return None
    if doorbell.backend is DoorbellBackend.EXPOSED:
        return doorbell.bar, doorbell.offset
    return FUNCTIONS[layout.function].doorbell_place(layout)
