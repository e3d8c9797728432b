"""Outcome of a run of rings: one verdict, and one document."""

from __future__ import annotations

from rcdrv.epf_test.ring import RingReport
from rcdrv.errors import RcdrvError
from rcdrv.verdict import verdict_document

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Any

_RANKS = (0, 4, 1, 2, 3, 5)
"""Exit statuses, each outdoing those before it; what is not here (130, a signal) outdoes all."""


def worst(report: RingReport, error: RcdrvError | None) -> RcdrvError | None:
    """Return the finding that counts: of the rings, or the error that ended them early.

    Of equals the rings' own: a ring that failed is what was asked for, and that disabling failed
    too comes second. But interrupts that nobody can account for come last: what ended it early may
    be why.
    """
    both = (report.failure(), error) if report.failed else (error, report.failure())
    findings = [one for one in both if one is not None]
    return max(findings, key=lambda one: rank(one.exit_status), default=None)


def rank(status: int) -> int:
    """Return the key by which exit statuses outdo each other."""
    return _RANKS.index(status) if status in _RANKS else status


def ring_document(
    device: str | None, report: RingReport, finding: RcdrvError | None
) -> dict[str, Any]:
    """The document of ``rcdrv ring --json``, of plain JSON types. Its keys are stable.

    ``device``
        The endpoint's address as the user named it.
    ``doorbell``
        ``bar``, ``offset`` (bytes) and ``data`` of where it was rung; null if nothing was rung.
    ``irq``
        ``msi``, ``msix``, ``intx``, ``poll``, or ``none`` when it did not come to that.
    ``rings``
        In order: ``acknowledged`` (null: nobody looked), ``latency_ns`` from the write to the
        acknowledgement (null without one), ``status`` (the STATUS register; null likewise).
    ``stray_interrupts``, ``doorbell_left_enabled``
        Interrupts beyond one a ring; whether the endpoint confirmed no DISABLE.
    ``verdict``, ``reason``, ``message``, ``hint``
        See :mod:`rcdrv.verdict`; ``reason`` is null when it passed, the texts may be empty.
    """
    place = report.location
    return {
        "device": device,
        "doorbell": None
        if place is None
        else {"bar": place.bar, "offset": place.offset, "data": place.data},
        "irq": report.irq,
        "rings": [
            {
                "acknowledged": ring.acknowledged,
                "latency_ns": ring.latency_ns,
                "status": None if ring.status is None else int(ring.status),
            }
            for ring in report.rings
        ],
        "stray_interrupts": report.stray,
        "doorbell_left_enabled": report.left_enabled,
        **verdict_document(finding),
    }
