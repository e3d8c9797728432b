"""The second suite, ``rcdrv test --more``: failures of boards that the kselftest does not cover.

All other lists of these cases derive from :data:`MORE` and :data:`DESTRUCTIVE_MORE`: command line,
shell completion, docs/commands/test.md (``python3 -m tools.more``) and tests.
"""

from __future__ import annotations

from rcdrv.epf_test.more import bars, config, doorbell, interrupts, link, reset, several, transfers

MORE = (
    *bars.CASES,
    *config.CASES,
    link.load,
    *interrupts.CASES,
    *doorbell.CASES,
    *transfers.CASES,
    several.alone,
)
"""Harmless cases: they treat an endpoint as the 23 cases do."""

DESTRUCTIVE_MORE = {
    "bus-master": (interrupts.bus_master,),
    "link": (link.retrain,),
    "power": (reset.d3hot,),
    "reset": reset.CASES,
}
"""Cases that may crash or reset an endpoint, by the name that selects them."""
