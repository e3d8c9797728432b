"""The two rings of a queue pair of ntb_transport (``drivers/ntb/ntb_transport.c``).

Each side receives into a ring in its own memory, which the other side writes through a window. A
frame's header is at the end of its slot. The word after the last slot belongs to the other
direction: it is the reader's index in the ring that *we* fill.

Nothing here waits, and no value from the endpoint is used as an address: both indexes are ours.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rcdrv.mmio import Window, barrier

HEADER = struct.Struct("<III")
"""Packet number, length, flags."""
_NUMBER_LENGTH = struct.Struct("<II")
_LENGTH, _FLAGS = 4, 8
DONE, LINK_DOWN = 1 << 0, 1 << 1
_RX_INFO = 4
_WORD = 0xFFFF_FFFF


@dataclass(frozen=True)
class Share:
    """Place of a queue pair in the windows: share ``index`` of ``count`` equal ones of a window."""

    window: int
    index: int
    count: int

    @classmethod
    def of(cls, pair: int, pairs: int, windows: int) -> Share:
        """Return the share of queue pair number ``pair`` (QP_TO_MW, ntb_transport_init_queue)."""
        window = pair % windows
        count = pairs // windows + (1 if window < pairs % windows else 0)
        return cls(window, pair // windows, count)


@dataclass(frozen=True)
class Ring:
    """Layout of a queue pair's share of a window (ntb_transport_setup_qp_mw)."""

    base: int
    """Offset of the share in the window."""
    end: int
    """End of the slots from the base, where the other direction's index is."""
    frame: int
    """Bytes of a slot."""
    entries: int

    @classmethod
    def of(cls, window: int, shares: int, mtu: int, index: int = 0) -> Ring:
        """Return share ``index`` of ``shares`` of a window of that size in bytes.

        :raises ValueError: too small for two slots, or not of whole words
        """
        size = window // shares
        end = size - _RX_INFO
        frame = min(mtu, end // 2)
        if frame <= HEADER.size:
            raise ValueError(f"no slots in a window of {window:#x} bytes")
        if frame % 4 or end % 4:
            # The kernel accepts it, but device memory on arm64 takes no unaligned access.
            raise ValueError(f"slots of {frame:#x} bytes, up to {end:#x}, are not whole words")
        return cls(size * index, end, frame, end // frame)

    @property
    def largest(self) -> int:
        """Size of the largest packet in bytes (ntb_transport_max_size)."""
        return self.frame - HEADER.size

    def slot(self, index: int) -> int:
        return self.base + self.frame * index

    def header(self, index: int) -> int:
        return self.slot(index) + self.frame - HEADER.size

    @property
    def info(self) -> int:
        """Offset of the other direction's index in the window (struct ntb_rx_info)."""
        return self.base + self.end


class Rings:
    """Both rings, and our index in each.

    :param out: window to the endpoint's memory, with the ring that we fill
    :param memory: our memory, with the ring that the endpoint fills
    """

    def __init__(self, out: Window, tx: Ring, memory: memoryview, rx: Ring) -> None:
        self._out, self._memory = out, memory
        self._plain = out.plain
        self.tx, self.rx = tx, rx
        for index in range(rx.entries):
            header = rx.header(index)
            memory[header : header + HEADER.size] = bytes(HEADER.size)
        self._begin()

    def _begin(self) -> None:
        self.tx_index = self.rx_index = 0
        self._sent = self.expected = 0
        # All slots of the ring that we fill are free.
        self._put(self.rx.info, self.tx.entries - 1)
        self._rx_header = self.rx.header(0)

    def restart(self) -> None:
        """Begin both rings anew after a frame with LINK_DOWN (ntb_qp_link_down_reset).

        That is the next one, and it is freed (ntb_process_rxc). What else is in the ring stays: the
        endpoint may have begun anew already. Does not access the window, whose memory may be freed
        after the endpoint's link went down.
        """
        self._put(self._rx_header + _FLAGS, 0)
        self._begin()

    def _put(self, offset: int, value: int) -> None:
        self._memory[offset : offset + 4] = value.to_bytes(4, "little")

    # -- out ----------------------------------------------------------------------------------

    @property
    def reader(self) -> int:
        """Index of the slot that the endpoint read last; unvalidated."""
        info = self.rx.info
        return int.from_bytes(self._memory[info : info + 4], "little")

    def free_behind(self, reader: int) -> int | None:
        """Free slots where the endpoint reads slot ``reader`` (ntb_transport_tx_free_entry); None:
        there is no such slot."""
        entries = self.tx.entries
        return (reader - self.tx_index) % entries if reader < entries else None

    def room(self) -> memoryview | None:
        """Return the next slot for :meth:`put`, and a byte more; None if it is a device's memory.

        The byte is the header's, which is not valid yet: a packet that reaches it is too long.
        """
        if self._plain is None:
            return None
        tx = self.tx
        start = tx.base + tx.frame * self.tx_index
        return self._plain[start : start + tx.frame - HEADER.size + 1]

    def put(
        self, packet: bytes | bytearray | memoryview | None, length: int, flags: int = 0
    ) -> None:
        """Fill the next slot, which must be free (ntb_async_tx, ntb_tx_copy_callback).

        :param packet: the data, padded to whole words; None: it is in the slot's :meth:`room`
        :param length: length of the packet without padding
        """
        out, header = self._out, self.tx.header(self.tx_index)
        if packet is None and self._plain is not None:
            _NUMBER_LENGTH.pack_into(self._plain, header, self._sent, length)
        elif packet is not None:
            out.write32(header + _LENGTH, length)
            out.write32(header, self._sent)
            out.write_block(self.tx.slot(self.tx_index), packet)
        barrier()
        out.write32(header + _FLAGS, flags | DONE)
        self.tx_index = (self.tx_index + 1) % self.tx.entries
        self._sent = (self._sent + 1) & _WORD

    def flush(self) -> None:
        """Flush the posted writes by a read, so that they arrive before a doorbell."""
        if self._plain is None:
            last = self.tx.header((self.tx_index - 1) % self.tx.entries)
            self._out.read32(last + _FLAGS)

    # -- in -----------------------------------------------------------------------------------

    def arrived(self) -> tuple[int, int, int] | None:
        """Return number, length and flags of the next frame, unvalidated; None if there is none yet
        (ntb_process_rxc)."""
        if not self._memory[self._rx_header + _FLAGS] & DONE:
            return None
        barrier()
        number, length, flags = HEADER.unpack_from(self._memory, self._rx_header)
        return number, length, flags

    def packet(self, length: int) -> memoryview:
        """Return the packet of that frame without copying; the caller has checked ``length``."""
        start = self.rx.slot(self.rx_index)
        return self._memory[start : start + length]

    def take(self, number: int) -> None:
        """Free the slot, and expect the packet after ``number`` in the next one."""
        self._put(self._rx_header + _FLAGS, 0)
        self.rx_index = (self.rx_index + 1) % self.rx.entries
        self._rx_header = self.rx.header(self.rx_index)
        self.expected = (number + 1) & _WORD

    def tell(self) -> None:
        """Publish our read index to the endpoint (ntb_complete_rxc)."""
        barrier()
        self._out.write32(self.tx.info, (self.rx_index - 1) % self.rx.entries)
