"""The noiommu backend: VFIO for a function without an IOMMU. Never chosen by default.

DMA uses physical addresses, so the function can reach all memory of this host, and the kernel is
tainted.

Since Linux 7.3 the function has a node of its own, ``noiommu-vfio<n>``, and iommufd pins memory and
reports its physical address. Earlier kernels open it by ``/dev/vfio/noiommu-<group>``; memory then
consists of huge pages, which the kernel does not move, and its address is read from the page map.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from rcdrv.device import PhysicalDma
from rcdrv.errors import HostError, UsageError
from rcdrv.record import mutable_record
from rcdrv.sysfs import (
    DRIVER,
    Paths,
    check_bound,
    check_present,
    device_name,
    group_of,
    handover_steps,
    has_capability,
    is_noiommu,
    text_of,
)
from rcdrv.vfio import uapi
from rcdrv.vfio.device import VfioDevice
from rcdrv.vfio.group import Container, check_container, device_fd
from rcdrv.vfio.ioctl import call
from rcdrv.vfio.iommufd import Ioas, attach
from rcdrv.vfio.refusals import open_node, refused

_SYS_RAWIO = 17  # the number of a capability
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst

Locate = Callable[[mmap.mmap], tuple[int, int]]
"""Returns the physical address of memory, and the number of contiguous bytes from there."""


@mutable_record
class _Block:
    """Contiguous memory, held by its file; each use has its own mapping."""

    fd: int
    size: int
    address: int
    lent: bool = True


class PhysicalMemory:
    """Memory with physical addresses: an AddressSpace without translation.

    Freed buffers stay reserved for further buffers until close, so that a late write of the
    endpoint hits no memory of another process.

    :param close: called last
    :param huge_only: use huge pages for all memory
    """

    def __init__(self, locate: Locate, close: Callable[[], None], *, huge_only: bool) -> None:
        self._locate = locate
        self._close: Callable[[], None] | None = close
        self._huge_only = huge_only
        self._blocks: list[_Block] = []

    def ranges(self) -> Sequence[tuple[int, int]]:
        return [(0, (1 << 64) - 1)]  # the kernel chooses among them

    def map(self, iova: int, address: int, size: int) -> None:
        raise UsageError("without an IOMMU no address can be chosen: use dma_allocate")

    def allocate(self, size: int, align: int, limit: int) -> tuple[int, mmap.mmap]:
        """Return the physical address of zeroed, contiguous memory, and a mapping of it.

        See :meth:`PhysicalDma.dma_allocate`.
        """
        for block in self._blocks:
            fits = block.size >= size and block.address % align == 0
            if not block.lent and fits and block.address + block.size <= limit:
                memory = mmap.mmap(block.fd, block.size)
                memory[:] = bytes(block.size)
                block.lent = True
                return block.address, memory
        # Single pages give page alignment only.
        if self._huge_only or max(size, align) > mmap.PAGESIZE:
            return self._new(size, align, limit, huge_page_size())
        return self._new(size, align, limit, mmap.PAGESIZE)

    def _new(self, size: int, align: int, limit: int, page: int) -> tuple[int, mmap.mmap]:
        size = -(-size // page) * page
        with contextlib.ExitStack() as undo:
            huge = page > mmap.PAGESIZE
            try:
                fd = os.memfd_create("rcdrv-dma", os.MFD_CLOEXEC | (os.MFD_HUGETLB if huge else 0))
                undo.callback(os.close, fd)
                os.ftruncate(fd, size)
                memory = mmap.mmap(fd, size)
            except OSError as error:
                raise _no_memory(size, page, error) from error
            undo.callback(memory.close)
            for offset in range(0, size, page):
                memory[offset] = 0  # allocates the page
            address, contiguous = self._locate(memory)
            if contiguous < size:
                raise HostError(
                    f"no {size:#x} bytes of contiguous memory for DMA: only {contiguous:#x}",
                    hint=f"use at most {page:#x}, or larger huge pages, on the kernel command line:"
                    " default_hugepagesz=1G hugepages=2",
                )
            if address % align or address + size > limit:
                raise HostError(
                    f"the memory for DMA is at {address:#x}, and not below {limit:#x} at a multiple"
                    f" of {align:#x}",
                    hint="the endpoint requires that, and only an IOMMU could move the memory",
                )
            undo.pop_all()
        self._blocks.append(_Block(fd, size, address))
        return address, memory

    def unmap(self, iova: int, size: int) -> None:
        """Free a buffer for reuse, given exactly its numbers."""
        for block in self._blocks:
            if (block.address, block.size, block.lent) == (iova, size, True):
                block.lent = False
                return
        raise UsageError(f"no DMA buffer of {size:#x} bytes at {iova:#x}")

    def close(self) -> None:
        close, self._close = self._close, None
        if close is None:
            return
        for block in self._blocks:
            os.close(block.fd)
        close()


class NoIommuDevice(VfioDevice, PhysicalDma):
    """A :class:`VfioDevice` without an IOMMU."""

    def __init__(self, address: str, fd: int, memory: PhysicalMemory) -> None:
        super().__init__(address, "noiommu", fd, memory)
        self._memory = memory

    def dma_allocate(self, size: int, align: int, limit: int) -> tuple[int, mmap.mmap]:
        return self._memory.allocate(size, align, limit)


def open_noiommu(bdf: str, paths: Paths, token: str | None = None) -> NoIommuDevice:
    """Open a PCI function without an IOMMU; log a warning, by default on stderr."""
    check_present(paths, bdf)
    group, name = group_of(paths, bdf), device_name(paths, bdf)
    if group is not None and not is_noiommu(paths, group):
        raise HostError(
            f"{bdf} is behind an IOMMU, so the noiommu backend is not for it",
            hint="unset RCDRV_BACKEND: another backend works here, and is safer",
        )
    if group is None and name is None:
        raise _not_enabled(paths, bdf)
    check_bound(paths, bdf)
    if not has_capability(_SYS_RAWIO):
        raise HostError(
            f"{bdf}: only root may use it, as it has no IOMMU",
            hint="run as root (CAP_SYS_RAWIO)",
        )
    if name is not None and paths.iommufd_node.exists():
        device = open_by_node(bdf, name, paths, token)
    else:
        device = open_by_group(bdf, str(group), paths, token)
    logging.getLogger(__name__).warning(
        "rcdrv: warning: %s has no IOMMU: it can read and write all of this host's memory",
        bdf,
    )
    return device


def open_by_node(bdf: str, name: str, paths: Paths, token: str | None = None) -> NoIommuDevice:
    """Open a function by its own node; iommufd pins its memory (since Linux 7.3)."""
    node = paths.device_node(name)
    with contextlib.ExitStack() as undo:
        ioas = Ioas(open_node(paths, bdf, paths.iommufd_node, undo))
        device = open_node(paths, bdf, node, undo)
        attach(paths, bdf, node, device, ioas, token)

        def locate(memory: mmap.mmap) -> tuple[int, int]:
            iova = ioas.map_anywhere(_address(memory), len(memory))
            return ioas.physical(iova, len(memory))

        memory = PhysicalMemory(locate, ioas.close, huge_only=False)
        opened = NoIommuDevice(bdf, device, memory)
        undo.pop_all()
    return opened


def open_by_group(bdf: str, group: str, paths: Paths, token: str | None = None) -> NoIommuDevice:
    """Open a function by the group that VFIO created for it."""
    with contextlib.ExitStack() as undo:
        container = open_node(paths, bdf, paths.container_node, undo)
        check_container(container, uapi.NOIOMMU_IOMMU)
        group_fd = open_node(paths, bdf, paths.group_node(f"noiommu-{group}"), undo)
        try:
            call(group_fd, uapi.GROUP_SET_CONTAINER, bytearray(ctypes.c_int32(container)))
            call(container, uapi.SET_IOMMU, uapi.NOIOMMU_IOMMU)
        except OSError as error:
            raise refused(f"{bdf} cannot be opened without an IOMMU", error) from error
        device = device_fd(paths, bdf, group_fd, token)
        undo.callback(os.close, device)
        both = Container(container, group_fd)
        memory = PhysicalMemory(look_up, both.close, huge_only=True)
        opened = NoIommuDevice(bdf, device, memory)
        undo.pop_all()
    return opened


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def look_up(memory: mmap.mmap) -> tuple[int, int]:
    """Return the physical location of memory, from the page map of this process.

    :returns: (address, contiguous bytes from there)
    :raises HostError: the kernel hides it
    """
    page = mmap.PAGESIZE
    count = len(memory) // page
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        entries = os.pread(pagemap.fileno(), 8 * count, _address(memory) // page * 8)
    frames = [
        entry & _FRAME if entry & _PRESENT else 0 for (entry,) in struct.iter_unpack("=Q", entries)
    ]
    if not frames or not frames[0]:
        raise HostError(
            "the kernel hides physical addresses (/proc/self/pagemap)",
            hint="run as root (CAP_SYS_ADMIN)",
        )
    contiguous = 1
    while contiguous < len(frames) and frames[contiguous] == frames[0] + contiguous:
        contiguous += 1
    return frames[0] * page, contiguous * page


def huge_page_size() -> int:
    """Return the size of this host's huge pages in bytes."""
    found = re.search(r"^Hugepagesize:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        raise HostError(
            "this kernel has no huge pages, which DMA without an IOMMU needs",
            hint="use a kernel with CONFIG_HUGETLBFS",
        )
    return int(found[1]) << 10


def _no_memory(size: int, page: int, error: OSError) -> HostError:
    if page == mmap.PAGESIZE:
        return refused(f"no {size:#x} bytes of memory for DMA", error)
    return HostError(
        f"DMA without an IOMMU needs huge pages, and {size // page} of {page >> 10} KiB are not"
        " free",
        hint="reserve some, as root: echo 8 > /proc/sys/vm/nr_hugepages",
    )


def _not_enabled(paths: Paths, bdf: str) -> HostError:
    """Return the error for a function without an IOMMU for which VFIO has no group."""
    problem = f"{bdf}: VFIO does not offer it without an IOMMU"
    steps = handover_steps(paths, bdf)
    parameter = paths.noiommu_parameter
    if text_of(parameter) == "Y":
        problem = f"{bdf} is not bound to {DRIVER}"
    elif parameter.exists():
        steps.insert(0, f"echo 1 > {parameter}")
    elif (paths.sys / "module/vfio").exists():
        return HostError(problem, hint="this kernel cannot: it lacks CONFIG_VFIO_NOIOMMU")
    else:
        steps.insert(0, "modprobe vfio enable_unsafe_noiommu_mode=1")
    return HostError(problem, hint="\n  ".join(["allow it, as root:", *steps]))
