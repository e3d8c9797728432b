"""The noiommu backend: VFIO for a function that no IOMMU stands in front of.

The addresses of its DMA are physical ones, so it can reach all of this host's memory, and the
kernel marks itself as tainted. It is used only when asked for.

Where the kernel can (Linux 7.3), the function is opened by its own node, ``noiommu-vfio<n>``, and
iommufd pins memory and says where it lies. Else it is opened by ``/dev/vfio/noiommu-<group>``, and
memory is made of huge pages, which the kernel does not move, and looked up in the page map.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
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
    is_noiommu,
)
from rcdrv.vfio import uapi
from rcdrv.vfio.device import VfioDevice
from rcdrv.vfio.group import Container, check_container, device_fd
from rcdrv.vfio.ioctl import call
from rcdrv.vfio.iommufd import Ioas, attach, bind
from rcdrv.vfio.refusals import in_use, not_given, open_node, refused, rivals

_CAP_SYS_RAWIO = 1 << 17  # as in the CapEff line of /proc/<pid>/status
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst

Locate = Callable[[mmap.mmap], tuple[int, int]]
"""Place of memory: its physical address, and the number of contiguous bytes from there."""


@mutable_record
class _Block:
    """Contiguous memory, kept by its file; each use of it has a mapping of its own."""

    fd: int
    size: int
    address: int
    lent: bool = True


class PhysicalMemory:
    """Memory that a device reaches by physical address: an AddressSpace that maps nothing.

    Memory that the device was told of stays reserved until close, for further buffers: a late write
    of the endpoint then hits no memory of another process.

    :param huge_only: all memory has to be of huge pages
    :param close: called last
    """

    def __init__(self, locate: Locate, close: Callable[[], None], *, huge_only: bool) -> None:
        self._locate = locate
        self._close: Callable[[], None] | None = close
        self._huge_only = huge_only
        self._blocks: list[_Block] = []

    def ranges(self) -> Sequence[tuple[int, int]]:
        """Return all addresses: the kernel decides which of them are memory."""
        return [(0, (1 << 64) - 1)]

    def map(self, iova: int, address: int, size: int) -> None:
        """Refused: there is nothing that could map memory to an address."""
        raise UsageError("without an IOMMU memory lies where it lies: use dma_allocate")

    def allocate(self, size: int, align: int, limit: int) -> tuple[int, mmap.mmap]:
        """Zeroed, contiguous memory of at least ``size`` bytes, and where it lies.

        :raises HostError: there is none
        """
        for block in self._blocks:
            fits = block.size >= size and block.address % align == 0
            if not block.lent and fits and block.address + block.size <= limit:
                memory = mmap.mmap(block.fd, block.size)
                memory[:] = bytes(block.size)
                block.lent = True
                return block.address, memory
        # The address of a page is good for page alignment only.
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
                memory[offset] = 0  # now it lies somewhere
            address, contiguous = self._locate(memory)
            if contiguous < size:
                raise HostError(
                    f"no {size:#x} bytes of contiguous memory for DMA: only {contiguous:#x}",
                    hint=f"up to {page:#x} always are; larger huge pages help, on the kernel "
                    "command line: default_hugepagesz=1G hugepages=2",
                )
            if address % align or address + size > limit:
                raise HostError(
                    f"the memory for DMA lies at {address:#x}: not below {limit:#x} at a multiple "
                    f"of {align:#x}",
                    hint="the endpoint asks for that, and without an IOMMU nothing can move it",
                )
            undo.pop_all()
        self._blocks.append(_Block(fd, size, address))
        return address, memory

    def unmap(self, iova: int, size: int) -> None:
        """Take memory back that was given to the device with these very numbers.

        :raises UsageError: there is none
        """
        for block in self._blocks:
            if (block.address, block.size, block.lent) == (iova, size, True):
                block.lent = False
                return
        raise UsageError(f"no DMA buffer of {size:#x} bytes at {iova:#x}")

    def close(self) -> None:
        """Free everything. Closing twice is harmless."""
        close, self._close = self._close, None
        if close is None:
            return
        for block in self._blocks:
            os.close(block.fd)
        close()


class NoIommuDevice(VfioDevice, PhysicalDma):
    """A PCI function that is reached without an IOMMU. See :class:`VfioDevice`."""

    def __init__(self, address: str, fd: int, memory: PhysicalMemory) -> None:
        super().__init__(address, "noiommu", fd, memory)
        self._memory = memory

    def dma_allocate(self, size: int, align: int, limit: int) -> tuple[int, mmap.mmap]:
        """See :class:`PhysicalDma`; :meth:`dma_unmap` gives the memory back."""
        return self._memory.allocate(size, align, limit)


def open_noiommu(bdf: str, paths: Paths, token: str | None = None) -> NoIommuDevice:
    """Open a PCI function, by its canonical address, without an IOMMU.

    Warns through :mod:`logging`, which without further ado is a line on stderr.

    :param token: the VF token, where the kernel wants one
    :raises HostError: something of the host is not ready; the message says what and the cure
    """
    check_present(paths, bdf)
    group, name = group_of(paths, bdf), device_name(paths, bdf)
    if group is not None and not is_noiommu(paths, group):
        raise HostError(
            f"{bdf} is behind an IOMMU, so the noiommu backend is not for it",
            hint="unset RCDRV_BACKEND: another backend is there, and safer",
        )
    if group is None and name is None:
        raise _not_enabled(paths, bdf)
    check_bound(paths, bdf)
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)
    if effective is None or not int(effective[1], 16) & _CAP_SYS_RAWIO:
        raise HostError(
            f"{bdf}: only root may use it, as no IOMMU is in front of it",
            hint="run as root (CAP_SYS_RAWIO)",
        )
    if name is not None and paths.iommufd_node.exists():
        device = open_by_node(bdf, name, paths, token)
    else:
        device = open_by_group(bdf, str(group), paths, token)
    logging.getLogger(__name__).warning(
        "rcdrv: warning: %s has no IOMMU in front: it can read and write all of this host's memory",
        bdf,
    )
    return device


def open_by_node(bdf: str, name: str, paths: Paths, token: str | None = None) -> NoIommuDevice:
    """Open a function by VFIO's name of it; iommufd pins its memory (Linux 7.3).

    :raises HostError: the kernel refuses
    """
    node = paths.device_node(name)
    with contextlib.ExitStack() as undo:
        iommufd = open_node(paths, bdf, paths.iommufd_node, undo)
        ioas = Ioas(iommufd)
        device = open_node(paths, bdf, node, undo)
        try:
            bind(device, iommufd, token)
        except OSError as error:
            if error.errno == errno.EACCES or (error.errno == errno.EINVAL and token):
                raise not_given(paths, bdf, error, token) from error
            if error.errno in (errno.EINVAL, errno.EBUSY) or rivals(paths, bdf):
                raise in_use(paths, bdf, node) from error
            raise refused(f"{bdf} cannot be opened", error) from error
        attach(bdf, device, ioas)

        def locate(memory: mmap.mmap) -> tuple[int, int]:
            iova = ioas.map_anywhere(_address(memory), len(memory))
            return ioas.physical(iova, len(memory))

        memory = PhysicalMemory(locate, ioas.close, huge_only=False)
        opened = NoIommuDevice(bdf, device, memory)
        undo.pop_all()
    return opened


def open_by_group(bdf: str, group: str, paths: Paths, token: str | None = None) -> NoIommuDevice:
    """Open a function by the group that VFIO made up for it.

    :raises HostError: the kernel refuses
    """
    with contextlib.ExitStack() as undo:
        container = open_node(paths, bdf, paths.container_node, undo)
        check_container(container, uapi.NOIOMMU_IOMMU)
        group_fd = open_node(paths, bdf, paths.group_node(f"noiommu-{group}"), undo)
        try:
            call(group_fd, uapi.GROUP_SET_CONTAINER, bytearray(ctypes.c_int32(container)))
            call(container, uapi.SET_IOMMU, uapi.NOIOMMU_IOMMU)
        except OSError as error:
            raise refused(f"{bdf} cannot be had without an IOMMU", error) from error
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
    """Physical addresses of memory, by this process's page map.

    :raises HostError: the kernel does not tell
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
            "the kernel does not tell where memory lies (/proc/self/pagemap)",
            hint="run as root (CAP_SYS_ADMIN)",
        )
    contiguous = 1
    while contiguous < len(frames) and frames[contiguous] == frames[0] + contiguous:
        contiguous += 1
    return frames[0] * page, contiguous * page


def huge_page_size() -> int:
    """The size of this host's huge pages, in bytes.

    :raises HostError: the kernel has none
    """
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
        f"DMA without an IOMMU needs huge pages, and {size // page} of {page >> 10} KiB cannot be "
        "had",
        hint="reserve some, as root: echo 8 > /proc/sys/vm/nr_hugepages",
    )


def _not_enabled(paths: Paths, bdf: str) -> HostError:
    """Return the error for a function without an IOMMU for which VFIO has no group."""
    module = paths.sys / "module" / "vfio"
    parameter = module / "parameters" / "enable_unsafe_noiommu_mode"
    problem = f"{bdf}: VFIO does not offer it without an IOMMU"
    steps = handover_steps(paths, bdf)
    try:
        if parameter.read_text().strip() == "Y":
            problem = f"{bdf} is not bound to {DRIVER}"
        else:
            steps.insert(0, f"echo 1 > {parameter}")
    except OSError:
        if module.exists():
            return HostError(problem, hint="this kernel cannot: it lacks CONFIG_VFIO_NOIOMMU")
        steps.insert(0, "modprobe vfio enable_unsafe_noiommu_mode=1")
    return HostError(problem, hint="\n  ".join(["allow it, as root:", *steps]))
