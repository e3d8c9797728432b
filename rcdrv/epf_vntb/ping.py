"""Round trips over the bridge, and what many of them come to.

Two ways: by doorbell and scratchpad, which the endpoint's ``ntb_pingpong`` answers, and (in
:mod:`rcdrv.epf_vntb.transport`) by packets, which its network stack answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rcdrv.epf_vntb.driver import Doorbell, Vntb
from rcdrv.errors import Interrupted, RcdrvError
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import Deadline

_WORD = 0xFFFF_FFFF


@dataclass(frozen=True)
class RoundTrip:
    """One ping that was answered."""

    sequence: int
    nanoseconds: int
    size: int
    """Bytes that came back."""
    reported: int = 1
    """How many doorbells the endpoint saw for the one that was rung."""


@dataclass(frozen=True)
class Spread:
    """A distribution of round-trip times, in milliseconds."""

    minimum: float
    average: float
    maximum: float
    mdev: float
    """The standard deviation, under the name that ping gives it."""
    p50: float
    p90: float
    p99: float
    p999: float

    @classmethod
    def of(cls, trips: Sequence[RoundTrip]) -> Spread:
        """:param trips: at least one"""
        times = sorted(trip.nanoseconds / 1e6 for trip in trips)
        average = sum(times) / len(times)
        variance = sum((value - average) ** 2 for value in times) / len(times)

        def percentile(share: float) -> float:
            """The smallest value that at least this share does not exceed."""
            return times[max(0, math.ceil(share * len(times)) - 1)]

        return cls(
            times[0],
            average,
            times[-1],
            math.sqrt(variance),
            *(percentile(share) for share in (0.5, 0.9, 0.99, 0.999)),
        )


class Pinger(Protocol):
    """One way to make round trips."""

    def open(self) -> None:
        """Bring up what is needed."""

    def ping(self, sequence: int) -> RoundTrip:
        """One round trip. :raises NotPassed: what came instead"""

    def close(self) -> None:
        """Take down what :meth:`open` brought up, as far as the endpoint answers."""

    @property
    def title(self) -> str:
        """What is pinged, as ping's first line has it."""

    @property
    def source(self) -> str:
        """Where answers come from."""


class DoorbellPinger:
    """A count in scratchpad 0, a ring, and the endpoint's ring and count in return.

    The other side of ``drivers/ntb/test/ntb_pingpong.c``: its pp_pong() counts what rings, and
    pp_ping() writes that count before it rings.
    """

    def __init__(self, vntb: Vntb, *, doorbell: int = 0) -> None:
        self._vntb = vntb
        self._number = doorbell
        self._doorbell: Doorbell | None = None
        self._took_up = False

    @property
    def title(self) -> str:
        return f"{self.source} by doorbell {self._number} and scratchpad 0"

    @property
    def source(self) -> str:
        return self._vntb.function.address

    def open(self) -> None:
        vntb = self._vntb
        self._doorbell = vntb.doorbell(self._number)
        vntb.arm()
        self._took_up = not vntb.link_is_up
        if self._took_up:
            vntb.link_up()

    def ping(self, sequence: int) -> RoundTrip:
        vntb = self._vntb
        assert self._doorbell is not None, "open() comes first"
        vntb.drop_doorbells()
        before = vntb.spad_read(0)
        vntb.spad_write(0, sequence & _WORD, peer=True)
        deadline = Deadline(vntb.timeout)
        start = time.perf_counter_ns()
        vntb.ring(self._doorbell)
        rang = False
        while not deadline.expired:
            fired = vntb.wait_doorbells(deadline)
            now = time.perf_counter_ns()
            reported = (vntb.spad_read(0) - before) & _WORD
            rang = rang or 0 in fired
            # A ring with the old count is one of the endpoint's own, from when the link came up.
            if reported and rang:
                return RoundTrip(sequence, now - start, 4, reported)
        raise self._lost(before, rang)

    def _lost(self, before: int, rang: bool) -> NotPassed:
        vntb = self._vntb
        vntb.check_link()
        if vntb.spad_read(0) != before:
            return NotPassed(
                Reason.IRQ_LOST,
                "the endpoint wrote its answer to scratchpad 0, but MSI vector 2 did not fire",
                hint="it raises MSI only; does the endpoint's dmesg say that raising failed?",
            )
        what = "rings, but its count does not change" if rang else "does not answer"
        return NotPassed(
            Reason.SILENT,
            f"the endpoint {what} within {vntb.timeout:g} s",
            hint="on the endpoint: is ntb_pingpong loaded, and its delay_ms below --timeout?",
        )

    def close(self) -> None:
        vntb = self._vntb
        with vntb.function.cancel.deferred():
            if self._took_up and vntb.link_is_up:
                vntb.link_down()
            vntb.close()


@dataclass
class PingReport:
    """What a run of pings came to; it fills up as it goes."""

    transmitted: int = 0
    trips: list[RoundTrip] = field(default_factory=list)
    misses: list[NotPassed] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def spread(self) -> Spread | None:
        return Spread.of(self.trips) if self.trips else None


_GO_ON = (Reason.SILENT, Reason.IRQ_LOST)
"""What one ping may come to without an end to all of them."""


def run_pings(
    pinger: Pinger,
    vntb: Vntb,
    report: PingReport,
    *,
    count: int,
    interval: float,
    on_start: Callable[[], None] = lambda: None,
    on_trip: Callable[[RoundTrip], None] = lambda _trip: None,
    on_miss: Callable[[int, NotPassed], None] = lambda _sequence, _miss: None,
) -> None:
    """``count`` pings (0: until stopped), each ``interval`` after the one before was *sent*.

    :raises NotPassed: what ends the run: the link is lost, packets are
    :raises DeviceLost: the device is gone
    :raises Interrupted: the user asked to stop
    """
    function = vntb.function
    failed = True
    started = time.monotonic()
    try:
        pinger.open()
        on_start()
        started = due = time.monotonic()
        while count == 0 or report.transmitted < count:
            function.cancel.check()
            function.pause(max(0.0, due - time.monotonic()))
            due = max(due, time.monotonic()) + interval
            report.transmitted += 1
            try:
                trip = pinger.ping(report.transmitted)
            except NotPassed as miss:
                report.misses.append(miss)
                on_miss(report.transmitted, miss)
                if miss.reason not in _GO_ON:
                    raise
            except Interrupted:
                report.transmitted -= 1  # as good as not sent: nobody waited for its answer
                raise
            else:
                report.trips.append(trip)
                on_trip(trip)
        failed = False
    finally:
        report.seconds = time.monotonic() - started
        try:
            pinger.close()
        except RcdrvError:
            # What went wrong first is what the user has to read.
            if not failed:
                raise
