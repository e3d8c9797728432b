"""The group backend: ``/dev/vfio/<group>`` in a container with a type 1 IOMMU.

Every kernel with VFIO has it. A group is the smallest set of functions that the IOMMU can isolate.
A container is an address space for groups; rcdrv puts one group into one container.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Sequence

from rcdrv.device import DmaFlag, capabilities, pairs
from rcdrv.errors import HostError, UsageError
from rcdrv.sysfs import Paths, iommu_group
from rcdrv.vfio import uapi
from rcdrv.vfio.device import VfioDevice
from rcdrv.vfio.ioctl import call, query
from rcdrv.vfio.refusals import (
    cannot_map,
    no_isolation,
    not_given,
    not_viable,
    open_node,
    refused,
)

_IOMMU_DRIVERS = {
    uapi.TYPE1V2_IOMMU: ("type 1", "vfio_iommu_type1"),
    uapi.NOIOMMU_IOMMU: ("no-IOMMU", "vfio"),
}
_ENTRY_LIMIT = "the limit is /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"


class Container:
    """An :class:`~rcdrv.vfio.device.AddressSpace`: a container with one group.

    Owns both descriptors.
    """

    def __init__(self, container: int, group: int) -> None:
        self._container = container
        self._group = group

    def ranges(self) -> Sequence[tuple[int, int]]:
        body = self._capability(uapi.IommuCap.IOVA_RANGE)
        if body is None:
            raise HostError(
                "this kernel does not report the usable DMA addresses",
                hint="Linux 5.4 and later do",
            )
        return sorted(pairs(body, HostError))

    def mappings_left(self) -> int | None:
        """Return the number of mappings left; None before Linux 5.10, which does not report it."""
        body = self._capability(uapi.IommuCap.DMA_AVAIL)
        return None if body is None else int.from_bytes(body[:4], sys.byteorder)

    def _capability(self, wanted: uapi.IommuCap) -> memoryview | None:
        try:
            info, answer = query(self._container, uapi.IOMMU_GET_INFO, uapi.IommuInfo())
        except OSError as error:
            raise refused("cannot query the IOMMU", error) from error
        if info.flags & uapi.IommuFlag.CAPS:
            fixed, first = ctypes.sizeof(info), info.cap_offset
            for identity, body in capabilities(answer, fixed, first, HostError):
                if identity == wanted:
                    return body
        return None

    def map(self, iova: int, address: int, size: int) -> None:
        what = f"cannot map {size:#x} bytes at IOVA {iova:#x}"
        flags = DmaFlag.READ | DmaFlag.WRITE
        request = uapi.DmaMap(ctypes.sizeof(uapi.DmaMap), flags, address, iova, size)
        try:
            call(self._container, uapi.IOMMU_MAP_DMA, request)
        except OSError as error:
            raise cannot_map(what, size, error, counter="VmLck", room=_ENTRY_LIMIT) from error

    def unmap(self, iova: int, size: int) -> None:
        request = uapi.DmaUnmap(ctypes.sizeof(uapi.DmaUnmap), 0, iova, size)
        try:
            call(self._container, uapi.IOMMU_UNMAP_DMA, request)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it would split a mapping
                raise refused(f"cannot unmap {size:#x} bytes at IOVA {iova:#x}", error) from error
            request.size = 0
        if request.size != size:
            raise UsageError(f"no DMA mapping of {size:#x} bytes at IOVA {iova:#x}")

    def close(self) -> None:
        descriptors = [fd for fd in (self._group, self._container) if fd >= 0]
        self._group = self._container = -1
        for fd in descriptors:
            os.close(fd)


def open_group(bdf: str, paths: Paths, token: str | None = None) -> VfioDevice:
    """Open a PCI function through its IOMMU group."""
    number = iommu_group(paths, bdf)
    node = paths.group_node(number)
    with contextlib.ExitStack() as undo:
        container = open_node(paths, bdf, paths.container_node, undo)
        check_container(container, uapi.TYPE1V2_IOMMU)
        group = open_node(paths, bdf, node, undo)
        _check_viable(paths, bdf, number, group)
        _attach(paths, bdf, number, group, container)
        device = device_fd(paths, bdf, group, token)
        undo.callback(os.close, device)
        opened = VfioDevice(bdf, "group", device, Container(container, group))
        undo.pop_all()
    return opened


def check_container(container: int, iommu: int) -> None:
    """Raise :class:`HostError` unless the container supports this type of IOMMU."""
    try:
        version = call(container, uapi.GET_API_VERSION)
        extension = call(container, uapi.CHECK_EXTENSION, iommu)
    except OSError as error:
        raise refused("the VFIO container does not answer", error) from error
    if version != uapi.API_VERSION:
        raise HostError(f"the kernel's VFIO has version {version}; rcdrv knows {uapi.API_VERSION}")
    if not extension:
        name, module = _IOMMU_DRIVERS[iommu]
        raise HostError(f"the kernel's VFIO has no {name} IOMMU driver", hint=f"modprobe {module}")


def _check_viable(paths: Paths, bdf: str, number: str, group: int) -> None:
    status = uapi.GroupStatus(ctypes.sizeof(uapi.GroupStatus))
    try:
        call(group, uapi.GROUP_GET_STATUS, status)
    except OSError as error:
        raise refused(f"IOMMU group {number} does not answer", error) from error
    if not status.flags & uapi.GroupFlag.VIABLE:
        raise not_viable(paths, bdf, number)


def _attach(paths: Paths, bdf: str, number: str, group: int, container: int) -> None:
    descriptor = bytearray(ctypes.c_int32(container))
    try:
        call(group, uapi.GROUP_SET_CONTAINER, descriptor)
    except OSError as error:
        # iommu_group_claim_dma_owner(): a driver has just been bound to a member.
        if error.errno == errno.EPERM:
            raise not_viable(paths, bdf, number) from error
        raise refused(f"IOMMU group {number} cannot join a container", error) from error
    try:
        call(container, uapi.SET_IOMMU, uapi.TYPE1V2_IOMMU)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise no_isolation(paths, bdf, _unsafe_module(paths)) from error
        raise refused(f"the IOMMU cannot be set up for {bdf}", error) from error


def device_fd(paths: Paths, bdf: str, group: int, token: str | None = None) -> int:
    """Return the descriptor of a function whose group is in a container."""
    name = f"{bdf} vf_token={token}" if token else bdf  # vfio_pci_core_match()
    try:
        return call(group, uapi.GROUP_GET_DEVICE_FD, bytearray(name.encode() + b"\0"))
    except OSError as error:
        if error.errno == errno.EPERM:  # iommufd as the container checks here
            raise no_isolation(paths, bdf, _unsafe_module(paths)) from error
        raise not_given(paths, bdf, error, token) from error


def _unsafe_module(paths: Paths) -> str:
    # vfio_iommu_type1_attach_group() in drivers/vfio/vfio_iommu_type1.c; where iommufd provides
    # /dev/vfio/vfio, the parameter of the same name is iommufd's.
    there = (paths.sys / "module" / "vfio_iommu_type1").exists()
    return "vfio_iommu_type1" if there else "iommufd"
