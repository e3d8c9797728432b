"""`rcdrv ntb ping`: round trips of one vNTB, or of two to compare."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rcdrv.address import scheme_of
from rcdrv.cli import exit_status, print_error
from rcdrv.cli.common import Say, open_function, print_json, printer, say_nothing
from rcdrv.cli.vntb import bridge
from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.echo import TransportPinger
from rcdrv.epf_vntb.ping import DoorbellPinger, Pinger, PingReport, RoundTrip, Spread, run_pings
from rcdrv.errors import RcdrvError, UsageError
from rcdrv.verdict import Verdict, verdict_document
from rcdrv.wait import Cancel

COMPARED = (
    "sim:rcar-s4-vntb-polled,vntb.peer_delay_ms=0",
    "sim:rcar-s4-vntb,vntb.peer_delay_ms=0",
)
"""Set-up of the published ping, with polled and with embedded doorbell."""

# The endpoint polls every 12 ms at 250 Hz. An interval of whole milliseconds samples few phases of
# that (one second: three); the golden ratio spreads any number of pings evenly.
_WANDERING = 0.012 * 1.6180339887


def ping(args: argparse.Namespace, cancel: Cancel) -> int:
    count = 10 if args.count is None else args.count
    interval = 0.2 if args.interval is None else args.interval
    report = PingReport()
    source, end = _run_pings(args, args, cancel, report, count, interval, printer(args))
    finding = end or (report.misses[0] if report.misses else None)
    if args.json:
        print_json({"device": args.device, **_ping_document(report, finding)})
    elif report.transmitted:
        head = f"\n--- {source or args.device} ping statistics ---"
        print("\n".join([head, *_statistics(report)]))
    if end is not None and not args.json:
        print_error(end)
    return exit_status(finding, cancel)


def _run_pings(
    args: argparse.Namespace,
    where: argparse.Namespace,
    cancel: Cancel,
    report: PingReport,
    count: int,
    interval: float,
    say: Say,
) -> tuple[str, RcdrvError | None]:
    """Ping the endpoint at ``where``.

    :returns: the origin of the answers, and the error that ended the run early, if any
    """
    source = ""
    try:
        with open_function(where, cancel) as function, bridge(args, function) as vntb:
            where.device = function.address
            pinger = _pinger(args, vntb)
            source = pinger.source
            run_pings(
                pinger,
                vntb,
                report,
                count=count,
                interval=interval,
                on_start=lambda: say(f"PING {pinger.title}"),
                on_trip=lambda trip: say(_trip_line(source, trip)),
                on_miss=lambda seq, miss: say(
                    f"no answer: seq={seq} {miss.reason.value}: {miss.message}"
                ),
            )
    except RcdrvError as error:
        return source, error
    return source, None


def _pinger(args: argparse.Namespace, vntb: Vntb) -> Pinger:
    if not args.transport:
        if args.size is not None:
            raise UsageError("--size needs --transport: a scratchpad has 4 bytes")
        return DoorbellPinger(vntb, doorbell=args.db)
    if args.db:
        raise UsageError("--db and --transport: queue pair 0 has doorbell 0")
    size = 56 if args.size is None else args.size
    return TransportPinger(
        vntb, ip=args.ip, peer_ip=args.peer_ip, size=size, mtu=args.transport_mtu
    )


def _trip_line(source: str, trip: RoundTrip) -> str:
    line = f"{trip.size} bytes from {source}: seq={trip.sequence}"
    line += f" time={trip.nanoseconds / 1e6:.3f} ms"
    if trip.reported != 1:
        line += f" (the endpoint counted {trip.reported} doorbells)"
    return line


def _statistics(report: PingReport) -> list[str]:
    received = len(report.trips)
    lost = 100 * (report.transmitted - received) / report.transmitted if report.transmitted else 0
    lines = [
        f"{report.transmitted} packets transmitted, {received} received, {lost:.3g}% packet loss,"
        f" time {report.seconds * 1000:.0f}ms"
    ]
    if report.spread is not None:
        one = report.spread
        first = (one.minimum, one.average, one.maximum, one.mdev)
        lines.append("rtt min/avg/max/mdev = " + "/".join(f"{ms:.3f}" for ms in first) + " ms")
        then = (one.p50, one.p90, one.p99, one.p999)
        lines.append("rtt p50/p90/p99/p99.9 = " + "/".join(f"{ms:.3f}" for ms in then) + " ms")
    if report.delay is not None:
        lines.append(
            f"answers come after {report.delay:.0f} ms: is ntb_pingpong's delay_ms 1000, its"
            " default? On the endpoint: echo 0 > /sys/module/ntb_pingpong/parameters/delay_ms"
        )
    return lines


def _ping_document(report: PingReport, finding: RcdrvError | None) -> dict[str, Any]:
    return {
        "transmitted": report.transmitted,
        "received": len(report.trips),
        "rtt_ms": None if report.spread is None else asdict(report.spread),
        "trips": [asdict(trip) for trip in report.trips],
        **verdict_document(finding),
    }


def compare(args: argparse.Namespace, cancel: Cancel) -> int:
    """Ping two endpoints, and show both distributions and their ratio."""
    addresses = args.compare or list(COMPARED)
    if len(addresses) != 2:
        raise UsageError("--compare takes two addresses, or none")
    if args.device is not None:
        raise UsageError(
            f"--compare does not use --device {args.device}",
            hint="rcdrv ntb ping --compare ADDRESS ADDRESS",
        )
    if args.record is not None:
        raise UsageError("--record keeps one session, and --compare makes two")
    count = 200 if args.count is None else args.count
    if not count:
        raise UsageError("--compare needs an end: --count N")
    interval = _WANDERING if args.interval is None else args.interval
    say = printer(args)
    reports = []
    for address in addresses:
        report = PingReport()
        where = argparse.Namespace(**{**vars(args), "device": address})
        _, end = _run_pings(args, where, cancel, report, count, interval, say_nothing)
        if end is None and report.misses:
            end = report.misses[0]
        if end is not None:
            raise end
        reports.append(report)
        say("\n".join([f"--- {address}", *_statistics(report)]))
    slow, fast = (Spread.of(report.trips) for report in reports)
    ratios = {"average": slow.average / fast.average, "median": slow.p50 / fast.p50}
    modelled = all(scheme_of(address).is_started for address in addresses)
    if args.json:
        print_json(
            {
                "endpoints": [
                    {"device": address, **_ping_document(report, None)}
                    for address, report in zip(addresses, reports, strict=True)
                ],
                "ratio": ratios,
                "model": modelled,
                "verdict": Verdict.PASS.value,
            }
        )
        return 0
    # The medians are compared, as a busy host delays some pings by a whole time slice.
    print(f"ratio of medians {ratios['median']:.1f}, of averages {ratios['average']:.1f}")
    if modelled:
        print(
            "These are times of the software model, not of a board: the endpoint's poll interval is"
            " modelled, the rest\nis this host's. On the board the published averages are 8.7 ms"
            " (4.04-12.2 ms) and 0.88 ms, a ratio of 9.8."
        )
    return 0
