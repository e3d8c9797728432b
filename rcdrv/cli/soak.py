"""``rcdrv ring --soak``: ring for hours, and show percentiles instead of rings."""

from __future__ import annotations

import argparse
import sys

from rcdrv.cli import exit_status, print_error
from rcdrv.cli.common import drive, print_json, warn_left_enabled
from rcdrv.cli.reconnect import persist
from rcdrv.epf_test.doorbell import Location
from rcdrv.epf_test.outcome import worst
from rcdrv.epf_test.ring import Ring, RingPlan, RingReport
from rcdrv.epf_test.soak import Drift, Part, Soak, document
from rcdrv.errors import RcdrvError
from rcdrv.function import Function
from rcdrv.report.terminal import has_colours, rewrite
from rcdrv.results.distribution import PERCENTILES, Distribution, Histogram
from rcdrv.results.units import duration_text, period_text, size_text
from rcdrv.wait import Cancel

_LINE_EVERY = 60.0
_LIVE_EVERY = 0.5


def soak(args: argparse.Namespace, cancel: Cancel, override: Location | None) -> int:
    """Ring for ``args.soak`` seconds; return the exit status."""
    run = Soak(args.soak)
    show = None if args.json else _Shown(run)
    device: str | None = args.device
    begun = False
    error: RcdrvError | None = None

    def use(function: Function) -> None:
        nonlocal device, begun
        if not begun:
            run.begin()
            begun = True
        elif run.end.expired:
            return  # lost in its last cycle; further cycles could be lost too, without an end
        device = function.address
        run.report.location, run.report.left_enabled = None, False
        plan = RingPlan(
            bar=args.bar,
            count=args.count,
            interval=args.interval,
            force=args.force,
            override=override,
            end=run.end,
        )
        run.run(drive(args, function), plan)

    try:
        persist(args, cancel, use)
    except RcdrvError as caught:
        error = caught
    finding = worst(run.report, error)
    if show is None:
        print_json(document(run, device, finding))
    else:
        if begun:  # else the function was never open, and the error says why
            show.summary()
        if finding is not None:
            print_error(finding)
    warn_left_enabled(run.report.left_enabled)
    return exit_status(finding, cancel)


class _Shown:
    """Progress: a line rewritten on a terminal; elsewhere one per minute, for that minute."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        soak.on_location, soak.on_ring = self._location, self._ring
        self._live = has_colours(sys.stdout)
        self._minute = Part(0.0)
        self._next = 0.0 if self._live else _LINE_EVERY

    def _location(self, report: RingReport) -> None:
        print(f"doorbell {report.location}, {report.irq}", flush=True)

    def _ring(self, ring: Ring) -> None:
        if not self._live:
            self._minute.note(ring)
        elapsed = self._soak.elapsed
        if elapsed < self._next:
            return
        if self._live:
            self._next = elapsed + _LIVE_EVERY
            self._rewrite(elapsed)
        else:
            self._next = (elapsed // _LINE_EVERY + 1) * _LINE_EVERY
            self._line(elapsed)

    def _line(self, elapsed: float) -> None:
        part = self._minute
        self._minute = Part(elapsed)
        rings = part.latencies.count + part.failed
        print(
            f"{elapsed / 60:.0f} min: {_counts(rings, part.failed)}{_spread(part.latencies)}",
            flush=True,
        )

    def _rewrite(self, elapsed: float) -> None:
        report = self._soak.report
        text = (
            f"{period_text(int(elapsed))} of {period_text(self._soak.seconds)}:"
            f" {_counts(report.count, report.failed)}{_spread(self._soak.latencies)}"
        )
        rewrite(sys.stdout, text)

    def summary(self) -> None:
        """Print the summary, also of a run that ended early."""
        soak, report = self._soak, self._soak.report
        if self._live:
            rewrite(sys.stdout)
        cycles = f"{soak.cycles} cycle{'' if soak.cycles == 1 else 's'}"
        print(f"{period_text(soak.elapsed)}: {_counts(report.count, report.failed)}, {cycles}")
        found = soak.latencies.distribution()
        if found is not None:
            print(f"latency{_percentiles(found)}")
            drifts = soak.drifts()
            for drift in drifts:
                print(_drift_text(drift))
            if not drifts and len(soak.parts) >= 8:  # fewer parts cannot show a drift
                print("no drift of the latency seen")
        if soak.held is not None:
            print(_held_text(soak))
        sys.stdout.flush()


def _counts(rings: int, failed: int) -> str:
    return f"{rings} ring{'' if rings == 1 else 's'}, {failed} failed"


def _spread(latencies: Histogram) -> str:
    found = latencies.distribution()
    return "" if found is None else f",{_percentiles(found)}"


def _percentiles(found: Distribution) -> str:
    shown = [(f"p{percent:g}", found.percentile(percent)) for percent in PERCENTILES]
    return "".join(
        f" {name} {duration_text(value)}" for name, value in (*shown, ("max", found.maximum))
    )


def _drift_text(drift: Drift) -> str:
    return (
        f"drift: p{drift.percent:g} {'rose' if drift.change > 0 else 'fell'} from"
        f" {duration_text(drift.before_ns)} in the first quarter to"
        f" {duration_text(drift.after_ns)} in the last ({drift.change:+.0%})"
    )


def _held_text(soak: Soak) -> str:
    assert soak.held is not None
    first, last = soak.held
    return (
        "rcdrv held after the first and the last cycle:"
        f" {first.descriptors} and {last.descriptors} descriptors,"
        f" {first.mappings} and {last.mappings} mappings,"
        f" {first.dma_buffers} and {last.dma_buffers} DMA buffers,"
        f" {size_text(first.memory)} and {size_text(last.memory)} of memory"
    )
