"""ntb_transport version 4 (``drivers/ntb/ntb_transport.c``): hand-shake, windows, queue pairs.

The rings of a queue pair are in :mod:`rcdrv.epf_vntb.rings`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from rcdrv.dma import DmaBuffer
from rcdrv.epf_vntb.driver import Doorbell, Vntb
from rcdrv.epf_vntb.registers import FIRST_SLOT, MAX_SLOTS, MAX_WINDOWS
from rcdrv.epf_vntb.rings import LINK_DOWN, Ring, Rings, Share
from rcdrv.errors import UsageError
from rcdrv.mmio import barrier
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import Deadline

VERSION = 4
MTU = 0x10000
"""Module parameter transport_mtu: bytes of a slot, equal on both sides."""

# Scratchpads.
_VERSION, _QP_LINKS, _NUM_QPS, _NUM_MWS, _MW0_SZ_HIGH, _MW0_SZ_LOW = range(6)
_MIN_SPADS = 6

_RETRY = 0.01
"""Seconds between checks of the hand-shake (NTB_LINK_DOWN_TIMEOUT)."""
_LARGEST_WINDOW = 1 << 30

MAX_PAIRS = 64
"""NTB_NETDEV_MAX_QUEUES, and the bits of struct ntb_transport_ctx's qp_bitmap."""


class Transport:
    """Hand-shake, windows and link of ntb_transport (struct ntb_transport_ctx).

    :param mtu: the endpoint's transport_mtu
    :param queues: number of queue pairs to use
    """

    def __init__(self, vntb: Vntb, *, mtu: int = MTU, queues: int = 1) -> None:
        self._vntb = vntb
        self._mtu = mtu
        self._queues = queues
        self.pairs: list[QueuePair] = []
        """The queue pairs in use, by number; :meth:`prepare` makes them."""
        self._buffers: list[DmaBuffer] = []
        self._memories: list[memoryview] = []
        """Memory of each window, which the endpoint writes."""
        self._pointed: list[int] = []
        self._linked = False
        if vntb.spads < _MIN_SPADS or not vntb.windows:
            raise UsageError(
                f"ntb_transport needs {_MIN_SPADS} scratchpads and a window; the endpoint has"
                f" {vntb.spads} and {vntb.windows}"
            )

    # -- the link -----------------------------------------------------------------------------

    def open(self) -> QueuePair:
        """Bring up the link and queue pair 0, and return that.

        :raises NotPassed: ``link-down``: how far it got
        """
        self.prepare()
        pair = self.pairs[0]
        self._await_peer(pair.joined)
        return pair

    def await_translations(self) -> None:
        """Wait until the endpoint's windows lead to memory, and leave the queue pairs down.

        ntb_qp_link_work() says that its side is up after ntb_transport_link_work() has set them. As
        this side does not say so, too, neither side uses the rings. With several queue pairs at
        the endpoint the last one's bit overwrites the others'.

        :raises NotPassed: ``link-down``: how far it got
        """
        self._await_peer(lambda: bool(self._vntb.spad_read(_QP_LINKS)))

    def _await_peer(self, ready: Callable[[], bool]) -> None:
        self._await(
            ready,
            "queue pair 0 does not come up at the endpoint",
            "on the endpoint: is ntb_netdev loaded, and the interface up (ip link set up)?",
        )

    def prepare(self) -> None:
        """Bring the link up and exchange the windows (ntb_transport_link_work).

        :raises NotPassed: ``link-down``: how far it got; ``no-vectors``
        :raises UsageError: the endpoint has fewer queue pairs
        """
        vntb = self._vntb
        first = vntb.doorbell(0)
        vntb.arm()
        if vntb.link_is_up:
            # Left by a run that crashed; the scratchpads may hold its values.
            vntb.link_down()
        for spad in range(min(vntb.spads, _MW0_SZ_HIGH + 2 * MAX_WINDOWS)):
            vntb.spad_write(spad, 0)
            vntb.spad_write(spad, 0, peer=True)
        self._linked = True
        vntb.link_up()
        windows, announced = self._hear()
        doorbells = [first, *self._more_doorbells(len(windows), announced)]
        self._tell(windows, announced)
        self._set_up(windows, announced, doorbells)

    def join(self) -> list[QueuePair]:
        """Bring up the queue pairs that the endpoint has brought up; return those that are new.

        Each pair's ntb_qp_link_work() writes what it has read, plus its own bit, every 10 ms until
        it reads that bit. So this side only answers: what it announced for a pair that the endpoint
        does not use would come back as if it did. And pairs overwrite each other's bits, but a bit
        stands for all below it, as ntb_transport_create_queue() gives the lowest that is free.

        A pair that went down and up before :meth:`leave` is up at the endpoint by what was
        announced before, and does not write its bit again. Its frames tell of it.
        """
        used = self._vntb.spad_read(_QP_LINKS).bit_length()
        new = [
            pair
            for pair in self.pairs
            if not pair.up and (pair.number < used or pair.rings.arrived() is not None)
        ]
        for pair in new:
            pair.up = True
        if new:
            self._announce()
        for pair in new:
            pair.widen()
        return new

    def leave(self, pair: QueuePair) -> None:
        """Reset a queue pair that the endpoint has taken down (ntb_qp_link_cleanup).

        Nothing is sent by it until it has joined again.
        """
        pair.restart()
        self._announce()
        links = self._vntb.spad_read(_QP_LINKS)
        if not links & pair.bit:
            # ntb_transport_link_down() wrote what it read here without this pair's bit: so with
            # those of pairs that it had taken down before.
            self._vntb.spad_write(_QP_LINKS, self._up)

    @property
    def _up(self) -> int:
        return sum(pair.bit for pair in self.pairs if pair.up)

    def _announce(self) -> None:
        self._vntb.spad_write(_QP_LINKS, self._up, peer=True)

    def _await(self, condition: Callable[[], bool], problem: str, hint: str) -> None:
        deadline = self._vntb.function.deadline(self._vntb.timeout)
        while not condition():
            self._vntb.check_link()
            if deadline.expired:
                raise NotPassed(
                    Reason.LINK_DOWN, f"{problem} within {self._vntb.timeout:g} s", hint=hint
                )
            self._vntb.function.pause(_RETRY / 2)

    def _hear(self) -> tuple[list[int], int]:
        """Return the endpoint's window sizes and number of queue pairs, validated."""
        vntb = self._vntb
        self._await(
            lambda: vntb.spad_read(_VERSION) != 0,
            "the endpoint's ntb_transport does not show itself in the scratchpads",
            "on the endpoint: is ntb_transport loaded (and not ntb_pingpong or ntb_tool)?"
            " A software endpoint needs vntb.peer=netdev or vntb.peer=tap",
        )
        version = vntb.spad_read(_VERSION)
        if version != VERSION:
            raise NotPassed(
                Reason.LINK_DOWN,
                f"the endpoint's ntb_transport has version {version:#x}, not {VERSION}",
                hint=f"only version {VERSION} is known here",
            )
        pairs, count = vntb.spad_read(_NUM_QPS), vntb.spad_read(_NUM_MWS)
        # ntb_transport_probe() takes no more windows than there are scratchpads for their sizes.
        most = min(vntb.windows, (vntb.spads - _MW0_SZ_HIGH) // 2)
        if not 0 < count <= most or not 0 < pairs <= MAX_PAIRS:
            raise NotPassed(
                Reason.LINK_DOWN,
                f"the endpoint announces {count} windows and {pairs} queue pairs",
                hint=f"windows and scratchpads are for {most}; a queue pair needs a doorbell beside"
                " one more that is kept free, so db_count has to be 4 at least",
            )
        sizes = []
        for index in range(count):
            high, low = (vntb.spad_read(spad + 2 * index) for spad in (_MW0_SZ_HIGH, _MW0_SZ_LOW))
            size = high << 32 | low
            if not 0 < size <= _LARGEST_WINDOW:
                raise NotPassed(
                    Reason.LINK_DOWN,
                    f"the endpoint announces {size:#x} bytes for window {index}",
                    hint="what do mw1 to mw4 say in its configfs?",
                )
            sizes.append(size)
        return sizes, pairs

    def _more_doorbells(self, windows: int, announced: int) -> list[Doorbell]:
        """Return the doorbells of the queue pairs beyond the first.

        :raises UsageError: the endpoint has fewer queue pairs
        :raises NotPassed: ``no-vectors``
        """
        wanted, vntb = self._queues, self._vntb
        if wanted > announced:
            raise self._too_many(windows, announced)
        if wanted > 1 and vntb.vectors < FIRST_SLOT + wanted:
            raise NotPassed(
                Reason.NO_VECTORS,
                f"{wanted} queue pairs need {FIRST_SLOT + wanted} MSI vectors, there are"
                f" {vntb.vectors}",
                hint=f"`queues` {vntb.vectors - FIRST_SLOT} at most: pci-epf-vntb announces 16, and"
                " the host may give less",
            )
        return [vntb.doorbell(number) for number in range(1, wanted)]

    def _too_many(self, windows: int, announced: int) -> UsageError:
        """Name the limit of ntb_transport_probe(): ilog2 of the doorbells, and max_num_clients if
        that is less, or else the number of windows."""
        wanted, doorbells = self._queues, self._vntb.doorbells
        limits = []
        if doorbells is not None and announced == doorbells - 1:
            limits.append(f"db_count {doorbells + FIRST_SLOT}")
        if announced == windows:
            limits.append(f"num_mws {windows}")
        limit = " and ".join(limits) or "ntb_transport's parameter max_num_clients"
        least = wanted + FIRST_SLOT + 1
        several = "s" if announced > 1 else ""
        problem = f"`queues` {wanted}: the endpoint has {announced} queue pair{several}"
        if least + 1 > MAX_SLOTS:  # MAX_DB_COUNT
            most = MAX_SLOTS - FIRST_SLOT - 2
            return UsageError(
                f"{problem}, by its {limit}",
                hint=f"`queues` {most} at most: pci-epf-vntb has a db_count of {MAX_SLOTS} at most",
            )
        cures = [f"db_count {least + 1} or more and ntb_transport's max_num_clients={wanted}"]
        if wanted <= MAX_WINDOWS:
            cures.insert(0, f"db_count {least} or more and num_mws {wanted}")
        return UsageError(
            f"{problem}, by its {limit}",
            hint=f"on the endpoint: {'; or '.join(cures)}",
        )

    def _tell(self, windows: list[int], pairs: int) -> None:
        """Write the hand-shake's scratchpads: the same counts, our sizes, and last the version."""
        vntb = self._vntb
        for index in range(len(windows)):
            size = vntb.window(index).size
            vntb.spad_write(_MW0_SZ_HIGH + 2 * index, size >> 32, peer=True)
            vntb.spad_write(_MW0_SZ_LOW + 2 * index, size & 0xFFFF_FFFF, peer=True)
        vntb.spad_write(_NUM_MWS, len(windows), peer=True)
        vntb.spad_write(_NUM_QPS, pairs, peer=True)
        barrier()
        vntb.spad_write(_VERSION, VERSION, peer=True)

    def _set_up(self, windows: list[int], pairs: int, doorbells: list[Doorbell]) -> None:
        vntb = self._vntb
        for index, size in enumerate(windows):
            buffer = vntb.window_buffer(size)
            self._buffers.append(buffer)
            # Before the command, which the endpoint may obey even if the wait is interrupted.
            self._pointed.append(index)
            vntb.point_window(index, buffer)
        self._memories = [buffer.memory.cast("B") for buffer in self._buffers]
        for number, doorbell in enumerate(doorbells):
            share = Share.of(number, pairs, len(windows))
            out = vntb.window(share.window)
            try:
                tx, rx = (
                    Ring.of(size, share.count, self._mtu, share.index)
                    for size in (out.size, windows[share.window])
                )
            except ValueError as error:
                raise self._no_rings(share, error) from None
            rings = Rings(out, tx, self._memories[share.window], rx)
            self.pairs.append(QueuePair(vntb, number, doorbell, rings, share.window))

    def _no_rings(self, share: Share, error: ValueError) -> NotPassed:
        problem, cure = str(error), f"make mw{share.window + 1} larger"
        if share.count > 1:
            problem = f"{share.count} queue pairs in window {share.window}: {problem}"
            cure = f"{cure}, or have 1, 2 or 4 of the endpoint's queue pairs in a window"
        return NotPassed(Reason.LINK_DOWN, problem, hint=cure)

    def close(self) -> None:
        """Take the queue pairs and the link down; then free the memory.

        A step that raises does not prevent the others.
        """
        vntb = self._vntb
        with vntb.function.cancel.deferred(), contextlib.ExitStack() as steps:
            # In reverse order, as the stack calls the last one first.
            for buffer in self._buffers:
                steps.callback(buffer.close)
            for memory in self._memories:
                steps.callback(memory.release)
            steps.callback(vntb.close)
            for index in reversed(self._pointed):
                steps.callback(vntb.clear_window, index)
            if self._linked:  # also if LINK_UP was sent and not yet obeyed
                steps.callback(vntb.link_down)
                up = [pair for pair in self.pairs if pair.up]
                if up and vntb.link_is_up:
                    for pair in reversed(up):
                        steps.callback(pair.send, b"", LINK_DOWN)
        self._buffers.clear()
        self._memories.clear()
        self._pointed.clear()
        self.pairs.clear()
        self._linked = False


class QueuePair:
    """A queue pair of a :class:`Transport` (struct ntb_transport_qp): packets out, packets in."""

    def __init__(
        self, vntb: Vntb, number: int, doorbell: Doorbell, rings: Rings, window: int
    ) -> None:
        self._vntb, self._doorbell, self._window = vntb, doorbell, window
        self.number, self.rings = number, rings
        self.bit = 1 << number
        """Its bit in the scratchpad QP_LINKS."""
        self.up = False
        """Whether it is up on both sides."""

    def joined(self) -> bool:
        """Announce this queue pair; return whether the endpoint's is up.

        To be called every 10 ms until it is (ntb_qp_link_work). Only for a single queue pair.
        """
        vntb = self._vntb
        links = vntb.spad_read(_QP_LINKS)
        # Not what was read, which would say that the endpoint's other pairs are up here.
        vntb.spad_write(_QP_LINKS, self.bit, peer=True)
        self.up = bool(links & self.bit)
        if self.up:
            self.widen()
        return self.up

    def widen(self) -> None:
        """Use 64-bit accesses where they arrive. The endpoint's memory has to be there, with free
        slots."""
        self._vntb.widen(self._window, self.rings.tx.slot(self.rings.tx_index))

    def restart(self) -> None:
        """Reset the rings after the endpoint took the queue pair down (ntb_qp_link_cleanup)."""
        self.up = False
        self.rings.restart()

    # -- packets ------------------------------------------------------------------------------

    @property
    def largest(self) -> int:
        """Size of the largest packet in bytes, in either direction."""
        return min(self.rings.rx.largest, self.rings.tx.largest)

    def send(self, packet: bytes, flags: int = 0) -> None:
        """Put a packet into the endpoint's ring, and ring its doorbell.

        :raises NotPassed: ``silent``: the ring is full, the endpoint does not read it
        """
        rings = self.rings
        reader = rings.reader
        free = rings.free_behind(reader)
        if free is None:
            raise NotPassed(
                Reason.LINK_LOST,
                f"the endpoint says that it has read slot {reader:#x} of {rings.tx.entries}",
                hint="is `mtu` the endpoint's transport_mtu?",
            )
        if not free:
            self._vntb.check_link()
            raise NotPassed(
                Reason.SILENT,
                f"the endpoint's ring of {rings.tx.entries} slots is full: it takes no packets",
                hint="on the endpoint: is the interface up? Is `mtu` its transport_mtu?",
            )
        rings.put(packet, len(packet), flags)
        self.ring()

    def ring(self) -> None:
        """Ring the endpoint's doorbell for new packets."""
        self.rings.flush()
        self._vntb.ring(self._doorbell)

    def receive(self) -> bytes | None:
        """Return the next packet, or None if there is none yet.

        :raises NotPassed: ``link-lost``, ``sequence-gap``
        """
        rings = self.rings
        arrived = rings.arrived()
        if arrived is None:
            return None
        number, length, flags = arrived
        if flags & LINK_DOWN:
            self.up = False
            raise NotPassed(
                Reason.LINK_LOST,
                f"the endpoint took queue pair {self.number} down",
                hint="on the endpoint: was ntb_netdev unloaded, or its interface set down?",
            )
        if number != rings.expected:
            raise NotPassed(
                Reason.SEQUENCE_GAP,
                f"a packet has number {number}, {rings.expected} was to come",
                hint="packets were lost or overwritten in the window; are both ends' sizes and"
                " transport_mtu the same?",
            )
        if length > rings.rx.largest:
            raise NotPassed(
                Reason.SEQUENCE_GAP,
                f"packet {number} claims {length:#x} bytes in a slot of {rings.rx.frame:#x}",
                hint="is `mtu` the endpoint's transport_mtu?",
            )
        packet = bytes(rings.packet(length))
        rings.take(number)
        rings.tell()
        return packet

    def wait(self, deadline: Deadline) -> bool:
        """Sleep briefly until the endpoint rings; return whether it did."""
        return bool(self._vntb.wait_doorbells(self._vntb.soon(deadline)))

    def wait_long(self) -> bool:
        """Like :meth:`wait`, for an overdue interrupt."""
        return bool(self._vntb.wait_doorbells(self._vntb.function.deadline(self._vntb.timeout)))
