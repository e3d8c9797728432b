"""The client's memory as the server reaches it: what DMA_MAP announced, by bus address."""

from __future__ import annotations

import bisect
import errno
import fcntl
import mmap
import os
import stat

from rcdrv.record import record
from rcdrv.vfio_user import wire
from rcdrv.vfio_user.served import DmaFault
from rcdrv.vfio_user.wire import DmaFlag, Refused

_ADDRESS_END = 1 << 64


class SharedFile:
    """A file that holds client memory, mapped once however many DMA mappings lie in it.

    With a vIOMMU, QEMU maps guest memory page by page, 256 descriptors of one memfd for 1 MiB.
    Python's mmap keeps a descriptor of its own open, so a mapping for each of them would run
    into RLIMIT_NOFILE; one for the whole file does not.
    """

    def __init__(self, key: tuple[int, int, int], fd: int) -> None:
        self.key = key
        self.users = 0
        writable = key[2] == os.O_RDWR
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self._memory = mmap.mmap(fd, 0, mmap.MAP_SHARED, access)
        except OSError as error:
            raise Refused(error.errno or errno.EINVAL) from error
        except ValueError as error:  # an empty file
            raise Refused(errno.EINVAL) from error

    def holds(self, offset: int, size: int) -> bool:
        """Whether these bytes are mapped and still in the file: beyond its end is SIGBUS."""
        return offset + size <= min(len(self._memory), self._memory.size())

    def read(self, offset: int, size: int) -> bytes:
        if not self.holds(offset, size):
            raise DmaFault("the client has truncated its memory")
        return self._memory[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        if not self.holds(offset, len(data)):
            raise DmaFault("the client has truncated its memory")
        self._memory[offset : offset + len(data)] = data

    def close(self) -> None:
        self._memory.close()


@record
class Mapping:
    """``size`` bytes at ``address``, from ``offset`` of ``file``; None: reached by messages."""

    address: int
    size: int
    flags: DmaFlag
    file: SharedFile | None
    offset: int

    @property
    def end(self) -> int:
        return self.address + self.size


class DmaSpace:
    """All mappings of one client, without overlap."""

    def __init__(self, limit: int = wire.MAX_DMA_MAPS) -> None:
        self._limit = limit
        self._starts: list[int] = []
        self._mappings: dict[int, Mapping] = {}
        self._files: dict[tuple[int, int, int], SharedFile] = {}

    def map(self, request: wire.DmaMap, fd: int) -> None:
        """Add a mapping; ``fd`` is -1 without a file and stays the caller's.

        :raises Refused: the numbers or the file make no sense (EINVAL, or what mmap says),
            it lies over another mapping (EEXIST), there are too many (ENOSPC)
        """
        address, size, flags = request.address, request.size, request.flags
        if not size or (address | size) % wire.PAGE_SIZE or address + size > _ADDRESS_END:
            raise Refused(errno.EINVAL)
        if not 0 < flags <= DmaFlag.READ | DmaFlag.WRITE:
            raise Refused(errno.EINVAL)
        if self._overlapping(address, size):
            raise Refused(errno.EEXIST)
        if len(self._starts) >= self._limit:
            raise Refused(errno.ENOSPC)
        file = self._share(fd, request) if fd >= 0 else None
        mapping = Mapping(address, size, DmaFlag(flags), file, request.offset)
        bisect.insort(self._starts, address)
        self._mappings[address] = mapping

    def _share(self, fd: int, request: wire.DmaMap) -> SharedFile:
        status = os.fstat(fd)
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if not stat.S_ISREG(status.st_mode):
            raise Refused(errno.EINVAL)
        if access == os.O_WRONLY or (request.flags & DmaFlag.WRITE and access != os.O_RDWR):
            raise Refused(errno.EACCES)
        key = (status.st_dev, status.st_ino, access)
        file = self._files.get(key)
        if file is None or not file.holds(request.offset, request.size):
            # A new file, or one that grew since: older mappings keep the shorter one.
            file = SharedFile(key, fd)
            if not file.holds(request.offset, request.size):
                file.close()
                raise Refused(errno.EINVAL)
            self._files[key] = file
        file.users += 1
        return file

    def unmap(self, request: wire.DmaUnmap) -> None:
        """Take away all mappings inside a range, or every one with UNMAP_ALL.

        The specification asks for the very numbers of one mapping; as in VFIO type 1 a range
        may cover several, but cuts none.

        :raises Refused: a bad flag or a cut (EINVAL), nothing is mapped there (ENOENT), a dirty
            bitmap was asked for (ENOTSUP)
        """
        address, size = request.address, request.size
        if request.flags & wire.UNMAP_GET_DIRTY_BITMAP:
            raise Refused(errno.ENOTSUP)
        if request.flags == wire.UNMAP_ALL:
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

    def _overlapping(self, address: int, size: int) -> list[Mapping]:
        first = bisect.bisect_right(self._starts, address)
        if first and self._mappings[self._starts[first - 1]].end > address:
            first -= 1
        last = bisect.bisect_left(self._starts, address + size)
        return [self._mappings[start] for start in self._starts[first:last]]

    def _release(self, mapping: Mapping) -> None:
        file = mapping.file
        if file is None:
            return
        file.users -= 1
        if not file.users:
            if self._files.get(file.key) is file:
                del self._files[file.key]
            file.close()

    def clear(self) -> None:
        """Take away every mapping."""
        mappings, self._mappings, self._starts = self._mappings, {}, []
        for mapping in mappings.values():
            self._release(mapping)

    def find(self, address: int, size: int, access: DmaFlag) -> tuple[Mapping, int]:
        """The mapping that holds ``address``, and how many of the ``size`` bytes it holds.

        :raises DmaFault: it is not mapped, or not for this access
        """
        index = bisect.bisect_right(self._starts, address) - 1
        mapping = self._mappings[self._starts[index]] if index >= 0 else None
        if mapping is None or mapping.end <= address:
            raise DmaFault(f"the client has mapped nothing at {address:#x}")
        if not mapping.flags & access:
            raise DmaFault(f"the client's memory at {address:#x} is not for {access.name}")
        return mapping, min(size, mapping.end - address)

    def check(self, address: int, size: int, access: DmaFlag) -> None:
        """Raise :class:`DmaFault` unless all of the range can be reached."""
        while size > 0:
            _, length = self.find(address, size, access)
            address, size = address + length, size - length
