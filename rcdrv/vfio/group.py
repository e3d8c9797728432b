"""The group backend: ``/dev/vfio/<group>`` in a container with a type 1 IOMMU.

Every kernel with VFIO has it. A group is what the IOMMU can keep apart; a container is an address
space that groups are put into. rcdrv puts one group into one container.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rcdrv.errors import HostError, UsageError
from rcdrv.vfio import uapi
from rcdrv.vfio.device import VfioDevice
from rcdrv.vfio.ioctl import call, capabilities, pairs, query
from rcdrv.vfio.sysfs import DRIVER, Paths, group_members, holders, iommu_group

_CAP_IPC_LOCK = 1 << 14  # as in the CapEff line of /proc/<pid>/status


class Container:
    """A container with one group in it: an :class:`~rcdrv.vfio.device.AddressSpace`.

    Owns both descriptors.
    """

    def __init__(self, container: int, group: int) -> None:
        self._container = container
        self._group = group

    def ranges(self) -> Sequence[tuple[int, int]]:
        """The usable IOVAs, as ascending (first, last) pairs, both inclusive.

        :raises HostError: the kernel, older than 5.4, does not tell them
        """
        body = self._capability(uapi.IommuCap.IOVA_RANGE)
        if body is None:
            raise HostError(
                "this kernel does not tell which DMA addresses are usable",
                hint="Linux 5.4 and later do",
            )
        return sorted(pairs(body))

    def mappings_left(self) -> int | None:
        """How many more mappings can be made; None if the kernel (before 5.10) does not tell."""
        body = self._capability(uapi.IommuCap.DMA_AVAIL)
        return None if body is None else int.from_bytes(body[:4], sys.byteorder)

    def _capability(self, wanted: uapi.IommuCap) -> bytes | None:
        try:
            info, answer = query(self._container, uapi.IOMMU_GET_INFO, uapi.IommuInfo())
        except OSError as error:
            raise _refused("VFIO does not describe the IOMMU", error) from error
        if info.flags & uapi.IommuFlag.CAPS:
            for identity, body in capabilities(answer, ctypes.sizeof(info), info.cap_offset):
                if identity == wanted:
                    return body
        return None

    def map(self, iova: int, address: int, size: int) -> None:
        """Let the device read and write ``size`` bytes of this process from ``address`` on.

        :param iova: where the device finds them; like the others a multiple of the page size
        :raises UsageError: not whole pages, outside :meth:`ranges`, or mapped already
        :raises HostError: the memory may not be locked, or the IOMMU has no room
        """
        flags = uapi.DmaFlag.READ | uapi.DmaFlag.WRITE
        request = uapi.DmaMap(ctypes.sizeof(uapi.DmaMap), flags, address, iova, size)
        try:
            call(self._container, uapi.IOMMU_MAP_DMA, request)
        except OSError as error:
            raise _map_failure(iova, size, error) from error

    def unmap(self, iova: int, size: int) -> None:
        """Take a mapping made with these very numbers away.

        :raises UsageError: there is none
        """
        request = uapi.DmaUnmap(ctypes.sizeof(uapi.DmaUnmap), 0, iova, size)
        try:
            call(self._container, uapi.IOMMU_UNMAP_DMA, request)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it would cut a mapping in two
                raise _refused(f"cannot unmap {size:#x} bytes at IOVA {iova:#x}", error) from error
            request.size = 0
        if request.size != size:
            raise UsageError(f"no DMA mapping of {size:#x} bytes at IOVA {iova:#x}")

    def close(self) -> None:
        """Close both descriptors; the kernel takes every mapping away. Twice is harmless."""
        descriptors = [fd for fd in (self._group, self._container) if fd >= 0]
        self._group = self._container = -1
        for fd in descriptors:
            os.close(fd)


def open_group(bdf: str, paths: Paths) -> VfioDevice:
    """Open a PCI function, by its canonical address, through its IOMMU group.

    :raises HostError: something of the host is not ready; the message says what and the cure
    """
    number = iommu_group(paths, bdf)
    node = paths.group_node(number)
    with contextlib.ExitStack() as undo:
        container = _open(paths, paths.container_node, undo)
        _check_container(container)
        group = _open(paths, node, undo)
        _check_viable(paths, bdf, number, group)
        _attach(paths, bdf, number, group, container)
        device = _device_fd(paths, bdf, group)
        undo.callback(os.close, device)
        opened = VfioDevice(bdf, "group", device, Container(container, group))
        undo.pop_all()
    return opened


def _open(paths: Paths, node: Path, undo: contextlib.ExitStack) -> int:
    try:
        fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise cannot_open(paths, node, error) from error
    undo.callback(os.close, fd)
    return fd


def cannot_open(paths: Paths, node: Path, error: OSError) -> HostError:
    """What a failed open(2) of a VFIO node means, with its cure."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return HostError(
            f"{node}: you may not open it",
            hint="install udev/70-rcdrv.rules and join the group rcdrv, or run as root",
        )
    if error.errno == errno.EBUSY:
        who = ", ".join(holders(paths, node)) or f"another process (as root: fuser -v {node})"
        return HostError(f"{node} is in use by {who}", hint="only one process can have it: end it")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return HostError(
            f"{node}: there is no such device",
            hint=f"modprobe {DRIVER} vfio_iommu_type1; in a container, pass {node.parent} in",
        )
    return _refused(f"cannot open {node}", error)


def _check_container(container: int) -> None:
    try:
        version = call(container, uapi.GET_API_VERSION)
        type1 = call(container, uapi.CHECK_EXTENSION, uapi.TYPE1V2_IOMMU)
    except OSError as error:
        raise _refused("the VFIO container does not answer", error) from error
    if version != uapi.API_VERSION:
        raise HostError(f"the kernel's VFIO has version {version}; rcdrv knows {uapi.API_VERSION}")
    if not type1:
        raise HostError(
            "the kernel's VFIO has no type 1 IOMMU driver", hint="modprobe vfio_iommu_type1"
        )


def _check_viable(paths: Paths, bdf: str, number: str, group: int) -> None:
    status = uapi.GroupStatus(ctypes.sizeof(uapi.GroupStatus))
    try:
        call(group, uapi.GROUP_GET_STATUS, status)
    except OSError as error:
        raise _refused(f"IOMMU group {number} does not answer", error) from error
    if not status.flags & uapi.GroupFlag.VIABLE:
        raise not_viable(paths, bdf, number)


def not_viable(paths: Paths, bdf: str, number: str) -> HostError:
    """Why an IOMMU group cannot be had: its other members, with their drivers."""
    others = [
        f"{member} ({driver or 'no driver'})"
        for member, driver in group_members(paths, number)
        if member != bdf
    ]
    return HostError(
        f"{bdf} shares IOMMU group {number} with {', '.join(others) or 'nothing that sysfs shows'}",
        hint=f"every member has to be bound to {DRIVER}, or to no driver: hand the "
        "others over too, or move the endpoint to a slot with a group of its own",
    )


def _attach(paths: Paths, bdf: str, number: str, group: int, container: int) -> None:
    descriptor = bytearray(ctypes.c_int32(container))
    try:
        call(group, uapi.GROUP_SET_CONTAINER, descriptor)
    except OSError as error:
        # iommu_group_claim_dma_owner(): a driver came to a member just now.
        if error.errno == errno.EPERM:
            raise not_viable(paths, bdf, number) from error
        raise _refused(f"IOMMU group {number} cannot join a container", error) from error
    try:
        call(container, uapi.SET_IOMMU, uapi.TYPE1V2_IOMMU)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise no_isolation(paths, bdf) from error
        raise _refused(f"the IOMMU cannot be set up for {bdf}", error) from error


def no_isolation(paths: Paths, bdf: str) -> HostError:
    """VFIO does not let a device write interrupts at will: there is no interrupt remapping."""
    # vfio_iommu_type1_attach_group() in drivers/vfio/vfio_iommu_type1.c; where iommufd provides
    # /dev/vfio/vfio, the parameter of the same name is iommufd's.
    modules = paths.sys / "module"
    module = "vfio_iommu_type1" if (modules / "vfio_iommu_type1").exists() else "iommufd"
    return HostError(
        f"{bdf}: the kernel does not isolate its interrupts, so VFIO refuses it",
        hint="turn interrupt remapping on (firmware: VT-d or AMD-Vi; QEMU: intremap=on), or accept "
        "that the endpoint could forge interrupts, as root:\n"
        f"  echo 1 > {modules}/{module}/parameters/allow_unsafe_interrupts",
    )


def _device_fd(paths: Paths, bdf: str, group: int) -> int:
    try:
        return call(group, uapi.GROUP_GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"))
    except OSError as error:
        if error.errno == errno.EPERM:  # iommufd as the container checks here
            raise no_isolation(paths, bdf) from error
        if error.errno == errno.ENODEV:
            raise HostError(f"{bdf} has just lost its driver {DRIVER}") from error
        if error.errno == errno.EAGAIN:
            # vfio_pci_core_enable(): somebody else holds the device lock, for a reset perhaps.
            raise HostError(
                f"{bdf}: the kernel is busy with the device", hint="try again"
            ) from error
        raise _refused(f"{bdf} cannot be opened", error) from error


def _map_failure(iova: int, size: int, error: OSError) -> HostError | UsageError:
    what = f"cannot map {size:#x} bytes at IOVA {iova:#x}"
    if error.errno == errno.ENOMEM:
        return _locked_memory(what, size, error)
    if error.errno == errno.ENOSPC:
        return HostError(
            f"{what}: there are too many DMA mappings",
            hint="the limit is /sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
        )
    if error.errno == errno.EEXIST:
        return UsageError(f"{what}: something is mapped there")
    if error.errno in (errno.EINVAL, errno.EOVERFLOW):
        return UsageError(f"{what}: not whole pages, or outside the usable addresses")
    return _refused(what, error)


def _locked_memory(what: str, size: int, error: OSError) -> HostError:
    # Memory that a device reaches cannot be swapped: it counts as locked, in locked_vm.
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    needed = (int(status["VmLck"].split()[0]) << 10) + size
    unlimited = limit == resource.RLIM_INFINITY or int(status["CapEff"], 16) & _CAP_IPC_LOCK
    if unlimited or needed <= limit:
        return _refused(what, error)
    return HostError(
        f"{what}: {needed >> 10} KiB would be locked, and you may lock {limit >> 10} KiB",
        hint=f"ulimit -l {needed >> 10}, after raising memlock in /etc/security/limits.conf "
        "(LimitMEMLOCK= for a service); or run as root",
    )


def _refused(what: str, error: OSError) -> HostError:
    return HostError(
        f"{what}: {os.strerror(error.errno or 0)}", hint="the kernel's log (dmesg) may say why"
    )
