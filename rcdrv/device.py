"""VFIO's device model: what a :class:`~rcdrv.function.Function` stands on.

:class:`Device` is implemented by both transports, the kernel's ioctls (:mod:`rcdrv.vfio`) and the
vfio-user messages (:mod:`rcdrv.vfio_user`). Constants and semantics are those of
``include/uapi/linux/vfio.h``.
"""

from __future__ import annotations

import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum, IntFlag
from struct import Struct, iter_unpack

from rcdrv.errors import RcdrvError
from rcdrv.record import record

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Protocol

    from rcdrv.wait import Cancel
else:
    Protocol = object

CONFIG_REGION = 7
"""VFIO_PCI_CONFIG_REGION_INDEX; BAR n is region n (0-5), 6 is the expansion ROM."""


class IrqKind(IntEnum):
    """VFIO's interrupt indexes of a PCI device (VFIO_PCI_*_IRQ_INDEX)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    """The device reported an uncorrectable error (AER)."""
    REQ = 4
    """The host wants the device back."""


class DeviceFlag(IntFlag):
    """VFIO_DEVICE_FLAGS_*."""

    RESET = 1
    PCI = 2


class RegionFlag(IntFlag):
    """VFIO_REGION_INFO_FLAG_*."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


CAP_SPARSE_MMAP = 1
"""VFIO_REGION_INFO_CAP_SPARSE_MMAP: the capability that lists a region's mappable areas."""


_CAP_HEADER = Struct("=HHI")
"""struct vfio_info_cap_header: id, version, offset of the next one."""
_COUNT = Struct("=II")


def capabilities(
    answer: bytes, fixed: int, first: int, wrong: Callable[[str], RcdrvError]
) -> Iterator[tuple[int, memoryview]]:
    """Walk the capability chain of an INFO answer, which is not trusted.

    :param fixed: size of the structure before the chain
    :param first: its ``cap_offset``; 0 if there is no chain
    :param wrong: makes the error for a chain that loops or leaves the answer
    :returns: (id, rest of the answer after the capability's header) of each capability
    """
    seen: set[int] = set()
    offset = first
    while offset:
        if offset in seen:
            raise wrong(f"the capability chain is broken: it loops at {offset:#x}")
        if not fixed <= offset <= len(answer) - _CAP_HEADER.size:
            raise wrong(f"the capability chain is broken: {offset:#x} is outside the answer")
        seen.add(offset)
        identity, _version, following = _CAP_HEADER.unpack_from(answer, offset)
        yield identity, memoryview(answer)[offset + _CAP_HEADER.size :]
        offset = following


def pairs(body: bytes | memoryview, wrong: Callable[[str], RcdrvError]) -> list[tuple[int, int]]:
    """Return the pairs of a capability: ``__u32 count, reserved``, then pairs of __u64.

    Sparse mmap areas and IOVA ranges have this form.

    :param wrong: makes the error for a count that exceeds the size of the body
    """
    if len(body) < _COUNT.size:
        raise wrong("a capability is truncated")
    count, _ = _COUNT.unpack_from(body)
    end = _COUNT.size + 16 * count
    if end > len(body):
        raise wrong(f"a capability announces {count} entries in {len(body) - _COUNT.size} bytes")
    return list(iter_unpack("=QQ", body[_COUNT.size : end]))


class IrqFlag(IntFlag):
    """VFIO_IRQ_INFO_*."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class SetIrqs(IntFlag):
    """VFIO_IRQ_SET_DATA_* and VFIO_IRQ_SET_ACTION_*: one of each makes a SET_IRQS request."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 16
    ACTION_TRIGGER = 32


class DmaFlag(IntFlag):
    """VFIO_DMA_MAP_FLAG_*: accesses that a DMA mapping permits the device."""

    READ = 1
    WRITE = 2


@record
class Area:
    """Part of a region, in bytes from the region's start."""

    offset: int
    size: int


@record
class RegionInfo:
    """One region, as VFIO_DEVICE_GET_REGION_INFO describes it."""

    index: int
    size: int
    flags: RegionFlag
    areas: tuple[Area, ...] = ()
    """The parts that may be mapped: all of it, or what the sparse mmap capability lists."""


def sealed_memory(name: str, size: int) -> int:
    """Return a descriptor of ``size`` zeroed bytes of memory, to share with another process.

    Its size is sealed: an access to a mapping of a truncated file raises SIGBUS.
    """
    import fcntl

    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_sealed(fd: int) -> bool:
    """Return whether a file is memory that cannot shrink, without huge pages, which may run out."""
    import fcntl

    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # not a memfd
        return False
    return bool(seals & fcntl.F_SEAL_SHRINK) and os.fstat(fd).st_blksize == mmap.PAGESIZE


class Device(Protocol):
    """The VFIO device model, as the kernel and vfio-user offer it.

    Every method raises :class:`DeviceLost` once the device or its transport is gone, and
    :class:`HostError`, whose hint names the fix, if the host does not permit the request.
    """

    address: str
    """Address as the user wrote it."""

    backend: str
    """Name of the backend: ``group``, ``iommufd``, ``noiommu``, ``sysfs`` or ``vfio-user``."""

    dma_by_descriptor: bool = False
    """The device is another process, which maps DMA buffers by their descriptors."""

    messages: bool = False
    """A block access is one message, and its receiver chooses the width of its words."""

    def region(self, index: int) -> RegionInfo:
        """Return one region; a region that the device lacks has size 0."""

    def irq_count(self, kind: IrqKind) -> int:
        """Return the number of vectors of this kind; 0 if the device has none."""

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read a region: one aligned access when ``size`` is 1, 2, 4 or 8."""

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write a region: one aligned access when ``data`` has 1, 2, 4 or 8 bytes."""

    def map(self, region: int, area: Area) -> mmap.mmap:
        """Map one of the region's areas, readable and writable, shared."""

    def in_memory(self, region: int) -> bool:
        """Return whether a mapped region is ordinary memory, which cannot shrink."""
        return False

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        """Arm, trigger, mask or disable interrupts (VFIO_DEVICE_SET_IRQS).

        -1 in ``eventfds`` disarms that vector. DATA_NONE with count 0 disables the kind.

        :returns: 0, or the number of vectors that are available instead; then none is armed
        """

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        """Return the usable IOVAs as ascending (first, last) pairs, both inclusive."""

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int) -> None:
        """Map the first ``size`` bytes of ``memory``, whole pages, at ``iova`` for the device.

        :param fd: descriptor of ``memory`` if :attr:`dma_by_descriptor`, else -1
        """

    def dma_unmap(self, iova: int, size: int) -> None:
        """Remove a mapping made with exactly these numbers."""

    def can_reset(self) -> bool:
        """Return whether the device has a function reset."""

    def reset(self) -> None:
        """Reset the function (VFIO_DEVICE_RESET)."""

    def heed(self, cancel: Cancel) -> None:
        """Have ``cancel`` end waits of the transport for an answer, once it is to hurry."""
        return

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`on_readable` has work; -1 if none."""
        return -1

    def on_readable(self) -> None:
        """Serve the transport; raise :class:`DeviceLost` if it has ended."""
        return

    def close(self) -> None:
        """Release everything. Closing twice is harmless."""


class PhysicalDma(ABC):
    """Interface of a :class:`Device` without an IOMMU, which chooses addresses of DMA buffers."""

    @abstractmethod
    def dma_allocate(self, size: int, align: int, limit: int) -> tuple[int, mmap.mmap]:
        """Allocate at least ``size`` bytes of zeroed memory for DMA.

        ``dma_unmap(address, len(memory))`` frees it; the caller closes the mapping.

        :param align: the bus address is a multiple of this
        :param limit: all of the memory is below this bus address
        :returns: the bus address, and a mapping of the memory
        :raises HostError: there is no such memory
        """
