"""Round trips over the bridge, and their statistics.

The endpoint's ``ntb_pingpong`` answers pings by doorbell and scratchpad; its network stack answers
pings by packet (:mod:`rcdrv.epf_vntb.echo`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rcdrv.epf_vntb.driver import Doorbell, Vntb
from rcdrv.epf_vntb.registers import MAX_SLOTS
from rcdrv.errors import Interrupted, RcdrvError
from rcdrv.results.distribution import PERCENTILES, Distribution
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import Deadline

_WORD = 0xFFFF_FFFF

PINGPONG_DELAY = 1.0
"""Seconds: the default of ntb_pingpong's module parameter ``delay_ms``."""


@dataclass(frozen=True)
class RoundTrip:
    """One answered ping."""

    sequence: int
    nanoseconds: int
    size: int
    """Bytes of the answer."""
    reported: int = 1
    """Number of doorbells that the endpoint saw for the one that was rung."""


@dataclass(frozen=True)
class Spread:
    """Distribution of round-trip times in milliseconds."""

    minimum: float
    average: float
    maximum: float
    mdev: float
    """Standard deviation, as ping names it."""
    p50: float
    p90: float
    p99: float
    p999: float

    @classmethod
    def of(cls, trips: Sequence[RoundTrip]) -> Spread:
        """Return the distribution of one or more round trips."""
        times = sorted(trip.nanoseconds / 1e6 for trip in trips)
        found = Distribution.of([trip.nanoseconds for trip in trips])
        return cls(
            times[0],
            statistics.fmean(times),
            times[-1],
            statistics.pstdev(times),
            *(found.percentile(percent) / 1e6 for percent in PERCENTILES),
        )


class Pinger(Protocol):
    """A kind of round trips."""

    def open(self) -> None:
        """Bring up link, doorbells and queues as needed."""

    def ping(self, sequence: int) -> RoundTrip:
        """Make one round trip.

        :raises NotPassed: no valid answer
        """

    def close(self) -> None:
        """Take down what :meth:`open` brought up, if the endpoint answers."""

    @property
    def title(self) -> str:
        """Target for the first line of output, as in ping's."""

    @property
    def source(self) -> str:
        """Origin of the answers."""


class DoorbellPinger:
    """Ping by a number in scratchpad 0 and a doorbell; the endpoint answers in the same way.

    The counterpart of ``drivers/ntb/test/ntb_pingpong.c``: its pp_pong() counts the doorbells, and
    pp_ping() writes the count before it rings.
    """

    def __init__(self, vntb: Vntb, *, doorbell: int = 0) -> None:
        self._vntb = vntb
        self._number = doorbell
        self._doorbell: Doorbell | None = None
        self._took_up = False
        # The endpoint answers after delay_ms, which it does not announce.
        self._patience = vntb.timeout + PINGPONG_DELAY

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
        if not vntb.link_is_up:
            self._took_up = True  # set first: the endpoint may obey even if the wait ends early
            vntb.link_up()
            # pp_setup() sends a ping, which must not be taken for a reply; its count may date from
            # before ntb_pingpong was reloaded. If it does not come, ntb_pingpong is not loaded.
            deadline = vntb.function.deadline(self._patience)
            while not deadline.expired and 0 not in self._wait(deadline):
                pass

    def _wait(self, deadline: Deadline) -> dict[int, int]:
        """Wait briefly until the endpoint rings. Check the link unless doorbell 0 rang."""
        fired = self._vntb.wait_doorbells(self._vntb.soon(deadline))
        if 0 not in fired:
            self._vntb.check_link()
        return fired

    def ping(self, sequence: int) -> RoundTrip:
        vntb = self._vntb
        assert self._doorbell is not None, "open() comes first"
        now_ns = vntb.function.clock.now_ns
        vntb.drop_doorbells()
        before = vntb.spad_read(0)
        vntb.spad_write(0, sequence & _WORD, peer=True)
        deadline = vntb.function.deadline(self._patience)
        start = now_ns()
        vntb.ring(self._doorbell)
        rang = reloaded = False
        while not deadline.expired:
            rang = 0 in self._wait(deadline) or rang
            now = now_ns()
            reported = (vntb.spad_read(0) - before) & _WORD
            if reported > MAX_SLOTS:  # more than one ring can report: the count restarted
                before, rang, reloaded = vntb.spad_read(0), False, True
            # A ring with the old count is the endpoint's own.
            elif reported and rang:
                return RoundTrip(sequence, now - start, 4, reported)
        raise self._lost(before, rang, reloaded)

    def _lost(self, before: int, rang: bool, reloaded: bool) -> NotPassed:
        vntb = self._vntb
        vntb.check_link()
        if vntb.spad_read(0) != before:
            return NotPassed(
                Reason.IRQ_LOST,
                "the endpoint wrote its answer to scratchpad 0, but MSI vector 2 did not fire",
                hint="it raises MSI only; does the endpoint's dmesg say that raising failed?",
            )
        what = "rings, but its count does not change" if rang else "does not answer"
        hint = (
            "its count restarted meanwhile: was ntb_pingpong reloaded?"
            if reloaded
            else "on the endpoint: is ntb_pingpong loaded? It answers after its module parameter"
            " delay_ms (default 1000), which has to be shorter than this wait"
        )
        return NotPassed(
            Reason.SILENT, f"the endpoint {what} within {self._patience:g} s", hint=hint
        )

    def close(self) -> None:
        vntb = self._vntb
        with vntb.function.cancel.deferred():
            try:
                if self._took_up:
                    vntb.link_down()
            finally:
                vntb.close()


@dataclass
class PingReport:
    """Outcome of a run of pings, updated after every ping."""

    transmitted: int = 0
    trips: list[RoundTrip] = field(default_factory=list)
    misses: list[NotPassed] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def spread(self) -> Spread | None:
        return Spread.of(self.trips) if self.trips else None

    @property
    def delay(self) -> float | None:
        """Delay of all answers in milliseconds, if it looks like ``delay_ms``."""
        if self.spread is None or not self.spread.minimum >= 900:
            return None
        return self.spread.minimum


_GO_ON = (Reason.SILENT, Reason.IRQ_LOST)
"""Reasons of one ping that do not end the run."""


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
    """Send ``count`` pings (0: until stopped), one every ``interval`` seconds.

    :raises NotPassed: a failure that ends the run, such as a lost link
    :raises DeviceLost: the device is gone
    :raises Interrupted: the user asked to stop
    """
    function = vntb.function
    failed = True
    now = function.clock.now
    started = now()
    try:
        pinger.open()
        on_start()
        started = due = now()
        while count == 0 or report.transmitted < count:
            function.cancel.check()
            function.pause(max(0.0, due - now()))
            due = max(due, now()) + interval
            report.transmitted += 1
            try:
                trip = pinger.ping(report.transmitted)
            except NotPassed as miss:
                report.misses.append(miss)
                on_miss(report.transmitted, miss)
                if miss.reason not in _GO_ON:
                    raise
            except Interrupted:
                report.transmitted -= 1  # its answer was not awaited, so it does not count
                raise
            else:
                report.trips.append(trip)
                on_trip(trip)
        failed = False
    finally:
        report.seconds = now() - started
        try:
            pinger.close()
        except RcdrvError:
            # The first failure is the one to report.
            if not failed:
                raise
