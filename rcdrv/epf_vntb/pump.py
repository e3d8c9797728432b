"""Moves frames between the rings of a queue pair and an interface, and counts them.

:class:`Pump` validates everything that the endpoint writes, and counts and drops an invalid frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

from rcdrv.epf_vntb.rings import LINK_DOWN, Rings
from rcdrv.tap import ETHERNET, LARGEST_MTU

_FULL, _FULL_LONG = 0.0002, 0.002
"""Seconds between checks of a full ring, at first and finally. The endpoint does not ring after
reading. (ntb_netdev.c checks after tx_time, 1 us: a timer of one jiffy, 1 to 2 ms at 1000 Hz.)"""


class FrameDevice(Protocol):
    """The interface's side of a :class:`Pump`: a :class:`rcdrv.tap.TapQueue`."""

    def read_into(self, buffer: memoryview) -> int: ...
    def write(self, frame: memoryview) -> bool: ...


@dataclass
class Counts:
    """Counters of frames and doorbells of a queue. "Sent" means to the endpoint."""

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


class Statistics:
    """Counters of an interface: of each queue, and of all."""

    def __init__(self, queues: int = 1) -> None:
        self.queues = [Counts() for _ in range(queues)]
        self.link_ups = 0
        """Times that the interface came up, with its first queue pair."""
        self.answers: deque[float] = deque(maxlen=1000)
        """The last times in seconds from a frame into an idle ring, which is rung for, to the
        endpoint's next interrupt after it has read the frame."""

    @property
    def answer(self) -> float | None:
        """The median of :attr:`answers`; None if there is none."""
        return sorted(self.answers)[len(self.answers) // 2] if self.answers else None

    @property
    def total(self) -> Counts:
        """The sum over the queues, with :attr:`link_ups` of the interface."""
        each = [asdict(counts) for counts in self.queues]
        total = {name: sum(one[name] for one in each) for name in each[0]}
        return Counts(**{**total, "link_ups": self.link_ups})


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
