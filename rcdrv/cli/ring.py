"""Ring the endpoint's doorbell.

Enables the doorbell, reads and checks DB_BAR, DB_OFFSET and DB_DATA, does the single 32-bit write,
waits for the acknowledgement, and in every case disables the doorbell again.

--device may be repeated: the devices are rung in parallel, and the exit status is the worst.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from rcdrv.cli import exit_status, print_error
from rcdrv.cli.common import (
    ENDPOINT,
    RECORD,
    bar_number,
    drive,
    number,
    pause,
    period,
    print_json,
    warn_left_enabled,
    word32,
)
from rcdrv.cli.reconnect import add_reconnect, persist
from rcdrv.epf_test.doorbell import Location
from rcdrv.epf_test.outcome import ring_document, worst
from rcdrv.epf_test.registers import bit_names
from rcdrv.epf_test.ring import Ring, RingPlan, RingReport, RingRun, ring_blind
from rcdrv.errors import RcdrvError, UsageError
from rcdrv.function import Function
from rcdrv.verdict import NotPassed, Verdict, classify
from rcdrv.wait import Cancel

SEVERAL = True
_SOAK_CYCLE = 1000
COMMON_OPTIONS = (*ENDPOINT, *RECORD)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--bar", type=bar_number, metavar="N", help="the doorbell must be in BAR N")
    add("--count", type=number, metavar="N", help="rings; 0 is endless (default 1)")
    add(
        "--cycles",
        type=number,
        default=1,
        metavar="N",
        help="N times enable, --count rings, disable (default 1)",
    )
    add("--interval", type=pause, default=0.0, metavar="S", help="seconds between rings")
    add(
        "--soak",
        type=period,
        metavar="TIME",
        help="ring for this time, such as 1h, in cycles of --count rings (default 1000); show"
        " percentiles and their drift instead of rings",
    )
    add("--no-wait", action="store_true", help="do not wait for the acknowledgement")
    add("--force", action="store_true", help="try even if CAPS does not announce doorbells")
    add("--offset", type=word32, metavar="X", help="ring at this offset of --bar instead")
    add("--data", type=word32, metavar="X", help="the value to write there")
    add("--no-enable", action="store_true", help="send no ENABLE and no DISABLE; do not wait")
    add_reconnect(parser)


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    override = _override(args)
    if len(args.devices) > 1:
        from rcdrv.cli.several import each

        return each(args, cancel, run)
    if args.soak:
        from rcdrv.cli.soak import soak  # only for this: it imports more than a ring needs

        return soak(args, cancel, override)
    device: str | None = args.device
    error: RcdrvError | None = None
    report = RingReport(keep=args.json)

    def use(function: Function) -> None:
        nonlocal device
        device = function.address
        # After a reboot the doorbell may be elsewhere, and is no longer enabled.
        report.location, report.left_enabled = None, False
        if override is not None and args.no_enable:
            _run_blind(function, override, args, report)
        else:
            _run(function, override, args, report)

    try:
        persist(args, cancel, use)
    except RcdrvError as caught:
        error = caught
    finding = worst(report, error)
    if args.json:
        print_json(ring_document(device, report, finding))
    else:
        _show_end(report, error)
    warn_left_enabled(report.left_enabled)
    return exit_status(finding, cancel)


def _override(args: argparse.Namespace) -> Location | None:
    """Return the location of ``--offset`` and ``--data``, which need each other and ``--bar``."""
    if (args.offset is None) != (args.data is None):
        raise UsageError("--offset and --data go together")
    if args.cycles < 1:
        raise UsageError("--cycles has to be at least 1")
    if args.count is None:
        args.count = _SOAK_CYCLE if args.soak else 1
    if args.soak and (args.cycles > 1 or args.no_wait or args.no_enable):
        raise UsageError(
            "--soak goes with neither --cycles, --no-wait nor --no-enable",
            hint="it repeats cycles of --count rings, and measures each acknowledgement",
        )
    if args.cycles > 1 and args.count == 0:
        raise UsageError("--count 0 never ends, so there is nothing for --cycles to repeat")
    if args.offset is None:
        if args.no_enable:
            raise UsageError("--no-enable needs --bar, --offset and --data")
        return None
    if args.bar is None:
        raise UsageError("--offset and --data need --bar")
    if args.offset % 4:
        raise UsageError(f"--offset {args.offset:#x} is not a multiple of 4")
    return Location(args.bar, args.offset, args.data)


def _run(
    function: Function, override: Location | None, args: argparse.Namespace, report: RingReport
) -> None:
    count, cycles = _left(args, report)
    if args.count and not count * cycles:
        return  # it was lost after the last ring
    plan = RingPlan(
        bar=args.bar,
        count=count,
        cycles=cycles,
        interval=args.interval,
        wait=not args.no_wait,
        force=args.force,
        override=override,
    )
    run = RingRun(drive(args, function), plan, report)
    if not args.json:
        run.on_location, run.on_ring = _show_location, partial(_show_ring, report)
    error: RcdrvError | None = None
    try:
        run.run()
    except RcdrvError as found:
        error = found
        raise
    finally:
        verdict, reason = classify(worst(report, error))
        function.mark("verdict", verdict.value, reason.value if reason else "-")


def _left(args: argparse.Namespace, report: RingReport) -> tuple[int, int]:
    """Return the rings and cycles left; a cycle in which the device was lost is repeated."""
    if args.cycles > 1:
        return args.count, args.cycles - report.count // args.count
    return max(0, args.count - report.count), 1


def _run_blind(
    function: Function, where: Location, args: argparse.Namespace, report: RingReport
) -> None:
    report.location = where
    if not args.json:
        _show_location(report)
    count, _ = _left(args, report)
    if args.count and not count:
        return
    for ring in ring_blind(
        function, where, count=count, interval=args.interval, reg_bar=args.reg_bar
    ):
        report.note(ring)
        if not args.json:
            _show_ring(report, ring)


def _show_location(report: RingReport) -> None:
    if report.said is not None and report.said != report.location:
        print(f"endpoint's doorbell {report.said}, not used")
    print(f"doorbell {report.location}", flush=True)


def _show_ring(report: RingReport, ring: Ring) -> None:
    if ring.acknowledged is None:
        print(f"ring {ring.number}: written", flush=True)
        return
    status = "" if ring.status is None else f"status {int(ring.status):#010x}"
    if ring.status:
        status += f" {bit_names(ring.status)}"
    if ring.failure is not None:
        print(f"ring {ring.number}: FAIL {ring.failure.reason.value}, {status}", flush=True)
        return
    assert ring.latency_ns is not None
    vector = report.irq if ring.vector is None else f"{report.irq} {ring.vector + 1}"
    print(
        f"ring {ring.number}: acknowledged in {ring.latency_ns / 1e3:.1f} us, {status}, {vector}",
        flush=True,
    )


def _show_end(report: RingReport, error: RcdrvError | None) -> None:
    failure = report.failure()
    if report.count > 1:
        print(summary_line(report))
    sys.stdout.flush()
    if failure is not None and failure.verdict is not Verdict.UNVERIFIED:
        print_error(failure)
    same = isinstance(error, NotPassed) and failure and error.reason is failure.reason
    if error is not None and not same:
        print_error(error)


def summary_line(report: RingReport) -> str:
    """Return ``100 rings, 100 acknowledged, min/avg/max 88.1/112.4/340.0 us``."""
    if report.unwatched:
        return f"{report.count} rings written"
    line = f"{report.count} rings, {report.acknowledged} acknowledged"
    if report.acknowledged:
        average = report.total_ns / report.acknowledged
        times = (report.shortest_ns, average, report.longest_ns)
        line += ", min/avg/max " + "/".join(f"{time / 1e3:.1f}" for time in times) + " us"
    return line
