"""Interfaces between a served device and :mod:`rcdrv.vfio_user.server`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rcdrv.device import Area, IrqKind, RegionFlag
from rcdrv.errors import RcdrvError

_NO_FLAGS = RegionFlag(0)


class DmaFault(RcdrvError):
    """Client memory cannot be accessed: not mapped, not permitted, or the client has left.

    On a bus this is an Unsupported Request or a completion time-out.
    """


@dataclass(frozen=True)
class ServedRegion:
    """One region of a served device."""

    size: int = 0
    flags: RegionFlag = _NO_FLAGS
    areas: tuple[Area, ...] = ()
    """Parts that a client may map. Accesses to other parts call read() and write()."""
    fd: int = -1
    """Descriptor of the shared memory of ``areas``."""
    start: int = 0
    """Start of the region in the shared memory."""


class Peer(Protocol):
    """The client, as the served device sees it."""

    def armed(self, kind: IrqKind) -> int:
        """Return the highest vector with an eventfd, plus 1."""

    def trigger(self, kind: IrqKind, vector: int) -> bool:
        """Fire a vector.

        :returns: False if it is not armed, INTx is masked, or the client has left
        """

    def dma_read(self, address: int, size: int) -> bytes:
        """Read client memory, also across mappings.

        Requests of the client are served while its reply is awaited, so methods of the device can
        be entered again.

        :raises DmaFault: a byte is not mapped, or not readable
        """

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        """Write client memory, also across mappings. See :meth:`dma_read`."""

    def dma_file(self, address: int, size: int) -> tuple[int, int] | None:
        """Return the descriptor of a file of client memory, and the offset of ``address`` in it.

        The descriptor is open until the client unmaps the file or leaves: duplicate it to keep it.

        :returns: None if the range is not contiguous in one file
        :raises DmaFault: the address is not mapped, or not readable
        """

    def dma_view(self, address: int, size: int) -> memoryview | None:
        """Return client memory for direct access, to be dropped before the client can unmap it.

        :returns: None if the range is not contiguous in one file that cannot shrink
        :raises DmaFault: the address is not mapped, or not writable
        """

    def dma_reach(self, address: int, size: int) -> int:
        """Return how many of these bytes are in the mapping of the first.

        :raises DmaFault: it is not mapped, or not readable
        """


class ServedDevice(Protocol):
    """A device behind a vfio-user socket. All calls come from one thread, the server's.

    Methods that end with ``return`` here are optional.
    """

    def regions(self) -> Sequence[ServedRegion]:
        """Return the regions by index: BAR0-5, ROM, config space, VGA (9 entries)."""

    def irq_counts(self) -> Sequence[int]:
        """Return the vectors by :class:`IrqKind`: INTX, MSI, MSIX, ERR, REQ (5 entries)."""

    def can_reset(self) -> bool:
        """Return whether DEVICE_INFO announces a function reset."""
        return False

    def attach(self, peer: Peer) -> None:
        """Begin a session: a client has connected and agreed on a version.

        :meth:`regions` and :meth:`irq_counts` are called before, and must hold until
        :meth:`detach`.
        """

    def detach(self) -> None:
        """End the session. The client's eventfds and DMA mappings are closed already."""
        return

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Serve a trapped read, within the region; return ``size`` bytes."""

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Serve a trapped write, within the region.

        The reply is sent when this returns, so this must not do DMA, nor must any other method
        that serves a request; :meth:`run` may.
        """

    def irqs_changed(self, kind: IrqKind) -> None:
        """Note that vectors of ``kind`` were armed or disarmed."""
        return

    def intx_masked(self, masked: bool) -> None:
        """Note that INTx was masked or unmasked.

        The server masks INTx when it fires (AUTOMASKED), and clients unmask it when they have
        handled it. A level that is still asserted then must fire again.
        """
        return

    def reset(self) -> None:
        """Serve DEVICE_RESET."""
        return

    def next_event(self) -> float | None:
        """Return the next time for :meth:`run`, on time.monotonic(); None for never.

        Called after every message, while a client is attached.
        """
        return None

    def run(self) -> None:
        """Do what is due. May call the DMA methods of the peer."""
        return
