"""Memory of the client as the server accesses it: the mappings of DMA_MAP, by bus address."""

from __future__ import annotations

import bisect
import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from rcdrv.device import DmaFlag, is_sealed
from rcdrv.vfio_user.messages import UNMAP_ALL, UNMAP_GET_DIRTY_BITMAP, DmaMap, DmaUnmap
from rcdrv.vfio_user.served import DmaFault
from rcdrv.vfio_user.version import MAX_DMA_MAPS, PAGE_SIZE
from rcdrv.vfio_user.wire import Refused

_ADDRESS_END = 1 << 64


class SharedFile:
    """A file of client memory, with one descriptor for all DMA mappings in it.

    With a vIOMMU, QEMU maps guest memory page by page: 256 descriptors of one memfd for 1 MiB.

    The client may truncate the file at any time, or the file may be sparse on a full tmpfs. Access
    by pread(2) and pwrite(2) then fails; access through a mapping would raise SIGBUS.
    """

    def __init__(self, key: tuple[int, int, int], fd: int) -> None:
        self.key = key
        self.users = 0
        self.fd = os.dup(fd)
        self._mapping: mmap.mmap | None = None
        self._sealed: memoryview | None = None

    def view(self, offset: int, size: int) -> memoryview | None:
        """Return bytes of the file for direct access; None if it may shrink, or is read-only."""
        if self._sealed is None:
            if self.key[2] != os.O_RDWR or not is_sealed(self.fd):
                return None
            with contextlib.suppress(OSError, ValueError):  # F_SEAL_WRITE, no address space
                self._sealed = memoryview(mmap.mmap(self.fd, 0))
        if self._sealed is None or len(self._sealed) < offset + size:
            return None
        return self._sealed[offset : offset + size]

    def holds(self, offset: int, size: int) -> bool:
        """Return whether the file contains these bytes now."""
        return offset + size <= os.fstat(self.fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes of the file.

        :raises DmaFault: the file is shorter by now, or cannot be read
        """
        parts = []
        try:
            while size:
                parts.append(os.pread(self.fd, size, offset))
                if not parts[-1]:
                    raise DmaFault("the client has truncated its memory")
                offset, size = offset + len(parts[-1]), size - len(parts[-1])
        except OSError as error:
            raise DmaFault(f"the client's memory cannot be read: {error.strerror}") from error
        return b"".join(parts)  # a single part is not copied

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes of the file.

        :raises DmaFault: the file is shorter by now, or cannot be written
        """
        rest = memoryview(data)
        if not self.holds(offset, len(rest)):  # the write would extend it
            raise DmaFault("the client has truncated its memory")
        try:
            while rest:
                done = self._write(rest, offset)
                offset, rest = offset + done, rest[done:]
        except OSError as error:
            raise DmaFault(f"the client's memory cannot be written: {error.strerror}") from error

    def _write(self, data: memoryview, offset: int) -> int:
        if self._mapping is None:
            try:
                return os.pwrite(self.fd, data, offset)
            except OSError as error:
                # hugetlbfs files have no write operation (fs/hugetlbfs/inode.c).
                if error.errno != errno.EINVAL:
                    raise
        if self._mapping is None or len(self._mapping) < offset + len(data):
            self._mapping = _map_whole(self.fd)
        with (
            _scratch(data) as scratch,
            memoryview(self._mapping) as mapped,
            mapped[offset : offset + len(data)] as target,
        ):
            # A missing page fails the system call with EFAULT, without a signal.
            done = os.preadv(scratch, [target], 0)
        if not done:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return done

    def close(self) -> None:
        self._sealed = None  # unmapped with the last view
        if self._mapping is not None:
            self._mapping.close()
        os.close(self.fd)


def _map_whole(fd: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, 0)
    except ValueError as error:  # it is empty
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from error


@contextlib.contextmanager
def _scratch(data: memoryview) -> Iterator[int]:
    """Yield the descriptor of a temporary file with ``data``."""
    fd = os.memfd_create("rcdrv-scratch", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        yield fd
    finally:
        os.close(fd)


@dataclass(frozen=True)
class DmaMapping:
    """``size`` bytes at ``address``, from ``offset`` of ``file`` on; by messages if it is None."""

    address: int
    size: int
    readable: bool
    writable: bool
    file: SharedFile | None
    offset: int

    @property
    def end(self) -> int:
        return self.address + self.size


class DmaSpace:
    """The mappings of one client, without overlap."""

    def __init__(self, limit: int = MAX_DMA_MAPS) -> None:
        self._limit = limit
        self._starts: list[int] = []
        self._mappings: dict[int, DmaMapping] = {}
        self._files: dict[tuple[int, int, int], SharedFile] = {}

    def map(self, request: DmaMap, fd: int) -> None:
        """Add a mapping.

        :param fd: descriptor of the file, which stays the caller's; -1 if there is none
        :raises Refused: invalid numbers or file (EINVAL), no permission (EACCES), overlap with
            another mapping (EEXIST), too many mappings (ENOSPC)
        """
        address, size, flags = request.address, request.size, request.flags
        if not size or (address | size) % PAGE_SIZE or address + size > _ADDRESS_END:
            raise Refused(errno.EINVAL)
        if not 0 < flags <= DmaFlag.READ | DmaFlag.WRITE:
            raise Refused(errno.EINVAL)
        if self._overlapping(address, size):
            raise Refused(errno.EEXIST)
        if len(self._starts) >= self._limit:
            raise Refused(errno.ENOSPC)
        file = self._share(fd, request) if fd >= 0 else None
        readable, writable = bool(flags & DmaFlag.READ), bool(flags & DmaFlag.WRITE)
        mapping = DmaMapping(address, size, readable, writable, file, request.offset)
        bisect.insort(self._starts, address)
        self._mappings[address] = mapping

    def _share(self, fd: int, request: DmaMap) -> SharedFile:
        status = os.fstat(fd)
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if not stat.S_ISREG(status.st_mode):
            raise Refused(errno.EINVAL)
        if access == os.O_WRONLY or (request.flags & DmaFlag.WRITE and access != os.O_RDWR):
            raise Refused(errno.EACCES)
        key = (status.st_dev, status.st_ino, access)
        file = self._files.get(key)
        if request.offset + request.size > status.st_size:
            raise Refused(errno.EINVAL)
        if file is None:
            self._files[key] = file = SharedFile(key, fd)
        file.users += 1
        return file

    def unmap(self, request: DmaUnmap) -> None:
        """Remove the mappings within a range, or all mappings with UNMAP_ALL.

        The specification requires the exact numbers of one mapping. QEMU with a vIOMMU maps page by
        page, but unmaps by ranges of its guest: 256 mappings of 1 MiB in one message. So a range
        may cover several mappings, but not split any, as in VFIO type 1.

        :raises Refused: an invalid flag, or a mapping would be split (EINVAL), nothing is mapped
            there (ENOENT), a dirty bitmap is requested (ENOTSUP)
        """
        address, size = request.address, request.size
        if request.flags & UNMAP_GET_DIRTY_BITMAP:
            raise Refused(errno.ENOTSUP)
        if request.flags == UNMAP_ALL:
            if address or size:
                raise Refused(errno.EINVAL)
            self.clear()
            return
        if request.flags or not size or address + size > _ADDRESS_END:
            raise Refused(errno.EINVAL)
        found = self._overlapping(address, size)
        if not found:
            raise Refused(errno.ENOENT)
        if found[0].address < address or found[-1].end > address + size:
            raise Refused(errno.EINVAL)
        first = bisect.bisect_left(self._starts, address)
        del self._starts[first : first + len(found)]
        for mapping in found:
            self._release(self._mappings.pop(mapping.address))

    def _overlapping(self, address: int, size: int) -> list[DmaMapping]:
        first = bisect.bisect_right(self._starts, address)
        if first and self._mappings[self._starts[first - 1]].end > address:
            first -= 1
        last = bisect.bisect_left(self._starts, address + size)
        return [self._mappings[start] for start in self._starts[first:last]]

    def _release(self, mapping: DmaMapping) -> None:
        file = mapping.file
        if file is None:
            return
        file.users -= 1
        if not file.users:
            del self._files[file.key]
            file.close()

    def clear(self) -> None:
        """Remove every mapping."""
        mappings, self._mappings, self._starts = self._mappings, {}, []
        for mapping in mappings.values():
            self._release(mapping)

    def find(self, address: int, size: int, access: DmaFlag) -> tuple[SharedFile | None, int, int]:
        """Return where ``address`` is: the file (None: by messages), the offset in it, and how many
        of the ``size`` bytes the mapping contains.

        :raises DmaFault: the address is not mapped, or not for this access
        """
        index = bisect.bisect_right(self._starts, address) - 1
        mapping = self._mappings[self._starts[index]] if index >= 0 else None
        if mapping is None or mapping.end <= address:
            raise DmaFault(f"the client has mapped nothing at {address:#x}")
        if not (mapping.writable if access is DmaFlag.WRITE else mapping.readable):
            raise DmaFault(f"the client's mapping at {address:#x} does not permit {access.name}")
        offset = mapping.offset + address - mapping.address
        return mapping.file, offset, min(size, mapping.end - address)

    def check(self, address: int, size: int, access: DmaFlag) -> None:
        """Raise :class:`DmaFault` unless the whole range permits this access."""
        while size > 0:
            length = self.find(address, size, access)[2]
            address, size = address + length, size - length
