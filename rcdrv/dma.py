"""DMA: host memory that a device can reach, and the bus addresses (IOVAs) it has there."""

from __future__ import annotations

import contextlib
import mmap
import os

from rcdrv.device import Device, PhysicalDma, sealed_memory
from rcdrv.errors import DeviceLost, HostError

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import numpy as np

# Low addresses stay unused: 0 means "no address" to an endpoint.
_LOWEST_IOVA = 1 << 20
_HUGE_PAGE = 2 << 20


class DmaBuffer:
    """Host memory that the device can reach; give it back with :meth:`close` or ``with``."""

    def __init__(
        self, owner: DmaAllocator, iova: int, memory: mmap.mmap, size: int, mapped: int
    ) -> None:
        self._owner = owner
        self._mapped = mapped
        self.iova = iova
        """The bus address of the first byte, for the device's address registers."""
        self.size = size
        """The bytes asked for. The mapping behind them is whole pages."""
        self._mapping = memory
        self.memory = memoryview(memory)[:size]
        """The bytes themselves. Call :func:`rcdrv.mmio.barrier` before the device reads them."""

    def array(self, dtype: np.typing.DTypeLike = "u1") -> np.ndarray[Any, np.dtype[Any]]:
        """Return the bytes as an array: a view, not a copy.

        It stays valid memory after :meth:`close`, but the device does not reach it any more.

        :param dtype: a numpy type; what remains of an element at the end is left out
        :raises ImportError: numpy is not installed
        """
        import numpy as np

        kind = np.dtype(dtype)
        return np.frombuffer(self.memory, kind, self.size // kind.itemsize)

    def close(self) -> None:
        """Unmap from the device first, then free. Closing twice is harmless."""
        self._owner.free(self)

    def __enter__(self) -> DmaBuffer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class DmaAllocator:
    """The DMA buffers of one device, and the choice of their IOVAs."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.buffers: dict[int, DmaBuffer] = {}
        """The mapped buffers, by IOVA."""
        self._cursor = _LOWEST_IOVA

    def allocate(self, size: int, align: int, limit: int) -> DmaBuffer:
        """Allocate zeroed memory and map it, with all of it below ``limit``.

        :raises HostError: the IOMMU has no room, or memory may not be locked
        """
        length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        align = max(align, mmap.PAGESIZE)
        if isinstance(self._device, PhysicalDma):
            iova, memory = self._device.dma_allocate(length, align, limit)
            length = len(memory)
        else:
            iova = self._find_iova(length, align, limit)
            memory = self._map(iova, length)
        return self._keep(DmaBuffer(self, iova, memory, size, length))

    def pages(self, size: int, align: int, limit: int) -> Iterator[DmaBuffer]:
        """Allocate pages that adjoin for the device, and nowhere else: each has a mapping of its
        own. Only where an IOMMU chooses bus addresses, and with nothing else allocated meanwhile.
        """
        page = mmap.PAGESIZE
        length = -(-size // page) * page
        first = self._find_iova(length, max(align, page), limit)
        for iova in range(first, first + length, page):
            yield self._keep(DmaBuffer(self, iova, self._map(iova, page), page, page))

    def _keep(self, buffer: DmaBuffer) -> DmaBuffer:
        self.buffers[buffer.iova] = buffer
        return buffer

    def _map(self, iova: int, length: int) -> mmap.mmap:
        with contextlib.ExitStack() as stack:
            if self._device.dma_by_descriptor:
                fd = sealed_memory("rcdrv-dma", length)
                stack.callback(os.close, fd)
                memory = mmap.mmap(fd, length)
            else:
                fd, memory = -1, _contiguous(length)
            try:
                self._device.dma_map(iova, memory, length, fd)
            except BaseException:
                memory.close()
                raise
        return memory

    def _find_iova(self, length: int, align: int, limit: int) -> int:
        """Return the next free addresses behind the last ones given out, else any free ones.

        Going on instead of starting over keeps an address unused for long: what a slow endpoint
        still writes to a closed buffer meets the IOMMU and not another buffer.
        """
        for lowest in (self._cursor, _LOWEST_IOVA):
            iova = self._fit(length, align, lowest, limit)
            if iova is not None:
                self._cursor = iova + length + mmap.PAGESIZE
                return iova
        raise HostError(
            f"{self._device.address}: no room for {length:#x} bytes of DMA below {limit:#x}",
            hint="the IOMMU's address ranges are shown by: rcdrv info",
        )

    def _fit(self, length: int, align: int, lowest: int, limit: int) -> int | None:
        # A page between them: what is written beside one meets the IOMMU and not the next.
        gap = mmap.PAGESIZE
        taken = sorted((b.iova - gap, b.iova + b._mapped + gap) for b in self.buffers.values())
        for first, last in self._device.dma_ranges():
            start = max(first, lowest)
            for begin, end in [*taken, (1 << 64, 1 << 64)]:
                start = -(-start // align) * align
                if start + length <= min(begin, last + 1, limit):
                    return start
                start = max(start, end)
        return None

    def free(self, buffer: DmaBuffer) -> None:
        """Unmap a buffer, then free its memory; again is harmless."""
        if self.buffers.get(buffer.iova) is not buffer:
            return
        try:
            self._device.dma_unmap(buffer.iova, buffer._mapped)
        except DeviceLost:
            pass
        finally:
            del self.buffers[buffer.iova]
            # A view may still exist, for example in a traceback: then the memory goes with the
            # last of them, and the device cannot reach it any more.
            with contextlib.suppress(BufferError):
                buffer.memory.release()
                buffer._mapping.close()


def _contiguous(length: int) -> mmap.mmap:
    """Return zeroed memory of at least this length, in one piece if there is a huge page.

    VFIO then pins it as one, and not page by page: a twentieth of the time.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    large = length > _HUGE_PAGE // 8
    memory = mmap.mmap(-1, -(-length // _HUGE_PAGE) * _HUGE_PAGE if large else length, flags=flags)
    # Before Linux 5.10 a write after fork(2) could move the parent to another page than the
    # one that the device has.
    memory.madvise(mmap.MADV_DONTFORK)
    if large:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
