"""Network interface on a queue pair, the counterpart of ``drivers/net/ntb_netdev.c``.

:class:`Pump` moves frames between the rings and the interface. It validates everything that the
endpoint writes; an invalid frame is dropped and counted. :class:`NetInterface` brings the queue
pair up, waits, and runs the pump.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import NoReturn, Protocol

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.rings import HEADER, LINK_DOWN, Rings
from rcdrv.epf_vntb.transport import MTU, QueuePair
from rcdrv.errors import UsageError
from rcdrv.tap import ETHERNET, LARGEST_MTU, LEAST_MTU, Tap
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import await_readable

_STANDSTILL = 2.0
"""Seconds with a full ring before the user is told; watchdog_timeo of a netdev is 5 s."""
_LOOK = 0.1
"""Seconds between reads of LINK_STATUS; its changes raise no interrupt."""
_JOIN = 0.01
"""Seconds between checks for the other side's queue pair (NTB_LINK_DOWN_TIMEOUT)."""
_AGAIN = 1.0
"""Seconds before the hand-shake is retried."""
_FULL, _FULL_LONG = 0.0002, 0.002
"""Seconds between checks of a full ring, at first and finally. The endpoint does not ring after
reading. (ntb_netdev.c checks after tx_time, 1 us: a timer of one jiffy, 1 to 2 ms at 1000 Hz.)"""


class FrameDevice(Protocol):
    """The interface's side of a :class:`Pump`: a :class:`rcdrv.tap.Tap`."""

    def read_into(self, buffer: memoryview) -> int: ...
    def write(self, frame: memoryview) -> bool: ...


@dataclass
class Counts:
    """Counters of frames and doorbells. "Sent" means to the endpoint."""

    sent_packets: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    received_bytes: int = 0
    rings: int = 0
    """Doorbells rung, each for one or more frames."""
    doorbells: int = 0
    """Interrupts from the endpoint."""
    unheard: int = 0
    """Frames found before their interrupt, or without one."""
    ring_full: int = 0
    """Times that all slots were full, so that frames had to wait."""
    too_long: int = 0
    """Frames of the host too long for a slot; dropped."""
    refused: int = 0
    """Frames refused by the host, whose interface is down or out of memory; dropped."""
    bad_number: int = 0
    """Frames of the endpoint out of order (rx_err_ver); dropped."""
    bad_length: int = 0
    """Frames of the endpoint with an invalid length (rx_err_oflow); dropped."""
    bad_index: int = 0
    """Invalid ring indexes read from the endpoint."""
    link_ups: int = 0

    @property
    def dropped(self) -> int:
        return self.too_long + self.refused + self.bad_number + self.bad_length


class Pump:
    """Moves the pending frames between rings and interface, without waiting.

    :param ring: flush the posted writes and ring the endpoint's doorbell
    """

    def __init__(
        self, rings: Rings, device: FrameDevice, ring: Callable[[], None], counts: Counts
    ) -> None:
        self._rings, self._device, self._ring = rings, device, ring
        self.counts = counts
        # One byte more, so that a truncated frame is seen to be too long.
        self._buffer = memoryview(bytearray(max(rings.tx.frame, LARGEST_MTU + ETHERNET) + 4))
        self._most_in, self._most_out = rings.rx.largest, rings.tx.largest
        self.link_down = False
        """The endpoint took the queue pair down; its memory must not be accessed."""

    def receive(self) -> int:
        """Deliver frames from the endpoint, at most a full ring (ntb_transport_rxc_db).

        :returns: the number of slots freed
        """
        rings, counts = self._rings, self.counts
        taken = 0
        while taken < rings.rx.entries and not self.link_down:
            arrived = rings.arrived()
            if arrived is None:
                break
            number, length, flags = arrived
            if flags & LINK_DOWN:
                self.link_down = True
                return taken
            if taken:  # of the frame before, now that the link is known to be up
                rings.tell()
            if number != rings.expected:
                # The kernel waits for the right number. But the endpoint does not rewrite the slot
                # before it is freed, so that wait would never end.
                counts.bad_number += 1
            elif not ETHERNET <= length <= self._most_in:
                counts.bad_length += 1
            elif self._device.write(rings.packet(length)):
                counts.received_packets += 1
                counts.received_bytes += length
            else:
                counts.refused += 1
            rings.take(number)
            taken += 1
        if taken:
            rings.tell()
        return taken

    def send(self) -> bool:
        """Send the host's pending frames, and ring for the first if the endpoint has read all
        before it, and once for the others.

        :returns: whether frames are left for lack of a free slot
        """
        rings, counts, largest = self._rings, self.counts, self._most_out
        free = rings.free_behind(rings.reader)
        if free is None:
            counts.bad_index += 1
            free = 0
        idle = free == rings.tx.entries - 1
        filled = unrung = 0
        try:
            for _ in range(free):  # frames that are too long count, too: they may never end
                room = rings.room()
                into = self._buffer if room is None else room
                length = self._device.read_into(into)
                if not length:
                    return False
                if length > largest:
                    counts.too_long += 1
                    continue
                if room is None:
                    # Whole words of 64 bits are one run (Window.write_block).
                    whole = min((length + 7) & ~7, largest)
                    into[length:whole] = bytes(whole - length)
                    rings.put(into[:whole], length)
                else:
                    rings.put(None, length)
                filled += 1
                unrung += 1
                if idle:
                    self._ring()
                    idle, unrung = False, 0
                    counts.rings += 1
                counts.sent_packets += 1
                counts.sent_bytes += length
        finally:
            if unrung:
                self._ring()
                counts.rings += 1
        return filled == free


def next_check(patience: float, *, moving: bool) -> float:
    """Return the seconds until the next check of a full ring.

    :param patience: what it was before; 0 at first
    :param moving: the endpoint has read since; so it will soon have read more
    """
    return _FULL if moving else min(2 * patience or _FULL, _FULL_LONG)


class NetInterface:
    """Interface that is up while the endpoint's queue pair is.

    :param tap: the interface; the caller closes it
    :param mtu: MTU of the interface. None: the most that the window carries; an existing interface
        keeps its own
    :param address: address of the interface; None: none, or the existing one
    :param transport_mtu: the endpoint's transport_mtu
    :param on_event: called with a line when the link goes up or down
    :param on_look: called ten times a second
    """

    def __init__(
        self,
        vntb: Vntb,
        tap: Tap,
        counts: Counts,
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
        self._vntb, self._tap, self.counts = vntb, tap, counts
        self._mtu, self._address, self._transport_mtu = mtu, address, transport_mtu
        self._event, self._on_look = on_event, on_look
        self._said = ""

    def run(self) -> None:
        """Carry frames until an exception ends it; a lost link is awaited again.

        :raises NotPassed: the endpoint does not answer, and the link has never been up
        :raises HostError: the interface was deleted
        :raises DeviceLost: the device is gone
        :raises Interrupted: the user asked to stop
        """
        while True:
            queue = QueuePair(self._vntb, mtu=self._transport_mtu)
            try:
                self._serve(queue)
            except NotPassed as error:
                link = error.reason in (Reason.LINK_DOWN, Reason.LINK_LOST)
                if not link and not self.counts.link_ups:
                    raise
                self._say(f"link down: {error.message}")
            deadline = self._vntb.function.deadline(_AGAIN)
            while not deadline.expired:
                self._vntb.function.pause(min(_LOOK, deadline.remaining))
                self._on_look()

    def _serve(self, queue: QueuePair) -> NoReturn:
        try:
            queue.prepare()
            self._set_up(queue)
            while True:
                self._join(queue)
                self._carry(queue)
                queue.restart()
        finally:
            self._tap.carrier(False)
            try:
                queue.close()
            except NotPassed as error:  # the first failure is the one to report
                self._say(f"the endpoint was not told of the end: {error.message}")

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            self._event(f"{self._tap.name}: {what}")

    def _set_up(self, queue: QueuePair) -> None:
        """Configure the interface, now that the window's capacity is known."""
        tap = self._tap
        most = min(queue.largest - ETHERNET, LARGEST_MTU)
        if most < LEAST_MTU:
            raise NotPassed(
                Reason.LINK_DOWN,
                f"slots for {queue.largest} bytes are too small for an interface: the endpoint's"
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
        tap.up()

    def _join(self, queue: QueuePair) -> None:
        """Wait until the endpoint's queue pair, and so its interface, is up."""
        looks = 0
        while not queue.joined():
            self._vntb.check_link()
            if looks == self._vntb.timeout // _JOIN:
                self._say("link down: queue pair 0 is down at the endpoint; is ntb_netdev up?")
            looks += 1
            self._vntb.function.pause(_JOIN)
            self._on_look()
        tx = queue.rings.tx
        self.counts.link_ups += 1
        self._tap.carrier(True)
        self._say(f"link up, MTU {self._tap.mtu}, {tx.entries} slots of {tx.frame:#x} bytes")

    def _carry(self, queue: QueuePair) -> None:
        """Move frames while the queue pair is up.

        :raises NotPassed: ``link-lost``
        """
        vntb, tap, counts = self._vntb, self._tap, self.counts
        pump = Pump(queue.rings, tap, queue.ring, counts)
        bells = vntb.function.fileno()
        now = vntb.function.clock.now
        look_at = now()
        patience = 0.0
        """Seconds until the next check of a full ring; 0 if it has free slots."""
        full = slept_out = stands = False
        moved, moved_at = 0, now()
        ready: list[int] = []
        while True:
            if bells in ready:
                # The frames before their doorbell is counted, which takes as long, and again
                # after it, as the doorbell may have been of later ones.
                pump.receive()
                counts.doorbells += sum(vntb.wait_doorbells(vntb.function.deadline(0.0)).values())
            if (full or tap.fd in ready) and not pump.link_down:
                before = counts.sent_packets
                full = pump.send()
                counts.ring_full += full and not patience
                moving = counts.sent_packets != before
                patience = next_check(patience, moving=moving) if full else 0.0
            taken = pump.receive()
            if pump.link_down:
                self._say("link down: the endpoint took queue pair 0 down")
                tap.carrier(False)
                return
            if slept_out:
                counts.unheard += taken
            if now() >= look_at:
                vntb.check_link()
                self._on_look()
                look_at = now() + _LOOK
                if not full or moved != counts.sent_packets:
                    moved, moved_at = counts.sent_packets, now()
                if stands != (now() - moved_at > _STANDSTILL):
                    stands = not stands
                    self._say("the endpoint takes no frames" if stands else "it takes frames again")
            more = taken == queue.rings.rx.entries
            # While no slot is free, the host's frames wait in the interface.
            watched = [bells] if full else [bells, tap.fd]
            ready = await_readable(watched, 0.0 if more else patience or _LOOK)
            slept_out = not ready and not more and not full
