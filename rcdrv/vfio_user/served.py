"""Interfaces of a served device: what :mod:`rcdrv.vfio_user.server` calls, and what it offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rcdrv.device import Area, IrqKind, RegionFlag
from rcdrv.errors import RcdrvError

_NO_FLAGS = RegionFlag(0)


class DmaFault(RcdrvError):
    """Client memory that could not be reached: not mapped, not allowed, or the client has gone.

    What a device on a bus sees as an Unsupported Request or a completion time-out.
    """


@dataclass(frozen=True)
class ServedRegion:
    """One region of a served device."""

    size: int = 0
    flags: RegionFlag = _NO_FLAGS
    areas: tuple[Area, ...] = ()
    """The parts that a client may map. Everything else arrives as read() and write()."""
    fd: int = -1
    """The shared memory behind ``areas``."""
    start: int = 0
    """Where the region begins in it."""


class Peer(Protocol):
    """The client's side, as the served device sees it."""

    def armed(self, kind: IrqKind) -> int:
        """Number of leading vectors that may fire: highest vector with an eventfd, plus 1."""

    def trigger(self, kind: IrqKind, vector: int) -> bool:
        """Fire a vector. False when nothing is armed there, when INTx is masked, or when the
        client has gone."""

    def dma_read(self, address: int, size: int) -> bytes:
        """Read client memory; crosses mappings. While it waits for the client's answer, other
        requests of the client are served, so the device's methods can be entered again.

        :raises DmaFault: some byte of it is not mapped, or not readable
        """

    def dma_write(self, address: int, data: bytes) -> None:
        """Write client memory, likewise."""

    def dma_file(self, address: int, size: int) -> tuple[int, int] | None:
        """The file that holds client memory, open while the client is there, and where it begins
        in it; None when it is not one piece of one file.

        :raises DmaFault: it is not mapped, or not readable
        """


class ServedDevice(Protocol):
    """A device behind a vfio-user socket. All calls come from the server's one thread.

    What ends with ``return`` here need not be given by a device.
    """

    def regions(self) -> Sequence[ServedRegion]:
        """By region index: BAR0-5, ROM, config space, VGA (9 entries)."""

    def irq_counts(self) -> Sequence[int]:
        """By :class:`IrqKind` value: INTX, MSI, MSIX, ERR, REQ (5 entries)."""

    def can_reset(self) -> bool:
        """Whether DEVICE_INFO announces a function reset."""
        return False

    def attach(self, peer: Peer) -> None:
        """A client has connected and agreed on a version. :meth:`regions` and
        :meth:`irq_counts` were asked before, and hold until it goes."""

    def detach(self) -> None:
        """The client has gone, in whatever way; its eventfds and DMA mappings are closed."""
        return

    def read(self, region: int, offset: int, size: int) -> bytes:
        """A trapped read inside the region (the server has checked bounds); all ``size`` bytes."""

    def write(self, region: int, offset: int, data: bytes) -> None:
        """A trapped write. Its reply is sent when this returns, so it must not start DMA; that is
        for :meth:`run`. The same goes for every other method that serves a request."""

    def irqs_changed(self, kind: IrqKind) -> None:
        """Vectors of ``kind`` were armed or disarmed."""
        return

    def intx_masked(self, masked: bool) -> None:
        """INTx was masked or unmasked by the client. VFIO's clients unmask after handling: a
        level that is still asserted then has to fire again. The server itself masks INTx when
        it fires (AUTOMASKED) before it calls this with True."""
        return

    def reset(self) -> None:
        """DEVICE_RESET."""
        return

    def next_event(self) -> float | None:
        """When :meth:`run` wants to be called next, on time.monotonic(); None for never. Asked
        after every message, and only while a client is attached."""
        return None

    def run(self) -> None:
        """Do what is due. May call the peer's DMA methods."""
        return
