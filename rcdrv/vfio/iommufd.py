"""The iommufd backend: ``/dev/iommu`` and ``/dev/vfio/devices/vfio<n>``, from Linux 6.6 on.

Each function has a device node of its own, and is attached to an I/O address space (IOAS) of
``/dev/iommu``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from rcdrv.errors import HostError, UsageError
from rcdrv.sysfs import DRIVER, Paths, device_name, group_members, group_of, iommu_group
from rcdrv.vfio import uapi
from rcdrv.vfio.device import VfioDevice
from rcdrv.vfio.ioctl import call, command
from rcdrv.vfio.refusals import (
    cannot_map,
    in_use,
    no_isolation,
    not_given,
    not_viable,
    open_node,
    refused,
    rivals,
)

# Far above the number of ranges of any IOMMU.
_MOST_RANGES = 1 << 16


class Ioas:
    """An :class:`~rcdrv.vfio.device.AddressSpace`: an I/O address space of iommufd.

    Owns the descriptor of ``/dev/iommu``, unless the constructor raises.

    :raises HostError: the kernel does not allocate it
    """

    def __init__(self, iommufd: int) -> None:
        request = uapi.IoasAlloc()
        try:
            command(iommufd, uapi.IOAS_ALLOC, request)
        except OSError as error:
            raise refused("iommufd cannot allocate an address space", error) from error
        self.fd = iommufd
        self.id = request.out_ioas_id
        """ID of the address space in iommufd."""
        # The kernel unmaps everything within a range, so exact mappings are checked here.
        self._mapped: dict[int, int] = {}

    def ranges(self) -> Sequence[tuple[int, int]]:
        room = 16
        while room <= _MOST_RANGES:
            found = (ctypes.c_uint64 * (2 * room))()
            request = uapi.IoasIovaRanges(
                ioas_id=self.id, num_iovas=room, allowed_iovas=ctypes.addressof(found)
            )
            try:
                command(self.fd, uapi.IOAS_IOVA_RANGES, request)
            except OSError as error:
                if error.errno == errno.EMSGSIZE and request.num_iovas > room:
                    room = request.num_iovas
                    continue
                raise refused("iommufd does not report the usable addresses", error) from error
            numbers = list(found[: 2 * min(room, request.num_iovas)])
            return sorted(zip(numbers[::2], numbers[1::2], strict=True))
        raise HostError(f"iommufd reports {room} ranges of usable addresses")

    def map(self, iova: int, address: int, size: int) -> None:
        self._map(uapi.IoasMap(flags=uapi.MapFlag.FIXED_IOVA, iova=iova), address, size)

    def map_anywhere(self, address: int, size: int) -> int:
        """Map as :meth:`map`, and return the IOVA, which the kernel chooses."""
        request = uapi.IoasMap()
        self._map(request, address, size)
        return request.iova

    def _map(self, request: uapi.IoasMap, address: int, size: int) -> None:
        request.flags |= uapi.MapFlag.READABLE | uapi.MapFlag.WRITEABLE
        request.ioas_id, request.user_va, request.length = self.id, address, size
        try:
            command(self.fd, uapi.IOAS_MAP, request)
        except OSError as error:
            what = f"cannot map {size:#x} bytes at IOVA {request.iova:#x}"
            raise cannot_map(what, size, error, counter="VmPin") from error
        self._mapped[request.iova] = size

    def unmap(self, iova: int, size: int) -> None:
        if self._mapped.get(iova) != size:
            raise UsageError(f"no DMA mapping of {size:#x} bytes at IOVA {iova:#x}")
        request = uapi.IoasUnmap(ioas_id=self.id, iova=iova, length=size)
        try:
            command(self.fd, uapi.IOAS_UNMAP, request)
        except OSError as error:
            raise refused(f"cannot unmap {size:#x} bytes at IOVA {iova:#x}", error) from error
        del self._mapped[iova]

    def physical(self, iova: int, size: int) -> tuple[int, int]:
        """Return the physical location of mapped memory, for a device without an IOMMU.

        :returns: (address, contiguous bytes from there, at most ``size``)
        """
        request = uapi.IoasNoiommuGetPa(ioas_id=self.id, iova=iova, length=size)
        try:
            command(self.fd, uapi.IOAS_NOIOMMU_GET_PA, request)
        except OSError as error:
            raise refused("the kernel does not report physical addresses", error) from error
        return request.out_phys, request.length

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


def open_iommufd(bdf: str, paths: Paths, token: str | None = None) -> VfioDevice:
    """Open a PCI function through its own device node."""
    iommu_group(paths, bdf)  # raises if the function is absent, not bound, or without an IOMMU
    name = device_name(paths, bdf)
    if name is None:
        raise HostError(
            f"{bdf}: the kernel's VFIO has no device node for it",
            hint="it needs Linux 6.6 with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV; "
            "RCDRV_BACKEND=group works without them",
        )
    node = paths.device_node(name)
    with contextlib.ExitStack() as undo:
        ioas = Ioas(open_node(paths, bdf, paths.iommufd_node, undo))
        device = open_node(paths, bdf, node, undo)
        attach(paths, bdf, node, device, ioas, token)
        opened = VfioDevice(bdf, "iommufd", device, ioas)
        undo.pop_all()
    return opened


def attach(paths: Paths, bdf: str, node: Path, device: int, ioas: Ioas, token: str | None) -> None:
    """Bind the function of ``device``, an open ``node``, and attach it to an address space."""
    try:
        bind(device, ioas.fd, token)
    except OSError as error:
        raise _cannot_bind(paths, bdf, node, error, token) from error
    request = uapi.AttachIommufdPt(ctypes.sizeof(uapi.AttachIommufdPt), pt_id=ioas.id)
    try:
        call(device, uapi.DEVICE_ATTACH_IOMMUFD_PT, request)
    except OSError as error:
        raise refused(f"the IOMMU cannot be set up for {bdf}", error) from error


def bind(device: int, iommufd: int, token: str | None = None) -> None:
    """Bind a function's descriptor to an iommufd: the kernel opens and resets the function."""
    if not token:
        plain = uapi.BindIommufd(ctypes.sizeof(uapi.BindIommufd), iommufd=iommufd)
        call(device, uapi.DEVICE_BIND_IOMMUFD, plain)
        return
    # A uuid_t has the byte order of the text: uuid_parse() in lib/uuid.c.
    uuid = (ctypes.c_uint8 * 16)(*bytes.fromhex(token.replace("-", "")))
    request = uapi.BindIommufdToken(
        ctypes.sizeof(uapi.BindIommufdToken),
        uapi.BIND_FLAG_TOKEN,
        iommufd=iommufd,
        token_uuid_ptr=ctypes.addressof(uuid),
    )
    call(device, uapi.DEVICE_BIND_IOMMUFD, request)


def _cannot_bind(
    paths: Paths, bdf: str, node: Path, error: OSError, token: str | None
) -> HostError:
    """Return the error for a failed VFIO_DEVICE_BIND_IOMMUFD."""
    if error.errno == errno.EACCES or (error.errno == errno.EINVAL and token):
        return not_given(paths, bdf, error, token)
    # EINVAL: the function is open (vfio_df_open()). EBUSY: its group is open
    # (vfio_device_block_group()), or another member has a driver. EPERM: interrupts are not
    # isolated, or another member is open.
    group = group_of(paths, bdf)
    if error.errno == errno.EBUSY and group is not None:
        drivers = {driver for member, driver in group_members(paths, group) if member != bdf}
        if drivers - {DRIVER, None}:
            return not_viable(paths, bdf, group)
    if error.errno in (errno.EINVAL, errno.EBUSY) or rivals(paths, bdf):
        return in_use(paths, bdf, node)
    if error.errno == errno.EPERM and group is not None:
        return no_isolation(paths, bdf, "iommufd")
    return not_given(paths, bdf, error, token)
