"""pci-epf-vntb from the root complex: link, doorbells, windows, ping, a network interface.

BAR maps are known for 104c:b00d, 1957:0809 and 1912:0030. For other IDs, or other maps, use
--ctrl-bar, --db-bar, --spad-bar and --mw-bar (once per window).
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from rcdrv.cli.common import (
    RECORD,
    add_bulk,
    common_options,
    number,
    open_function,
    pause,
    positive,
    print_json,
    printer,
    seconds,
    word32,
)
from rcdrv.cli.ping import compare, ping
from rcdrv.cli.tap import MTU_HELP, add_tap, tap
from rcdrv.cli.vntb import bar_options, bridge
from rcdrv.epf_vntb import perf
from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.registers import FIRST_SLOT, Reg
from rcdrv.epf_vntb.transport import MTU
from rcdrv.epf_vntb.window import test_memory, test_pointing
from rcdrv.errors import Interrupted, UsageError
from rcdrv.verdict import Verdict
from rcdrv.wait import Cancel

COMMON_OPTIONS = ("device", "json", "verbose", "timeout", "vf_token", *RECORD)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(
        name: str, summary: str, common: Sequence[str] = COMMON_OPTIONS
    ) -> argparse.ArgumentParser:
        return actions.add_parser(
            name,
            help=summary,
            description=summary,
            parents=[common_options(common), bar_options()],
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
    mw = action("mw", "read, write or test a memory window")
    add_bulk(mw)
    add = mw.add_argument
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
    # A replay departs from what a measurement does in its time.
    timed = [name for name in COMMON_OPTIONS if name not in RECORD]
    rates = action("perf", "measure the bandwidth of a memory window, in and out", timed)
    add_bulk(rates)
    add = rates.add_argument
    add("--mw", type=number, default=0, metavar="N", help="which window, from 0 (default 0)")
    add("--chunk", type=number, default=perf.CHUNK, metavar="BYTES", help="a copy (default 64K)")
    add("--seconds", type=seconds, default=0.5, metavar="S", help="for each line (default 0.5)")
    add(
        "--translated",
        action="store_true",
        help="the endpoint has set the window's translation (default: ntb_transport there is"
        " made to)",
    )
    pinger = action("ping", "measure round trips")
    add_bulk(pinger)
    add = pinger.add_argument
    add("--count", type=number, metavar="N", help="pings; 0 is endless (default 10)")
    add("--interval", type=pause, metavar="S", help="seconds between pings (default 0.2)")
    add("--db", type=number, default=0, metavar="N", help="the doorbell to ring (default 0)")
    add("--transport", action="store_true", help="ICMP echo over an ntb_transport queue pair")
    add("--size", type=number, metavar="BYTES", help="data in each echo (default 56)")
    add("--transport-mtu", type=number, default=MTU, metavar="BYTES", help=MTU_HELP)
    add("--ip", type=_ipv4, default="192.0.2.1", metavar="A", help="ours (default 192.0.2.1)")
    add("--peer-ip", type=_ipv4, default="192.0.2.2", metavar="A", help="default 192.0.2.2")
    add(
        "--compare",
        nargs="*",
        metavar="ADDRESS",
        help="ping two endpoints, print both distributions and their ratio (default: R-Car S4's"
        " software endpoint with its doorbell polled and embedded)",
    )
    add_tap(
        action(
            "tap",
            "make a network interface whose peer is ntb_netdev on the endpoint; Ctrl-C ends it",
        )
    )


def _ipv4(text: str) -> bytes:
    try:
        return IPv4Address(text).packed
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 address") from None


class Answer(NamedTuple):
    """Outcome of an action: the keys of its document, and the lines of its text output."""

    document: dict[str, Any]
    lines: Sequence[str] = ()


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    if args.action == "ping":
        return compare(args, cancel) if args.compare is not None else ping(args, cancel)
    if args.action == "tap":
        return tap(args, cancel)
    actions: dict[str, Callable[[argparse.Namespace, Vntb], Answer]] = {
        "info": _info,
        "link": _link,
        "spad": _spad,
        "ring": _ring,
        "mw": _mw,
        "perf": _perf,
    }
    with open_function(args, cancel) as function, bridge(args, function) as vntb:
        answer = actions[args.action](args, vntb)
        say = printer(args)
        for line in answer.lines:
            say(line)
    if args.json:
        document = {"device": function.address, **answer.document}
        document.setdefault("verdict", Verdict.PASS.value)
        print_json(document)
    # A stopped watch has its results too.
    return 128 + cancel.signal if cancel.signal else 0


# -- the actions ----------------------------------------------------------------------------------


def _info(_args: argparse.Namespace, vntb: Vntb) -> Answer:
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
    kind = "polled" if vntb.polled else "interrupt-driven (MSI or embedded)"
    shown = "an unknown number" if count is None else str(count)
    lines = [
        f"{vntb.function.address}: pci-epf-vntb, link {'up' if info['link_up'] else 'down'}",
        f"control      BAR{vntb.bars.control}, {control.size:#x} bytes",
        f"scratchpads  {vntb.spads} on each side",
        f"doorbells    {shown} in BAR{vntb.bars.doorbell}, {kind}",
    ]
    for slot in slots:
        at = f"BAR{vntb.bars.doorbell}+{slot['offset']:#x}"
        lines.append(
            f"  DB#{slot['db']} slot {slot['db'] + FIRST_SLOT}: {at} data {slot['data']:#x}"
        )
    for index, bar in enumerate(vntb.bars.windows[: vntb.windows]):
        lines.append(f"window {index}     BAR{bar}, {vntb.window(index).size:#x} bytes")
    lines += [f"  {register:13} {value:#010x}" for register, value in registers.items()]
    return Answer(info, lines)


def _link(args: argparse.Namespace, vntb: Vntb) -> Answer:
    if args.what == "watch":
        return _watch(args, vntb)
    if args.what == "up":
        vntb.link_up()
    else:
        vntb.link_down()
    up = vntb.link_is_up
    return Answer({"link_up": up}, [f"link {'up' if up else 'down'}"])


def _watch(args: argparse.Namespace, vntb: Vntb) -> Answer:
    """Poll LINK_STATUS, as the endpoint raises no interrupt when the link changes."""
    say = printer(args)
    vntb.arm()
    start = time.monotonic()
    up: bool | None = None
    rang: dict[int, int] = {}
    with contextlib.suppress(Interrupted):
        while args.seconds is None or time.monotonic() - start < args.seconds:
            before, up = up, vntb.link_is_up
            at = time.monotonic() - start
            if up != before:
                say(f"{at:10.3f} s  link {'up' if up else 'down'}")
            for doorbell, times in vntb.wait_doorbells(vntb.function.deadline(0.05)).items():
                rang[doorbell] = rang.get(doorbell, 0) + times
                name = f"DB#{doorbell}" if doorbell >= 0 else f"vector {doorbell + FIRST_SLOT}"
                say(f"{at:10.3f} s  {name} rang" + (f" {times} times" if times > 1 else ""))
    return Answer({"link_up": up, "rang": {str(one): times for one, times in rang.items()}})


def _spad(args: argparse.Namespace, vntb: Vntb) -> Answer:
    if args.what == "write":
        if args.index is None or args.value is None:
            raise UsageError("spad write needs an index and a value")
        vntb.spad_write(args.index, args.value, peer=not args.own)
        return Answer({"written": {str(args.index): args.value}})
    indexes = range(vntb.spads) if args.index is None else [args.index]
    values = {index: vntb.spad_read(index, peer=args.peer) for index in indexes}
    return Answer(
        {"scratchpads": {str(index): value for index, value in values.items()}},
        [f"{index:4} {value:#010x}" for index, value in values.items()],
    )


def _ring(args: argparse.Namespace, vntb: Vntb) -> Answer:
    doorbell = vntb.doorbell(args.db)
    for rung in range(args.count):
        vntb.function.pause(args.interval if rung else 0.0)
        vntb.ring(doorbell)
    line = f"DB#{doorbell.number}: wrote {doorbell.data:#010x} to"
    line += f" BAR{doorbell.bar}+{doorbell.offset:#x}"
    line += f", {args.count} times" if args.count != 1 else ""
    unverified = Verdict.UNVERIFIED.value
    document = {"doorbell": dict(vars(doorbell)), "rings": args.count, "verdict": unverified}
    return Answer(document, [line])


def _mw(args: argparse.Namespace, vntb: Vntb) -> Answer:
    window = vntb.window(args.mw)
    if args.what == "test":
        document = {"window": args.mw, "pointed": test_pointing(vntb, args.mw)}
        pointed = f"pointed at {document['pointed']:#x} bytes here, and taken back"
        printer(args)(f"window {args.mw}: {pointed}")  # before the part that may fail
        touched = "the endpoint's memory was not touched: that needs --translated"
        if args.translated:
            document["tested"] = test_memory(vntb, args.mw)
            touched = f"window {args.mw}: {document['tested']:#x} bytes of the endpoint's hold"
        return Answer(document, [touched])
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
        return Answer({"window": args.mw, "offset": args.offset, "written": args.value})
    words = [window.read32(args.offset + 4 * index) for index in range(args.count)]
    return Answer(
        {"window": args.mw, "offset": args.offset, "words": words},
        [f"{args.offset + 4 * index:#010x} {word:#010x}" for index, word in enumerate(words)],
    )


def _perf(args: argparse.Namespace, vntb: Vntb) -> Answer:
    window = vntb.window(args.mw)
    say = printer(args)
    rates: list[dict[str, Any]] = []

    def done(rate: perf.Rate) -> None:
        if not rates:
            say(f"window {args.mw}: {window.name}, {window.size:#x} bytes, by {args.chunk:#x}")
        width = "" if rate.width is None else f"{rate.width} bits"
        say(f"{rate.mapping:8}  {width:7}  {rate.direction:5}  {rate.megabytes:10.2f} MB/s")
        rates.append({**rate._asdict(), "megabytes_per_second": rate.megabytes})

    perf.measure(
        vntb,
        args.mw,
        done,
        chunk=args.chunk,
        seconds=args.seconds,
        translated=args.translated,
    )
    return Answer({"window": args.mw, "chunk": args.chunk, "rates": rates})
