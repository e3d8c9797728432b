"""An endpoint as fast as memory, which shows rcdrv's own share of a ring's time.

Its processor is a loop in C that polls COMMAND and the doorbell.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Iterator, Sequence

from rcdrv.device import CONFIG_REGION, Area, Device, IrqKind, RegionFlag, RegionInfo, SetIrqs
from rcdrv.epf_test.registers import Caps, Reg
from rcdrv.function import Function
from tools.bench.native import Native

_SIZE = mmap.PAGESIZE


@contextlib.contextmanager
def function(native: Native) -> Iterator[Function]:
    """Yield a function whose endpoint runs on another processor."""
    device = _Ideal()
    # Separate mappings: closing the function closes those of its windows.
    registers, doorbell = (device.map(index, Area(0, _SIZE)) for index in (0, 1))
    endpoint = threading.Thread(target=native.endpoint, args=(registers, doorbell, device.eventfd))
    endpoint.start()
    try:
        with Function(device) as opened:
            yield opened
    finally:
        device.eventfd.value = Native.END
        endpoint.join()


class _Ideal(Device):
    """BAR0 with the registers, BAR1 with the doorbell, one MSI vector."""

    address = "ideal"
    backend = "memory"

    def __init__(self) -> None:
        self._bars = [os.memfd_create(f"ideal-bar{index}") for index in range(2)]
        caps = Caps.MSI | Caps.DYNAMIC_INBOUND_MAPPING
        os.pwrite(self._bars[0], int(caps).to_bytes(4, "little"), Reg.CAPS)
        for bar in self._bars:
            os.ftruncate(bar, _SIZE)
        self.eventfd = ctypes.c_int(Native.NOBODY)
        self._config = bytearray(256)
        self._config[0:4] = bytes.fromhex("4c1000b5")

    def region(self, index: int) -> RegionInfo:
        if index == CONFIG_REGION:
            return RegionInfo(index, len(self._config), RegionFlag.READ | RegionFlag.WRITE)
        if index < len(self._bars):
            return RegionInfo(index, _SIZE, RegionFlag.MMAP, (Area(0, _SIZE),))
        return RegionInfo(index, 0, RegionFlag(0))

    def irq_count(self, kind: IrqKind) -> int:
        return 1 if kind is IrqKind.MSI else 0

    def read(self, region: int, offset: int, size: int) -> bytes:
        return bytes(self._config[offset : offset + size])

    def write(self, region: int, offset: int, data: bytes) -> None:
        self._config[offset : offset + len(data)] = data

    def map(self, region: int, area: Area) -> mmap.mmap:
        return mmap.mmap(self._bars[region], area.size)

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        self.eventfd.value = eventfds[0] if eventfds else Native.NOBODY
        return 0

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        return ()

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int) -> None:
        raise NotImplementedError

    def dma_unmap(self, iova: int, size: int) -> None:
        raise NotImplementedError

    def can_reset(self) -> bool:
        return False

    def reset(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        for bar in self._bars:
            os.close(bar)
        self._bars = []
