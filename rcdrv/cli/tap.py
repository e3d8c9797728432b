"""`rcdrv ntb tap`: a network interface of this host over ntb_transport."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from ipaddress import IPv4Interface
from typing import Any

from rcdrv.cli import exit_status, print_error
from rcdrv.cli.common import positive, print_json, say_nothing
from rcdrv.cli.options import spell
from rcdrv.cli.reconnect import add_reconnect, persist
from rcdrv.cli.vntb import bridge
from rcdrv.epf_vntb.netdev import NetInterface
from rcdrv.epf_vntb.pump import Counts, Statistics
from rcdrv.epf_vntb.transport import MAX_PAIRS, MTU
from rcdrv.errors import Interrupted, RcdrvError
from rcdrv.function import Function
from rcdrv.report.terminal import rewrite
from rcdrv.tap import Tap
from rcdrv.verdict import verdict_document
from rcdrv.wait import Cancel

_REFRESH = 0.5
"""Seconds between live lines, over which their rates are averaged."""

MTU_HELP = f"ntb_transport's parameter transport_mtu on the endpoint (default {MTU})"


def add_tap(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--name",
        default="ntb0",
        help="the interface (default ntb0); it is made, as root, unless it exists",
    )
    add(
        "--address",
        type=_address,
        metavar="A/N",
        help="its IPv4 address, such as 10.0.0.1/24 (default: none, or the one that it has)",
    )
    add(
        "--mtu",
        type=positive,
        metavar="BYTES",
        help="its MTU (default: the most that the window carries, or the one that it has)",
    )
    add("--transport-mtu", type=positive, default=MTU, metavar="BYTES", help=MTU_HELP)
    add(
        "--queues",
        type=_queues,
        default=1,
        metavar="N",
        help="queues of the interface, each with a queue pair of the endpoint's (default 1)",
    )
    add_reconnect(parser)


def _queues(text: str) -> int:
    count = positive(text)
    if count > MAX_PAIRS:
        raise argparse.ArgumentTypeError(f"ntb_netdev has {MAX_PAIRS} queues at most, not {count}")
    return count


def _address(text: str) -> IPv4Interface:
    try:
        return IPv4Interface(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an IPv4 address with its prefix, such as 10.0.0.1/24;"
            " ip addr add takes any other"
        ) from None


def tap(args: argparse.Namespace, cancel: Cancel) -> int:
    """Carry frames until stopped, and show statistics."""
    statistics = Statistics(args.queues)
    finding: RcdrvError | None = None
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(_Display.shown(args, statistics))
        interface: list[Tap] = []

        def use(function: Function) -> None:
            args.device = function.address
            # After the fork of open_function(); the interface stays while the endpoint reboots.
            if not interface:
                interface.append(stack.enter_context(Tap(args.name, args.queues)))
            with bridge(args, function) as vntb:
                NetInterface(
                    vntb,
                    interface[0],
                    statistics,
                    mtu=args.mtu,
                    address=args.address,
                    transport_mtu=args.transport_mtu,
                    on_event=display.event,
                    on_look=display.look,
                ).run()

        try:
            persist(args, cancel, use)
        except Interrupted:
            pass  # the normal end; the statistics follow
        except RcdrvError as error:
            finding = error
    if args.json:
        print_json(
            {
                "device": args.device,
                "interface": args.name,
                **_document(statistics),
                **verdict_document(finding),
            }
        )
    elif statistics.link_ups:
        print(_text(args.name, statistics), flush=True)
    if finding is None:
        return 128 + cancel.signal
    if not args.json:
        print_error(finding)
    return exit_status(finding, cancel)


def _document(statistics: Statistics) -> dict[str, Any]:
    def one(counts: Counts) -> dict[str, int]:
        return {**asdict(counts), "dropped": counts.dropped}

    document: dict[str, Any] = {
        "counts": one(statistics.total),
        "answer_seconds": statistics.answer,
    }
    if len(statistics.queues) > 1:
        document["queues"] = [one(counts) for counts in statistics.queues]
    return document


def _text(name: str, statistics: Statistics) -> str:
    c = statistics.total
    lines = [
        f"--- {name} statistics ---",
        f"sent {_packets(c.sent_packets, c.sent_bytes)}, with {_number(c.rings, 'doorbell')};"
        f" all slots were full {_times(c.ring_full)}",
        f"received {_packets(c.received_packets, c.received_bytes)}, with"
        f" {_number(c.doorbells, 'interrupt')}; found by a look before one: {c.unheard}",
        f"dropped {c.too_long} too long, {c.refused} not taken by this host, {c.bad_number} out of"
        f" order, {c.bad_length} of a bad length",
        f"link up {_times(c.link_ups)}; bad indexes of the endpoint: {c.bad_index}",
    ]
    if statistics.answer is not None:
        lines.append(
            f"a doorbell was answered in {_milliseconds(statistics.answer)}, the median of the last"
            f" {len(statistics.answers)}"
        )
    if len(statistics.queues) > 1:
        lines += [_queue_line(number, one) for number, one in enumerate(statistics.queues)]
    return "\n".join(lines)


def _queue_line(number: int, counts: Counts) -> str:
    c = counts
    return (
        f"queue {number}: sent {_packets(c.sent_packets, c.sent_bytes)}, received"
        f" {_packets(c.received_packets, c.received_bytes)}; full {_times(c.ring_full)}, dropped"
        f" {c.dropped}, up {_times(c.link_ups)}"
    )


def _packets(packets: int, octets: int) -> str:
    return f"{_number(packets, 'packet')}, {_number(octets, 'byte')}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


class _Display:
    """Lines of events, statistics on SIGUSR1, and on a terminal a live line below them."""

    def __init__(self, args: argparse.Namespace, statistics: Statistics) -> None:
        self._name, self._statistics = args.name, statistics
        self.event = say_nothing if args.json else self._line
        self._live = not args.json and sys.stderr.isatty()
        self._asked = False
        self._since = time.monotonic()
        self._last = Counts()

    @classmethod
    @contextlib.contextmanager
    def shown(cls, args: argparse.Namespace, statistics: Statistics) -> Iterator[_Display]:
        display = cls(args, statistics)
        before = signal.signal(signal.SIGUSR1, display._ask)
        try:
            yield display
        finally:
            signal.signal(signal.SIGUSR1, before)
            display._clear()

    def _ask(self, _signum: int, _frame: object) -> None:
        self._asked = True  # printed later, as this may interrupt the middle of a line

    def _line(self, line: str) -> None:
        self._clear()
        print(spell(line), flush=True)

    def look(self) -> None:
        """Print the lines that are due."""
        if self._asked:
            self._asked = False
            self._clear()
            print(_text(self._name, self._statistics), file=sys.stderr, flush=True)
        now = time.monotonic()
        seconds = now - self._since
        if not self._live or seconds < _REFRESH:
            return
        last, counts = self._last, self._statistics.total
        sent = (counts.sent_bytes - last.sent_bytes) / seconds
        received = (counts.received_bytes - last.received_bytes) / seconds
        line = f"sent {counts.sent_packets}, {sent / 1e6:.1f} MB/s;"
        line += f" received {counts.received_packets}, {received / 1e6:.1f} MB/s;"
        line += f" dropped {counts.dropped}; doorbells {counts.rings} out, {counts.doorbells} in"
        if self._statistics.answer is not None:
            line += f"; answered in {_milliseconds(self._statistics.answer)}"
        self._since, self._last = now, counts
        rewrite(sys.stderr, line)

    def _clear(self) -> None:
        if self._live:
            rewrite(sys.stderr)
