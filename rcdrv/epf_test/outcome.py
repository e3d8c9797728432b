"""Outcome of a run of rings: one verdict, and one document."""

from __future__ import annotations

from rcdrv.epf_test.ring import RingReport
from rcdrv.errors import RcdrvError
from rcdrv.verdict import verdict_document

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Any

_RANKS = (0, 4, 1, 2, 3, 5)
"""Exit statuses in ascending rank; all others (130, a signal) rank above them."""


def worst(report: RingReport, error: RcdrvError | None) -> RcdrvError | None:
    """Return the finding that decides the verdict: the rings' own, or the error that ended them.

    Of equal rank, a failed ring precedes the error. Stray interrupts follow it, as the error may
    be their cause.
    """
    both = (report.failure(), error) if report.failed else (error, report.failure())
    findings = [one for one in both if one is not None]
    return max(findings, key=lambda one: rank(one.exit_status), default=None)


def rank(status: int) -> int:
    """Return the sort key of an exit status."""
    return _RANKS.index(status) if status in _RANKS else status


def ring_document(
    device: str | None, report: RingReport, finding: RcdrvError | None
) -> dict[str, Any]:
    """Return the document of ``rcdrv ring --json``. Its keys are stable.

    ``device``
        The endpoint's address as the user named it.
    ``doorbell``
        ``bar``, ``offset`` (bytes) and ``data`` that were rung; null if nothing was rung.
    ``irq``
        ``msi``, ``msix``, ``intx``, ``poll``, or ``none`` if no endpoint was opened.
    ``rings``
        In order: ``acknowledged`` (null if it was not awaited), ``latency_ns`` from the write to
        the acknowledgement (null without one), ``status`` (STATUS register; null likewise).
    ``stray_interrupts``, ``doorbell_left_enabled``
        Interrupts in excess of one per ring; whether DISABLE was not confirmed.
    ``verdict``, ``reason``, ``message``, ``hint``
        See :mod:`rcdrv.verdict`; ``reason`` is null on a pass, the texts may be empty.
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
