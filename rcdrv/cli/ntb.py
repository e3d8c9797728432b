"""pci-epf-vntb from the root complex: link, doorbells, scratchpads, memory windows, ping.

BAR maps are known for 104c:b00d, 1957:0809 and 1912:0030; --ctrl-bar, --db-bar, --spad-bar and
--mw-bar (once a window) say them for any other, or otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from ipaddress import IPv4Address
from typing import Any

from rcdrv.cli.common import (
    bar_number,
    common_options,
    number,
    open_function,
    pause,
    positive,
    print_json,
    seconds,
    tracer,
    word32,
)
from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.ping import DoorbellPinger, Pinger, PingReport, RoundTrip, Spread, run_pings
from rcdrv.epf_vntb.registers import FIRST_SLOT, Reg, choose_map
from rcdrv.epf_vntb.transport import MTU, TransportPinger
from rcdrv.epf_vntb.window import test_memory, test_pointing
from rcdrv.errors import Interrupted, RcdrvError, UsageError
from rcdrv.function import Function
from rcdrv.verdict import NotPassed, Verdict, verdict_document
from rcdrv.wait import Cancel

COMMON_OPTIONS = ("device", "json", "verbose", "timeout")

COMPARED = (
    "sim:rcar-s4-vntb-polled,vntb.peer_delay_ms=0",
    "sim:rcar-s4-vntb,vntb.peer_delay_ms=0",
)
"""The set-up of the published ping, doorbell polled and embedded."""

# The endpoint looks every 12 ms at 250 Hz. An interval that is a whole number of milliseconds meets
# it in a few phases only (a second: three); the golden ratio spreads any number of them evenly.
_WANDERING = 0.012 * 1.6180339887


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        return actions.add_parser(
            name,
            help=summary,
            description=summary,
            parents=[common_options(COMMON_OPTIONS), _bars()],
        )

    action("info", "show the control block, decoded")
    add = action("link", "take the link up or down, or watch it").add_argument
    add("what", choices=["up", "down", "watch"], metavar="up|down|watch")
    add("--seconds", type=seconds, metavar="S", help="watch: stop after so long (default: never)")
    add = action("spad", "read or write scratchpads").add_argument
    add("what", choices=["read", "write"], metavar="read|write")
    add("index", type=number, nargs="?", help="which one (read: default all)")
    add("value", type=word32, nargs="?", help="write: the value")
    add("--peer", action="store_true", help="read what was written for the endpoint")
    add("--own", action="store_true", help="write what the endpoint writes for this side")
    add = action("ring", "ring a doorbell of the endpoint").add_argument
    add("--db", type=number, required=True, metavar="N", help="which one, from 0")
    add("--count", type=positive, default=1, metavar="N", help="rings (default 1)")
    add("--interval", type=pause, default=0.0, metavar="S", help="seconds between rings")
    add = action("mw", "read, write or test a memory window").add_argument
    add("what", choices=["read", "write", "test"], metavar="read|write|test")
    add("offset", type=number, nargs="?", default=0, help="in the window (default 0)")
    add("value", type=word32, nargs="?", help="write: the 32-bit value")
    add("--mw", type=number, default=0, metavar="N", help="which window, from 0 (default 0)")
    add("--count", type=positive, default=1, metavar="N", help="read: 32-bit words (default 1)")
    add(
        "--translated",
        action="store_true",
        help="the endpoint has set the window's translation; before that, the BAR shows its"
        " physical address 0 and must not be touched",
    )
    add = action("ping", "measure round trips").add_argument
    add("--count", type=number, metavar="N", help="pings; 0 is endless (default 10)")
    add("--interval", type=pause, metavar="S", help="seconds between pings (default 0.2)")
    add("--db", type=number, default=0, metavar="N", help="the doorbell to ring (default 0)")
    add("--transport", action="store_true", help="ICMP echo over an ntb_transport queue pair")
    add("--size", type=number, metavar="BYTES", help="data in each echo (default 56)")
    add("--transport-mtu", type=number, default=MTU, metavar="BYTES", help="the endpoint's")
    add("--ip", type=_ipv4, default="192.0.2.1", metavar="A", help="ours (default 192.0.2.1)")
    add("--peer-ip", type=_ipv4, default="192.0.2.2", metavar="A", help="default 192.0.2.2")
    add(
        "--compare",
        nargs="*",
        metavar="ADDRESS",
        help="ping two endpoints, print both distributions and their ratio (default: R-Car S4's"
        " software endpoint with its doorbell polled and embedded)",
    )


def _bars() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("where the parts are (default: by the ID)")
    group.add_argument("--ctrl-bar", type=bar_number, metavar="N", help="control block")
    group.add_argument("--db-bar", type=bar_number, metavar="N", help="doorbells")
    group.add_argument("--spad-bar", type=bar_number, metavar="N", help="peer scratchpads")
    group.add_argument(
        "--mw-bar", type=bar_number, action="append", metavar="N", help="a window; repeat for more"
    )
    return options


def _ipv4(text: str) -> bytes:
    try:
        return IPv4Address(text).packed
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 address") from None


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    if args.action == "ping":
        return _compare(args, cancel) if args.compare is not None else _ping(args, cancel)
    actions: dict[str, Callable[[argparse.Namespace, Vntb], dict[str, Any]]] = {
        "info": _info,
        "link": _link,
        "spad": _spad,
        "ring": _ring,
        "mw": _mw,
    }
    with open_function(args, cancel) as function, _bridge(args, function) as vntb:
        document = {"device": function.address, **actions[args.action](args, vntb)}
        document.setdefault("verdict", Verdict.PASS.value)
    if args.json:
        print_json(document)
    # A watch that was stopped has its results all the same.
    return 128 + cancel.signal if cancel.signal else 0


@contextlib.contextmanager
def _bridge(args: argparse.Namespace, function: Function) -> Iterator[Vntb]:
    config = function.config
    bars = choose_map(
        config.vendor_id,
        config.device_id,
        control=args.ctrl_bar,
        doorbell=args.db_bar,
        peer_spad=args.spad_bar,
        windows=tuple(args.mw_bar or ()),
    )
    vntb = Vntb(function, bars, timeout=args.timeout, trace=tracer(args))
    try:
        yield vntb
    finally:
        with function.cancel.deferred():
            vntb.close()


# -- one thing each -------------------------------------------------------------------------------


def _info(args: argparse.Namespace, vntb: Vntb) -> dict[str, Any]:
    control = vntb.function.bar(vntb.bars.control)
    count = vntb.doorbells
    slots = []
    for doorbell in range(count if count is not None else 1):
        found = vntb.doorbell_place(doorbell)
        slots.append({"db": doorbell, "offset": found.offset, "data": found.data})
    registers = {register.name: vntb.read(register) for register in Reg}
    info = {
        "registers": registers,
        "control_bar": vntb.bars.control,
        "peer_spad_bar": vntb.bars.peer_spad,
        "doorbell_bar": vntb.bars.doorbell,
        "window_bars": list(vntb.bars.windows[: vntb.windows]),
        "doorbells": count,
        "polled": vntb.polled,
        "slots": slots,
        "scratchpads": vntb.spads,
        "link_up": vntb.link_is_up,
    }
    if not args.json:
        print(f"{vntb.function.address}: pci-epf-vntb, link {'up' if info['link_up'] else 'down'}")
        print(f"control      BAR{vntb.bars.control}, {control.size:#x} bytes")
        print(f"scratchpads  {vntb.spads} on each side")
        kind = "polled" if vntb.polled else "interrupt-driven (MSI or embedded)"
        shown = "an unknown number" if count is None else str(count)
        print(f"doorbells    {shown} in BAR{vntb.bars.doorbell}, {kind}")
        for slot in slots:
            at = f"BAR{vntb.bars.doorbell}+{slot['offset']:#x}"
            print(f"  DB#{slot['db']} slot {slot['db'] + FIRST_SLOT}: {at} data {slot['data']:#x}")
        for index, bar in enumerate(vntb.bars.windows[: vntb.windows]):
            print(f"window {index}     BAR{bar}, {vntb.window(index).size:#x} bytes")
        for register, value in registers.items():
            print(f"  {register:13} {value:#010x}")
    return info


def _link(args: argparse.Namespace, vntb: Vntb) -> dict[str, Any]:
    if args.what == "watch":
        return _watch(args, vntb)
    if args.what == "up":
        vntb.link_up()
    else:
        vntb.link_down()
    up = vntb.link_is_up
    if not args.json:
        print(f"link {'up' if up else 'down'}")
    return {"link_up": up}


def _watch(args: argparse.Namespace, vntb: Vntb) -> dict[str, Any]:
    """The endpoint raises nothing when the link changes, so LINK_STATUS is looked at."""
    vntb.arm()
    start = time.monotonic()
    up: bool | None = None
    rang: dict[int, int] = {}
    with contextlib.suppress(Interrupted):
        while args.seconds is None or time.monotonic() - start < args.seconds:
            before, up = up, vntb.link_is_up
            at = time.monotonic() - start
            if up != before and not args.json:
                print(f"{at:10.3f} s  link {'up' if up else 'down'}", flush=True)
            for doorbell, times in vntb.wait_doorbells(vntb.function.deadline(0.05)).items():
                rang[doorbell] = rang.get(doorbell, 0) + times
                if not args.json:
                    name = f"DB#{doorbell}" if doorbell >= 0 else f"vector {doorbell + FIRST_SLOT}"
                    print(f"{at:10.3f} s  {name} rang {times} times", flush=True)
    return {"link_up": up, "rang": {str(doorbell): times for doorbell, times in rang.items()}}


def _spad(args: argparse.Namespace, vntb: Vntb) -> dict[str, Any]:
    if args.what == "write":
        if args.index is None or args.value is None:
            raise UsageError("spad write needs an index and a value")
        vntb.spad_write(args.index, args.value, peer=not args.own)
        return {"written": {str(args.index): args.value}}
    indexes = range(vntb.spads) if args.index is None else [args.index]
    values = {index: vntb.spad_read(index, peer=args.peer) for index in indexes}
    if not args.json:
        for index, value in values.items():
            print(f"{index:4} {value:#010x}")
    return {"scratchpads": {str(index): value for index, value in values.items()}}


def _ring(args: argparse.Namespace, vntb: Vntb) -> dict[str, Any]:
    doorbell = vntb.doorbell(args.db)
    for rung in range(args.count):
        vntb.function.pause(args.interval if rung else 0.0)
        vntb.ring(doorbell)
    if not args.json:
        print(
            f"DB#{doorbell.number}: wrote {doorbell.data:#010x} to"
            f" BAR{doorbell.bar}+{doorbell.offset:#x}"
            + (f", {args.count} times" if args.count != 1 else "")
        )
    return {"doorbell": dict(vars(doorbell)), "rings": args.count, "verdict": "unverified"}


def _mw(args: argparse.Namespace, vntb: Vntb) -> dict[str, Any]:
    window = vntb.window(args.mw)
    if args.what == "test":
        document: dict[str, Any] = {"window": args.mw, "pointed": test_pointing(vntb, args.mw)}
        if not args.json:
            print(
                f"window {args.mw}: pointed at {document['pointed']:#x} bytes here, and taken back"
            )
        if args.translated:
            document["tested"] = test_memory(vntb, args.mw)
            if not args.json:
                print(f"window {args.mw}: {document['tested']:#x} bytes of the endpoint's hold")
        elif not args.json:
            print("the endpoint's memory was not touched: that needs --translated")
        return document
    if not args.translated:
        raise UsageError(
            f"window {args.mw} may show the endpoint's physical address 0, so it is not touched",
            hint="--translated says that the endpoint has set its translation (ntb_tool: peer_trans"
            " or mw_trans)",
        )
    if args.what == "write":
        if args.value is None:
            raise UsageError("mw write needs an offset and a value")
        window.write32(args.offset, args.value)
        return {"window": args.mw, "offset": args.offset, "written": args.value}
    words = [window.read32(args.offset + 4 * index) for index in range(args.count)]
    if not args.json:
        for index, word in enumerate(words):
            print(f"{args.offset + 4 * index:#010x} {word:#010x}")
    return {"window": args.mw, "offset": args.offset, "words": words}


# -- ping -----------------------------------------------------------------------------------------


def _ping(args: argparse.Namespace, cancel: Cancel) -> int:
    count = 10 if args.count is None else args.count
    interval = 0.2 if args.interval is None else args.interval
    report = PingReport()
    source, end = _run_pings(args, args, cancel, report, count, interval, quiet=args.json)
    finding = end or (report.misses[0] if report.misses else None)
    if args.json:
        print_json({"device": args.device, **_ping_document(report, finding)})
    elif report.transmitted:
        print(f"\n--- {source or args.device} ping statistics ---")
        _print_statistics(report)
    if finding is None:
        return 0
    if end is not None and not args.json:
        from rcdrv.cli import print_error

        print_error(end)
    from rcdrv.cli import exit_status

    return exit_status(finding, cancel)


def _run_pings(
    args: argparse.Namespace,
    where: argparse.Namespace,
    cancel: Cancel,
    report: PingReport,
    count: int,
    interval: float,
    *,
    quiet: bool,
) -> tuple[str, RcdrvError | None]:
    """Ping the endpoint that ``where`` names; what ended it early, and where answers came from."""
    source = ""
    try:
        with open_function(where, cancel) as function, _bridge(args, function) as vntb:
            where.device = function.address
            pinger = _pinger(args, vntb)
            source = pinger.source

            def on_start() -> None:
                if not quiet:
                    print(f"PING {pinger.title}", flush=True)

            def on_trip(trip: RoundTrip) -> None:
                if not quiet:
                    _print_trip(source, trip)

            def on_miss(sequence: int, miss: NotPassed) -> None:
                if not quiet:
                    print(f"no answer: seq={sequence} {miss.reason.value}: {miss.message}")

            run_pings(
                pinger,
                vntb,
                report,
                count=count,
                interval=interval,
                on_start=on_start,
                on_trip=on_trip,
                on_miss=on_miss,
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


def _print_trip(source: str, trip: RoundTrip) -> None:
    line = f"{trip.size} bytes from {source}: seq={trip.sequence}"
    line += f" time={trip.nanoseconds / 1e6:.3f} ms"
    if trip.reported != 1:
        line += f" (the endpoint counted {trip.reported} doorbells)"
    print(line, flush=True)


def _print_statistics(report: PingReport) -> None:
    received = len(report.trips)
    lost = 100 * (report.transmitted - received) / report.transmitted if report.transmitted else 0
    print(
        f"{report.transmitted} packets transmitted, {received} received, {lost:.3g}% packet loss,"
        f" time {report.seconds * 1000:.0f}ms"
    )
    if report.spread is not None:
        _print_spread(report.spread)
    if report.delay is not None:
        print(
            f"answers come after {report.delay:.0f} ms: is ntb_pingpong's delay_ms 1000, its"
            " default? On the endpoint: echo 0 > /sys/module/ntb_pingpong/parameters/delay_ms"
        )


def _print_spread(spread: Spread) -> None:
    first = (spread.minimum, spread.average, spread.maximum, spread.mdev)
    print("rtt min/avg/max/mdev = " + "/".join(f"{value:.3f}" for value in first) + " ms")
    then = (spread.p50, spread.p90, spread.p99, spread.p999)
    print("rtt p50/p90/p99/p99.9 = " + "/".join(f"{value:.3f}" for value in then) + " ms")


def _ping_document(report: PingReport, finding: RcdrvError | None) -> dict[str, Any]:
    return {
        "transmitted": report.transmitted,
        "received": len(report.trips),
        "rtt_ms": None if report.spread is None else asdict(report.spread),
        "trips": [asdict(trip) for trip in report.trips],
        **verdict_document(finding),
    }


def _compare(args: argparse.Namespace, cancel: Cancel) -> int:
    addresses = args.compare or list(COMPARED)
    if len(addresses) != 2:
        raise UsageError("--compare takes two addresses, or none")
    count = 200 if args.count is None else args.count
    if not count:
        raise UsageError("--compare needs an end: --count N")
    interval = _WANDERING if args.interval is None else args.interval
    reports = []
    for address in addresses:
        report = PingReport()
        where = argparse.Namespace(**{**vars(args), "device": address})
        _, end = _run_pings(args, where, cancel, report, count, interval, quiet=True)
        if end is None and report.misses:
            end = report.misses[0]
        if end is not None:
            raise end
        reports.append(report)
        if not args.json:
            print(f"--- {address}")
            _print_statistics(report)
    slow, fast = (Spread.of(report.trips) for report in reports)
    ratios = {"average": slow.average / fast.average, "median": slow.p50 / fast.p50}
    modelled = all(address.startswith("sim:") for address in addresses)
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
    # Of the two, the medians are the measure: a busy host delays some pings by a whole time slice.
    print(f"ratio of medians {ratios['median']:.1f}, of averages {ratios['average']:.1f}")
    if modelled:
        print(
            "These are times of the software model, not of a board: the endpoint's poll interval is"
            " modelled, the rest\nis this host's. On the board the published averages are 8.7 ms"
            " (4.04-12.2 ms) and 0.88 ms, a ratio of 9.8."
        )
    return 0
