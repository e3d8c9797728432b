"""The second suite, ``rcdrv test --more``: what boards fail at beyond the kselftest.

:data:`MORE` and :data:`DESTRUCTIVE_MORE` are the only lists; the command line, the completion of
shells, docs/commands/test.md (``python3 -m tools.more``) and the tests derive theirs from them.
"""

from __future__ import annotations

from rcdrv.epf_test.more import (
    bars,
    config,
    doorbell,
    interrupts,
    link,
    master,
    power,
    reset,
    transfers,
)

MORE = (
    *bars.CASES,
    *config.CASES,
    *link.CASES,
    *interrupts.CASES,
    *doorbell.CASES,
    *transfers.CASES,
)
"""Harmless: they do to an endpoint what the 23 cases do."""

DESTRUCTIVE_MORE = {
    "bus-master": (master.CASE,),
    "power": power.CASES,
    "reset": reset.CASES,
}
"""May crash or reset an endpoint; those of a name run only when it is asked for."""
