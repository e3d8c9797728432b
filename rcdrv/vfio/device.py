"""A VFIO device descriptor as a :class:`rcdrv.device.Device`.

A backend opens the descriptor and hands it over with an :class:`AddressSpace`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from array import array
from collections.abc import Sequence

from rcdrv.device import (
    CAP_SPARSE_MMAP,
    CONFIG_REGION,
    Area,
    Device,
    DeviceFlag,
    IrqFlag,
    IrqKind,
    RegionFlag,
    RegionInfo,
    SetIrqs,
    capabilities,
    pairs,
)
from rcdrv.errors import AccessError, DeviceLost, HostError, RcdrvError
from rcdrv.vfio import uapi
from rcdrv.vfio.ioctl import call, query

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


class AddressSpace(Protocol):
    """Translation of the device's DMA addresses to memory of this process.

    All numbers are multiples of the page size. A fault of the caller (partial pages, no such
    mapping, or one that is there already) is a UsageError, and a limit of the host a HostError.
    """

    def ranges(self) -> Sequence[tuple[int, int]]:
        """Return the usable IOVAs as ascending (first, last) pairs, both inclusive."""

    def map(self, iova: int, address: int, size: int) -> None:
        """Map ``size`` bytes at ``address`` of this process for reads and writes of the device."""

    def unmap(self, iova: int, size: int) -> None:
        """Remove a mapping made with exactly these numbers."""

    def close(self) -> None:
        """Release the address space with its mappings, after the device. Twice is harmless."""


class VfioDevice(Device):
    """A PCI function behind a VFIO device descriptor.

    Owns ``fd`` and ``space``, unless the constructor raises.

    :param address: name of the device in messages
    :param backend: name of the backend that opened the descriptor
    :raises HostError: not the descriptor of a PCI device
    """

    def __init__(self, address: str, backend: str, fd: int, space: AddressSpace) -> None:
        self.address = address
        self.backend = backend
        self._fd = fd
        self._space = space
        self._regions: dict[int, tuple[RegionInfo, int]] = {}
        self._config_start: int | None = None
        try:
            info, _ = query(fd, uapi.DEVICE_GET_INFO, uapi.DeviceInfo())
        except OSError as error:
            raise self._failure("cannot query the device", error) from error
        if not info.flags & DeviceFlag.PCI:
            raise HostError(f"{address} is not a PCI device to VFIO")
        self._can_reset = bool(info.flags & DeviceFlag.RESET)
        _, self._config_start = self._region(CONFIG_REGION)

    # -- regions ------------------------------------------------------------------------------

    def region(self, index: int) -> RegionInfo:
        return self._region(index)[0]

    def _region(self, index: int) -> tuple[RegionInfo, int]:
        """Return a region and its offset in the descriptor."""
        if index not in self._regions:
            self._regions[index] = self._query_region(index)
        return self._regions[index]

    def _query_region(self, index: int) -> tuple[RegionInfo, int]:
        try:
            info, answer = query(
                self._fd, uapi.DEVICE_GET_REGION_INFO, uapi.RegionInfo(index=index)
            )
        except OSError as error:
            if error.errno == errno.EINVAL:  # no such index
                return RegionInfo(index, 0, RegionFlag(0)), 0
            raise self._failure(f"cannot query region {index}", error) from error
        flags = RegionFlag(info.flags & 0xF)
        areas: list[Area] = []
        if flags & RegionFlag.MMAP:
            # Without a list of areas the whole region can be mapped. Since Linux 4.16 this
            # includes the MSI-X table (capability MSIX_MAPPABLE).
            areas = [Area(0, info.size)]
            first = info.cap_offset if flags & RegionFlag.CAPS else 0
            for identity, body in capabilities(answer, ctypes.sizeof(info), first, HostError):
                if identity == CAP_SPARSE_MMAP:
                    areas = sorted_areas(pairs(body, HostError), info.size)
        return RegionInfo(index, info.size, flags, tuple(areas)), info.offset

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read a region by the kernel, which makes accesses of at most 4 bytes to config space.

        It returns EIO instead of touching a BAR while memory decoding is off. Older kernels (such
        as 6.1) split an access of 8 bytes to a BAR into two of 4.

        :raises AccessError: outside the region
        """
        position = self._position(region, offset, size)
        try:
            data = os.pread(self._fd, size, position)
        except OSError as error:
            raise self._access_failure("read", region, offset, error) from error
        if len(data) != size:
            raise HostError(
                f"{self.address}: read only {len(data)} of {size} bytes at {offset:#x} of "
                f"{_region_name(region)}"
            )
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        position = self._position(region, offset, len(data))
        try:
            written = os.pwrite(self._fd, data, position)
        except OSError as error:
            raise self._access_failure("write", region, offset, error) from error
        if written != len(data):
            raise HostError(
                f"{self.address}: wrote only {written} of {len(data)} bytes at {offset:#x} of "
                f"{_region_name(region)}"
            )

    def _position(self, region: int, offset: int, size: int) -> int:
        info, start = self._region(region)
        check_bounds(self.address, info, offset, size)  # the kernel would truncate the access
        return start + offset

    def _access_failure(self, verb: str, region: int, offset: int, error: OSError) -> RcdrvError:
        where = f"cannot {verb} {offset:#x} of {_region_name(region)}"
        if error.errno == errno.EIO and region != CONFIG_REGION and not self._is_gone():
            # __vfio_pci_memory_enabled() in vfio_pci_rdwr.c
            return HostError(
                f"{self.address}: {where}: the function does not decode memory accesses",
                hint="set bit 1 of its COMMAND register; in D3, wake it up first",
            )
        if error.errno == errno.EBUSY:
            return HostError(
                f"{self.address}: {where}: another driver has claimed the BAR",
                hint="/proc/iomem shows which driver",
            )
        return self._failure(where, error)

    def map(self, region: int, area: Area) -> mmap.mmap:
        """Map an area of a region. The mapping keeps the device open: close it before the device.

        An access while memory decoding is off is SIGBUS, which ends the process.

        :raises AccessError: the region has no such area
        """
        info, start = self._region(region)
        if area not in info.areas:
            raise AccessError(
                f"{self.address}: {area.size:#x} bytes at {area.offset:#x} of "
                f"{_region_name(region)} cannot be mapped"
            )
        try:
            return mmap.mmap(
                self._fd,
                area.size,
                mmap.MAP_SHARED,
                mmap.PROT_READ | mmap.PROT_WRITE,
                offset=start + area.offset,
            )
        except OSError as error:
            raise self._access_failure("map", region, area.offset, error) from error

    # -- interrupts ---------------------------------------------------------------------------

    def irq_count(self, kind: IrqKind) -> int:
        try:
            info, _ = query(self._fd, uapi.DEVICE_GET_IRQ_INFO, uapi.IrqInfo(index=kind))
        except OSError as error:
            if error.errno == errno.EINVAL:  # no such index: ERR on a function without Express
                return 0
            raise self._failure(f"cannot query {kind.name}", error) from error
        return info.count if info.flags & IrqFlag.EVENTFD else 0

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        data = array("i", eventfds).tobytes()
        head = uapi.IrqSet(
            ctypes.sizeof(uapi.IrqSet) + len(data), flags, index=kind, start=start, count=count
        )
        try:
            return call(self._fd, uapi.DEVICE_SET_IRQS, bytearray(head) + data)
        except OSError as error:
            if error.errno == errno.EINVAL and not count and flags & SetIrqs.DATA_NONE:
                return 0  # disabled already
            raise self._irq_failure(kind, count, error) from error

    def _irq_failure(self, kind: IrqKind, count: int, error: OSError) -> RcdrvError:
        vectors = f"{self.address}: {count} {kind.name} {'vector' if count == 1 else 'vectors'}"
        if error.errno == errno.ENOSPC:
            return HostError(
                f"{vectors} cannot be provided by this host",
                hint="use polling or INTx: `irq`",
            )
        if kind is IrqKind.INTX and error.errno == errno.ENODEV and not self._is_gone():
            # vfio_intx_enable() in vfio_pci_intrs.c: pdev->irq is 0 or IRQ_NOTCONNECTED.
            return HostError(
                f"{self.address}: this host routes no interrupt line to the function",
                hint="use MSI, MSI-X or polling: `irq`",
            )
        if kind is IrqKind.INTX and error.errno == errno.EBUSY:
            # request_irq() without IRQF_SHARED, for a function that cannot disable its INTx.
            return HostError(
                f"{self.address}: its interrupt line is in use by another device",
                hint="unbind the other device (/proc/interrupts names it), or use MSI or polling",
            )
        return self._failure(f"cannot arm {count} {kind.name}", error)

    # -- DMA ----------------------------------------------------------------------------------

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        return self._space.ranges()

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int = -1) -> None:
        # The ctypes object must be temporary: the mapping cannot be closed while it exists.
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._space.map(iova, address, size)

    def dma_unmap(self, iova: int, size: int) -> None:
        self._space.unmap(iova, size)

    # -- the whole device ---------------------------------------------------------------------

    def can_reset(self) -> bool:
        """Return whether the kernel could reset the device when it opened it."""
        return self._can_reset

    def reset(self) -> None:
        """Reset the function. The kernel restores config space only."""
        try:
            call(self._fd, uapi.DEVICE_RESET)
        except OSError as error:
            raise self._failure("the reset failed", error) from error

    def close(self) -> None:
        """Release everything; the kernel resets the function. Closing twice is harmless."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        finally:
            self._space.close()

    # -- errors -------------------------------------------------------------------------------

    def _is_gone(self) -> bool:
        """Return whether class and revision read all ones, or cannot be read.

        VENDOR_ID is no evidence: VFIO returns the copy that it made when the function was opened
        (init_pci_cap_basic_perm() in vfio_pci_config.c).
        """
        if self._config_start is None:
            return False
        try:
            return os.pread(self._fd, 4, self._config_start + 8) == b"\xff" * 4
        except OSError as error:
            return error.errno == errno.ENODEV

    def _failure(self, what: str, error: OSError) -> RcdrvError:
        if self._is_gone():
            return DeviceLost(
                f"{self.address}: {what}: the device is gone",
                hint="the endpoint rebooted, its link is down, or it was removed",
            )
        if error.errno == errno.EAGAIN:
            # pci_try_reset_function(): another user holds the device lock.
            return HostError(
                f"{self.address}: {what}: the kernel is busy with it", hint="try again"
            )
        return HostError(
            f"{self.address}: {what}: {os.strerror(error.errno or 0)}",
            hint="the kernel's log (dmesg) may say why",
        )


def check_bounds(address: str, region: RegionInfo, offset: int, size: int) -> None:
    """Raise :class:`AccessError` unless a region has these bytes."""
    if offset < 0 or size < 0 or offset + size > region.size:
        raise AccessError(
            f"{address}: {size} bytes at {offset:#x} are outside the {region.size:#x} "
            f"bytes of {_region_name(region.index)}"
        )


def sorted_areas(found: Sequence[tuple[int, int]], size: int) -> list[Area]:
    """Return the mappable areas of a sparse mmap capability, sorted.

    :param found: (offset, size) pairs
    :param size: size of the region in bytes
    :raises HostError: an area is outside the region, overlaps another, or has partial pages
    """
    areas: list[Area] = []
    end = 0
    for offset, length in sorted(found):
        if not length:
            continue
        last = offset + length
        if last > size:
            raise HostError(f"the mappable {length:#x} bytes at {offset:#x} are outside the region")
        if offset < end:
            raise HostError(f"the mappable {length:#x} bytes at {offset:#x} overlap others")
        if offset % mmap.PAGESIZE or (last % mmap.PAGESIZE and last != size):
            raise HostError(f"the mappable {length:#x} bytes at {offset:#x} are not whole pages")
        areas.append(Area(offset, length))
        end = last
    return areas


def _region_name(region: int) -> str:
    return "config space" if region == CONFIG_REGION else f"region {region}"
