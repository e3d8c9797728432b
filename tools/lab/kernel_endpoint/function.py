"""The PCI function of the endpoint's kernel, as the root complex sees it."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from rcdrv.device import CONFIG_REGION, Area, IrqKind, RegionFlag
from rcdrv.epf_test.registers import Reg
from rcdrv.sim import config_space
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.config_space import SimConfigSpace
from rcdrv.sim.description import BarLayout, BarType, Reset
from rcdrv.vfio_user.served import DmaFault, Peer, ServedDevice, ServedRegion

if TYPE_CHECKING:
    from tools.lab.kernel_endpoint.hardware import Hardware

T = TypeVar("T")
PATIENCE = 10.0
"""Limit in seconds for the root complex's part of a transfer."""


@dataclass(frozen=True)
class Seen:
    """Header, MSI and MSI-X as written by the endpoint's kernel."""

    vendor: int = 0xFFFF
    device: int = 0xFFFF
    class_code: int = 0
    intx_pin: int = 0
    msi: int = 0
    msix: int = 0
    msix_bar: int = 0
    msix_table: int = 0
    msix_pba: int = 0


class Function(ServedDevice):
    """The root complex's side of ``hardware``.

    Its server runs in its own thread. Work of the other thread that involves the client is done
    there, by :meth:`run`, as the client may have to be asked for its memory.
    """

    def __init__(self, hardware: Hardware, log: AccessLog) -> None:
        self._hardware = hardware
        self._log = log
        self._peer: Peer | None = None
        self._lock = threading.Lock()
        self._work: deque[Callable[[], None]] = deque()
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._config: SimConfigSpace | None = None
        self._bars: tuple[BarLayout | None, ...] = (None,) * 6
        self._seen = Seen()
        self._asserted = self._delivered = self._masked = False
        self._known: dict[int, bytes] = {}
        """Test registers read since the last write, by offset."""

    # -- from the endpoint ----------------------------------------------------------------------

    def power(self, seen: Seen | None) -> None:
        """Start with these IDs and vectors, or stop."""

        def switch() -> None:
            self._asserted = self._delivered = False
            if seen is None:
                self._config = None
                return
            bars = tuple(map(self._bar, range(6)))
            self._seen, self._bars = seen, bars
            layout = replace(
                self._hardware.layout,
                bars=bars,
                **{name: getattr(seen, name) for name in Seen.__dataclass_fields__},
            )
            self._config = SimConfigSpace(layout)

        self._call(switch, None, late=True)

    def _bar(self, index: int) -> BarLayout | None:
        known = self._hardware.bars.get(index)
        own = self._hardware.layout.bars[index]
        if known is not None:
            return known[0]
        return own if own is not None and own.type is BarType.RESERVED else None

    def vectors(self, kind: IrqKind) -> int:
        """Return the number of vectors that the client has enabled."""
        peer = self._peer
        return 0 if peer is None else peer.armed(kind)

    def raise_irq(self, kind: IrqKind, number: int) -> None:
        """Raise an interrupt, ``number`` from 1. It is lost if the host does not accept it."""

        def fire() -> None:
            config, peer = self._config, self._peer
            if config is None or peer is None:
                delivered = False
            elif kind is IrqKind.INTX:
                self._asserted = config.intx_enabled
                config.set_interrupt_status(self._asserted)
                self._deliver()
                delivered = self._delivered
            else:
                delivered = config.masters and number > 0 and peer.trigger(kind, number - 1)
            self._log.event("interrupt", kind=kind.name.lower(), number=number, done=delivered)

        self._call(fire, None)

    def dma_read(self, address: int, size: int) -> bytes | None:
        """Read memory of the root complex; None if it refuses."""

        def read() -> bytes | None:
            if self._peer is None or self._config is None or not self._config.masters:
                return None
            try:
                return self._peer.dma_read(address, size)
            except DmaFault as fault:
                self._log.event("dma-fault", address=address, size=size, reason=fault.message)
                return None

        return self._call(read, None)

    def dma_map(self, address: int, size: int) -> bytes:
        """Read the target of an outbound window; all ones where nothing is mapped.

        The function may use only a part of the window.
        """
        data = self.dma_read(address, size)
        if data is not None or size <= mmap.PAGESIZE:
            return data if data is not None else b"\xff" * size
        half = -(-size // 2 // mmap.PAGESIZE) * mmap.PAGESIZE
        return self.dma_map(address, half) + self.dma_map(address + half, size - half)

    def dma_write(self, address: int, data: bytes) -> None:
        """Write memory of the root complex. The write is lost if it refuses."""

        def write() -> None:
            if self._peer is None or self._config is None or not self._config.masters:
                return
            try:
                self._peer.dma_write(address, data)
            except DmaFault as fault:
                self._log.event("dma-fault", address=address, size=len(data), reason=fault.message)

        self._call(write, None)

    def _call(self, work: Callable[[], T], otherwise: T, *, late: bool = False) -> T:
        """Do ``work`` in the thread that serves the client, or in this one without a client.

        Return ``otherwise`` after a time-out. Work that has not begun by then is cancelled, as the
        endpoint's kernel does not wait any longer, unless it may be ``late``.
        """
        with self._lock:
            if self._peer is None:
                return work()
            done = threading.Event()
            result = otherwise

            def job() -> None:
                nonlocal result
                result = work()
                done.set()

            self._work.append(job)
        os.eventfd_write(self.wake, 1)
        if not done.wait(PATIENCE) and not late:
            with contextlib.suppress(ValueError):  # it has begun
                self._work.remove(job)
        return result

    # -- a vfio-user device -----------------------------------------------------------------------

    def regions(self) -> Sequence[ServedRegion]:
        access = RegionFlag.READ | RegionFlag.WRITE
        regions = [ServedRegion()] * 9
        for index, bar in enumerate(self._bars):
            if bar is not None:
                regions[index] = self._region(index, bar.size)
        regions[CONFIG_REGION] = ServedRegion(config_space.SIZE, access)
        return regions

    def _region(self, bar: int, size: int) -> ServedRegion:
        access = RegionFlag.READ | RegionFlag.WRITE
        hardware = self._hardware
        if bar in hardware.shadows and hardware.shadows[bar].size == size:
            areas, fd, start = hardware.areas(bar), hardware.shadows[bar].fd, 0
        else:
            start = self._mappable(bar, size)
            areas, fd = (Area(0, size),), hardware.memory_file()
        if start < 0 or not areas:
            return ServedRegion(size, access)
        return ServedRegion(size, access | RegionFlag.MMAP, areas, fd, start)

    def _mappable(self, bar: int, size: int) -> int:
        """Return the offset of a BAR in the guest's memory, or -1 if a client must not map it.

        A mapping does not follow a change of the BAR's target. pci-epf-vntb changes none;
        pci-epf-test may change any by command, and has shadows instead.
        """
        layout = self._hardware.layout
        known = self._hardware.bars.get(bar)
        holds_msix = bool(self._seen.msix) and self._seen.msix_bar == bar
        if layout.function != "epf_vntb" or layout.trap.value == "all" or known is None:
            return -1
        if holds_msix or len(known[1]) != 1 or size % mmap.PAGESIZE:
            return -1
        return known[1][0].memory

    def irq_counts(self) -> Sequence[int]:
        seen = self._seen
        msi = 1 << (seen.msi - 1).bit_length() if seen.msi else 0
        return (1 if seen.intx_pin else 0, msi, seen.msix, 0, 0)

    def can_reset(self) -> bool:
        return self._hardware.layout.reset is not Reset.NONE

    def attach(self, peer: Peer) -> None:
        """Begin a session, with a reset as of VFIO at every open."""
        self._log.event("attach")
        with self._lock:
            self._peer = peer
            self._masked = False
        self.reset()

    def detach(self) -> None:
        self._log.event("detach")
        with self._lock:
            self._peer = None
            if self._config is not None:
                # As the host leaves it: no decoding, no bus mastering, no INTx.
                self._config.write(config_space.COMMAND, b"\0\0")
            self._deassert()
        self._work_off()

    def reset(self) -> None:
        """Reset the function. The endpoint's kernel notices a link reset only."""
        reset = self._hardware.layout.reset
        if reset is Reset.NONE or self._config is None:
            return
        self._log.event("reset", kind=reset.value)
        self._config.reset()
        self._deassert()
        if reset is Reset.BUS:
            self._hardware.notify(1 | 2)

    def irqs_changed(self, kind: IrqKind) -> None:
        if kind is IrqKind.INTX:
            self._deliver()

    def intx_masked(self, masked: bool) -> None:
        """Deassert INTx on unmasking, which means that the client has handled it."""
        self._masked = masked
        if not masked:
            if self._delivered:
                self._deassert()
            self._deliver()

    def _deliver(self) -> None:
        if self._asserted and not self._masked and self._peer is not None:
            self._delivered = self._peer.trigger(IrqKind.INTX, 0)

    def _deassert(self) -> None:
        self._asserted = self._delivered = False
        if self._config is not None:
            self._config.set_interrupt_status(False)

    def read(self, region: int, offset: int, size: int) -> bytes:
        config = self._config
        if config is None:
            return b"\xff" * size  # stopped: no completer
        if region == CONFIG_REGION:
            return config.read(offset, size)
        data = self._read_bar(region, offset, size) if config.responds else b"\xff" * size
        self._log.access("read", region, offset, data)
        return data

    def _read_bar(self, bar: int, offset: int, size: int) -> bytes:
        if bar not in self._hardware.bars:
            return b"\0" * size  # registers of the controller's own
        if self._hardware.is_shadowed(bar):
            return self._hardware.shadows[bar].read(offset, size)
        data = self._hardware.read_bar(bar, offset, size)
        if bar == self._hardware.layout.register_bar and self._known.get(offset) != data:
            # The endpoint has changed its registers.
            self._hardware.pull()
            self._known[offset] = data
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        config = self._config
        if config is None:
            return
        if region == CONFIG_REGION:
            mastered = config.masters
            if config.write(offset, data):
                self.reset()
            elif config.masters and not mastered:
                self._hardware.notify(4)
            return
        self._log.access("write", region, offset, data)
        if not config.responds:
            return
        if region not in self._hardware.bars:
            doorbell = self._hardware.layout.doorbell
            exposed = self._hardware.doorbell_kind == 2 and doorbell.bar == region
            if exposed and offset <= doorbell.offset < offset + len(data):
                self._hardware.ring()
            return
        if self._hardware.is_shadowed(region):
            self._hardware.shadows[region].write(offset, data)
            return
        if region == self._hardware.layout.register_bar:
            self._known.clear()
            if offset <= Reg.COMMAND < offset + len(data):
                self._hardware.push()
        done = 0
        for part, inner, length in self._hardware.pieces(region, offset, len(data)):
            if part.memory >= 0:
                self._hardware.write_memory(part.memory + inner, data[done : done + length])
            elif inner <= part.doorbell < inner + length:
                self._hardware.ring()
            done += length

    # -- the other thread's work ------------------------------------------------------------------

    def next_event(self) -> float | None:
        return time.monotonic() if self._work else None

    def run(self) -> None:
        self._work_off()

    def _work_off(self) -> None:
        while True:
            try:
                job = self._work.popleft()
            except IndexError:  # the last one may have been cancelled meanwhile
                return
            job()
