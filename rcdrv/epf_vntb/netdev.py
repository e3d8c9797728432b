"""Network interface on queue pairs, the counterpart of ``drivers/net/ntb_netdev.c``.

:class:`Queue` is a queue of the interface with its queue pair. :class:`NetInterface` brings the
queue pairs up, waits, and gives each queue its turn to move frames (:mod:`rcdrv.epf_vntb.pump`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Interface
from typing import NoReturn

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.pump import Counts, Pump, Statistics, next_check
from rcdrv.epf_vntb.rings import HEADER
from rcdrv.epf_vntb.transport import MTU, QueuePair, Transport
from rcdrv.errors import UsageError
from rcdrv.tap import ETHERNET, LARGEST_MTU, LEAST_MTU, Tap, TapQueue
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import await_readable

_STANDSTILL = 2.0
"""Seconds with a full ring before the user is told; watchdog_timeo of a netdev is 5 s."""
_LOOK = 0.1
"""Seconds between reads of LINK_STATUS; its changes raise no interrupt."""
_JOIN = 0.01
"""Seconds between checks for the endpoint's queue pairs while all are down
(NTB_LINK_DOWN_TIMEOUT)."""
_AGAIN = 1.0
"""Seconds before the hand-shake is retried."""
_LINES, _LINE_EVERY = 20, 5.0
"""Lines that are told at once, and seconds for each one more."""


class Lines:
    """Lines for the user. Of many in a short time some are left out, but never the last one.

    An endpoint may take its queue pairs down ten times a second, without end.

    :param tell: called with a line
    :param now: the clock, in seconds
    """

    def __init__(self, tell: Callable[[str], None], now: Callable[[], float]) -> None:
        self._tell, self._now = tell, now
        self._last = ""
        self._waiting: str | None = None
        self._left_out = 0
        self._allowed, self._counted_at = float(_LINES), 0.0

    def say(self, line: str) -> None:
        """Tell a line, unless it repeats the one before."""
        if line == self._last:
            return
        self._left_out += self._waiting is not None
        self._last = self._waiting = line
        self.tell_due()

    def tell_due(self, *, at_end: bool = False) -> None:
        """Tell the line that waits, if it is due.

        :param at_end: it is due in any case, as there will be no later call
        """
        if self._waiting is None:
            return
        now = self._now()
        earned = (now - self._counted_at) / _LINE_EVERY
        self._allowed, self._counted_at = min(_LINES, self._allowed + earned), now
        if self._allowed < 1 and not at_end:
            return
        line, more = self._waiting, self._left_out
        self._waiting, self._left_out = None, 0
        self._allowed -= 1
        self._tell(f"{line} (lines left out before this one: {more})" if more else line)


class Queue:
    """A queue of the interface with its queue pair (struct ntb_netdev_queue).

    :param on_answer: called with the seconds from a doorbell to the endpoint's answer
    :param now: the clock, in seconds
    """

    def __init__(
        self,
        pair: QueuePair,
        device: TapQueue,
        counts: Counts,
        on_answer: Callable[[float], None],
        now: Callable[[], float],
    ) -> None:
        self.pair, self.device, self.counts = pair, device, counts
        self._on_answer, self._now = on_answer, now
        self._rung: tuple[int, float] | None = None
        """What the endpoint had read when its idle ring was rung, and the time of that."""
        self._pump = Pump(pair.rings, device, pair.ring, counts)
        self.full = False
        """Frames wait for a free slot; meanwhile the host's frames wait in the interface."""
        self.patience = 0.0
        """Seconds until the next check of a full ring; 0 if it has free slots."""
        self._moved, self._moved_at = 0, now()
        self._stands = False

    @property
    def link_down(self) -> bool:
        """The endpoint took the queue pair down."""
        return self._pump.link_down

    def start(self) -> None:
        """Take part in the host's traffic, now that the queue pair is up."""
        self.counts.link_ups += 1
        self.full = self._stands = self._pump.link_down = False
        self.patience = 0.0
        self._rung = None
        self._moved_at = self._now()
        self.device.attach()

    def heard(self) -> None:
        """Deliver frames from the endpoint, which has rung."""
        rung, self._rung = self._rung, None
        if rung is not None and self.pair.rings.reader != rung[0]:
            self._on_answer(self._now() - rung[1])
        self._pump.receive()

    def turn(self, readable: bool) -> int:
        """Send and receive what there is, at most a full ring each way.

        :param readable: the host has frames to send
        :returns: the number of slots freed
        """
        pump, counts = self._pump, self.counts
        if (self.full or readable) and not pump.link_down:
            before, now = counts.sent_packets, self._now()
            rings = self.pair.rings
            reader = rings.reader
            idle = rings.free_behind(reader) == rings.tx.entries - 1
            self.full = pump.send()
            if idle and counts.sent_packets != before:
                self._rung = reader, now
            counts.ring_full += self.full and not self.patience
            moving = counts.sent_packets != before
            self.patience = next_check(self.patience, moving=moving) if self.full else 0.0
        return pump.receive()

    def stands_still(self) -> bool | None:
        """Return whether the endpoint takes no frames; None if that is as at the last call."""
        now = self._now()
        if not self.full or self._moved != self.counts.sent_packets:
            self._moved, self._moved_at = self.counts.sent_packets, now
        before, self._stands = self._stands, now - self._moved_at > _STANDSTILL
        return self._stands if self._stands != before else None


class NetInterface:
    """Interface that is up while a queue pair of the endpoint is.

    :param tap: the interface; the caller closes it. Each of its queues gets a queue pair
    :param statistics: counters, for as many queues
    :param mtu: MTU of the interface. None: the most that the windows carry; an existing interface
        keeps its own
    :param address: address of the interface; None: none, or the existing one
    :param transport_mtu: the endpoint's transport_mtu
    :param on_event: called with a line when the link goes up or down, as :class:`Lines` allows
    :param on_look: called ten times a second
    """

    def __init__(
        self,
        vntb: Vntb,
        tap: Tap,
        statistics: Statistics,
        *,
        mtu: int | None = None,
        address: IPv4Interface | None = None,
        transport_mtu: int = MTU,
        on_event: Callable[[str], None],
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        if mtu is not None and mtu < LEAST_MTU:
            raise UsageError(
                f"an interface has an MTU of {LEAST_MTU} at least, not {mtu}",
                hint="Linux gives no interface less (ETH_MIN_MTU)",
            )
        least = LEAST_MTU + ETHERNET + HEADER.size
        if transport_mtu < least:
            raise UsageError(
                f"a slot for an interface's frame has {least} bytes at least, not {transport_mtu}",
                hint="`transport_mtu` is what the endpoint's module ntb_transport was loaded with",
            )
        self._vntb, self._tap, self.statistics = vntb, tap, statistics
        self._mtu, self._address, self._transport_mtu = mtu, address, transport_mtu
        self._on_look = on_look
        self._lines = Lines(on_event, lambda: vntb.function.clock.now())

    def run(self) -> None:
        """Carry frames until an exception ends it; a lost link is awaited again.

        :raises NotPassed: the endpoint does not answer, and the link has never been up
        :raises UsageError: the endpoint has fewer queue pairs than the interface queues
        :raises HostError: the interface was deleted
        :raises DeviceLost: the device is gone
        :raises Interrupted: the user asked to stop
        """
        try:
            self._run()
        finally:
            self._lines.tell_due(at_end=True)

    def _run(self) -> NoReturn:
        while True:
            transport = Transport(self._vntb, mtu=self._transport_mtu, queues=len(self._tap.queues))
            try:
                self._serve(transport)
            except NotPassed as error:
                link = error.reason in (Reason.LINK_DOWN, Reason.LINK_LOST)
                if not link and not self.statistics.link_ups:
                    raise
                cure = f"; {error.hint}" if error.hint and not self.statistics.link_ups else ""
                self._say(f"link down: {error.message}{cure}")
            deadline = self._vntb.function.deadline(_AGAIN)
            while not deadline.expired:
                self._vntb.function.pause(min(_LOOK, deadline.remaining))
                self._look()

    def _serve(self, transport: Transport) -> NoReturn:
        try:
            transport.prepare()
            self._set_up(min(pair.largest for pair in transport.pairs))
            self._carry(transport)
        finally:
            self._tap.carrier(False)
            for device in self._tap.queues:
                device.detach()
            try:
                transport.close()
            except NotPassed as error:  # the first failure is the one to report
                self._say(f"the endpoint was not told of the end: {error.message}")

    def _say(self, what: str) -> None:
        self._lines.say(f"{self._tap.name}: {what}")

    def _look(self) -> None:
        self._lines.tell_due()
        self._on_look()
        self._tap.check()  # no queue is read while all rings are full, or the link is down

    def _set_up(self, largest: int) -> None:
        """Configure the interface, now that the windows' capacity is known.

        :param largest: size of the largest packet that all queue pairs take
        """
        tap = self._tap
        most = min(largest - ETHERNET, LARGEST_MTU)
        if most < LEAST_MTU:
            raise NotPassed(
                Reason.LINK_DOWN,
                f"slots for {largest} bytes are too small for an interface: the endpoint's"
                " mw1 or transport_mtu is",
            )
        mtu = self._mtu
        if mtu is None:
            mtu = tap.mtu if tap.existed else most
        if mtu > most:
            raise UsageError(
                f"the window carries an MTU of {most}, not {mtu}",
                hint=f"give the interface {most} at most, or make mw1 larger at the endpoint",
            )
        tap.set_mtu(mtu)
        if self._address is not None:
            tap.set_address(self._address)
        for device in tap.queues:
            device.detach()
        tap.up()

    def _carry(self, transport: Transport) -> NoReturn:
        """Move frames by the queue pairs that are up, and bring up those that the endpoint does.

        :raises NotPassed: ``link-lost``
        """
        vntb = self._vntb
        now = vntb.function.clock.now
        parts = zip(transport.pairs, self._tap.queues, self.statistics.queues, strict=True)
        queues = [Queue(*part, self.statistics.answers.append, now) for part in parts]
        up: list[Queue] = []
        look_at = join_at = now()
        missing_at: float | None = now() + vntb.timeout
        bells = vntb.function.fileno()
        slept_out = False
        ready: list[int] = []
        while True:
            if bells in ready:
                # The frames before their doorbell is counted, which takes as long, and again
                # after it, as the doorbell may have been of later ones.
                for queue in up:
                    queue.heard()
                self._count_doorbells()
            more = False
            for queue in up:
                taken = queue.turn(queue.device.fd in ready)
                more = more or taken == queue.pair.rings.rx.entries
                if slept_out:
                    queue.counts.unheard += taken
            if any(queue.link_down for queue in up):
                up = self._leave(transport, up)
                # The endpoint takes its queue pairs down one by one; see Transport.leave().
                join_at = now() + _LOOK
                missing_at = join_at + vntb.timeout
            if now() >= look_at:
                vntb.check_link()
                self._look()
                self._tell_standstill(up)
                look_at = now() + _LOOK
            if len(up) < len(queues) and now() >= join_at:
                up = self._join(transport, up, queues)
                join_at = now() + (_LOOK if up else _JOIN)
                if missing_at is not None and now() > missing_at and len(up) < len(queues):
                    missing_at = None
                    self._tell_missing(up, queues)
            full = [queue.patience for queue in up if queue.full]
            # While no slot is free, the host's frames wait in the interface.
            watched = [bells, *(queue.device.fd for queue in up if not queue.full)]
            pause = min(full, default=_LOOK if up else _JOIN)
            ready = await_readable(watched, 0.0 if more else pause)
            slept_out = not ready and not more and not full

    def _count_doorbells(self) -> None:
        """Count the interrupts; those of no queue pair, such as a link event's, as the first's."""
        counts = self.statistics.queues
        fired = self._vntb.wait_doorbells(self._vntb.function.deadline(0.0))
        for doorbell, times in fired.items():
            counts[doorbell if 0 <= doorbell < len(counts) else 0].doorbells += times

    def _join(self, transport: Transport, up: list[Queue], queues: Sequence[Queue]) -> list[Queue]:
        """Start the queues whose pairs came up; return all that are up, by number."""
        new = transport.join()
        if not new:
            return up
        for queue in queues:
            if queue.pair in new:
                queue.start()
        now_up = [queue for queue in queues if queue in up or queue.pair in new]
        if not up:
            tx = now_up[0].pair.rings.tx
            self.statistics.link_ups += 1
            self._tap.carrier(True)
            self._say(f"link up, MTU {self._tap.mtu}, {tx.entries} slots of {tx.frame:#x} bytes")
        self._tell_up(now_up)
        return now_up

    def _leave(self, transport: Transport, up: list[Queue]) -> list[Queue]:
        """Stop the queues whose pairs the endpoint took down; return the others."""
        gone = [queue for queue in up if queue.link_down]
        left = [queue for queue in up if not queue.link_down]
        if not left:
            self._say(f"link down: the endpoint took {_pairs(gone)} down")
            self._tap.carrier(False)
        for queue in gone:
            queue.device.detach()
            transport.leave(queue.pair)
        if left:
            self._tell_up(left)
        return left

    def _tell_up(self, up: Sequence[Queue]) -> None:
        count = len(self._tap.queues)
        if count > 1:
            numbers = ", ".join(str(queue.pair.number) for queue in up)
            self._say(f"queue pairs up: {numbers} ({len(up)} of {count})")

    def _tell_missing(self, up: Sequence[Queue], queues: Sequence[Queue]) -> None:
        down = [queue for queue in queues if queue not in up]
        what = f"{_pairs(down)} {'is' if len(down) == 1 else 'are'} down at the endpoint"
        if up:
            self._say(f"{what}; ethtool -L there gives its interface more queues")
        else:
            self._say(f"link down: {what}; is ntb_netdev up?")

    def _tell_standstill(self, up: Sequence[Queue]) -> None:
        for queue in up:
            stands = queue.stands_still()
            if stands is not None:
                by = f" by {_pairs([queue])}" if len(self._tap.queues) > 1 else ""
                what = "the endpoint takes no frames" if stands else "it takes frames again"
                self._say(what + by)


def _pairs(queues: Sequence[Queue]) -> str:
    numbers = ", ".join(str(queue.pair.number) for queue in queues)
    return f"queue pair{'s' if len(queues) > 1 else ''} {numbers}"
