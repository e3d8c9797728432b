"""The memory of a BAR, and the BAR's view of it.

A client may have mapped the BAR, so its view stays in one file. When the controller redirects the
BAR, the endpoint's memory is moved out of that file and replaced by the new view; when the BAR
shows its memory again, it is moved back. Files are sparse: only written pages take memory, however
large the BAR.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator, Sequence

from rcdrv.device import sealed_memory
from rcdrv.mmio import MappedWindow

STRAIGHT = (0,)
"""The BAR shows its memory as it is."""

REGISTERS = ()
"""The BAR shows none of its memory."""

_CHUNK = 1 << 20


class BarMemory:
    """``size`` bytes of endpoint memory behind BAR ``index``."""

    def __init__(self, index: int, size: int) -> None:
        self.size = size
        self._length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = sealed_memory(f"rcdrv-bar{index}", self._length)
        """File of the BAR's view, which the client maps."""
        self._view = mmap.mmap(self.fd, self._length)
        self.window = MappedWindow(self._view, size, f"BAR{index}", plain=True)
        """The same memory, for accesses by the endpoint's processor."""
        self.order: tuple[int, ...] = STRAIGHT
        """Part of the memory that each equal part of the BAR shows; :data:`REGISTERS`: none."""
        # The endpoint's memory while the view differs from it.
        self._store = -1

    # -- accesses that arrive as messages ---------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        return self._view[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        self._view[offset : offset + len(data)] = data

    # -- what the BAR shows -----------------------------------------------------------------

    def show(self, order: Sequence[int]) -> int | None:
        """Let equal part i of the BAR show part ``order[i]`` of the memory, or none of it.

        If a BAR shows registers, its mapped part reads zero.

        :returns: the offset of the first byte written while the BAR showed registers, if any
        """
        if tuple(order) == self.order:
            return None
        stray = self._save()
        self.order = tuple(order)
        self._load()
        return stray

    def _save(self) -> int | None:
        """Update the endpoint's memory with the writes into the view."""
        if self.order == REGISTERS:
            return _first_nonzero(self.fd, self.size)
        if self._store < 0:
            self._store = sealed_memory("rcdrv-hidden", self._length)
        for view, memory, size in self._parts():
            _copy(self.fd, view, self._store, memory, size)
        return None

    def _load(self) -> None:
        # Punches holes, which frees the pages and makes them read zero.
        self._view.madvise(mmap.MADV_REMOVE)
        for view, memory, size in self._parts():
            _copy(self._store, memory, self.fd, view, size)
        if self.order == STRAIGHT:
            os.close(self._store)
            self._store = -1

    def _parts(self) -> Iterator[tuple[int, int, int]]:
        """Yield (offset in the BAR, offset in the memory, size) of each part."""
        if self.order:
            size = self.size // len(self.order)
            for index, part in enumerate(self.order):
                yield index * size, part * size, size

    def forget(self) -> None:
        """Free the endpoint's memory, which reads zero when it is shown again."""
        if self._store >= 0:
            os.close(self._store)
            self._store = -1
        self._view.madvise(mmap.MADV_REMOVE)
        self.order = STRAIGHT

    def fill(self, offset: int, size: int, value: int) -> None:
        """Fill endpoint memory with the byte ``value``, wherever the BAR shows it now."""
        if self._store >= 0:
            _fill(self._store, offset, size, value)
        for view, memory, length in self._parts():
            first, end = max(offset, memory), min(offset + size, memory + length)
            if first < end:
                _fill(self.fd, view + first - memory, end - first, value)

    def close(self) -> None:
        """Free the memory. Clients keep their mappings."""
        self.window.close()
        os.close(self.fd)
        if self._store >= 0:
            os.close(self._store)


def _data(fd: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of all data in a sparse file that may differ from zero."""
    with contextlib.suppress(OSError):
        # ENXIO: no data from here on.
        while start < end:
            start = os.lseek(fd, start, os.SEEK_DATA)
            hole = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            while start < hole:
                chunk = os.pread(fd, min(hole - start, _CHUNK), start)
                yield start, chunk
                start += len(chunk)


def _copy(source: int, start: int, target: int, to: int, size: int) -> None:
    """Copy between two files; the target there reads zero, or has the same holes."""
    for offset, chunk in _data(source, start, start + size):
        _write_all(target, chunk, to + offset - start)


def _fill(fd: int, offset: int, size: int, value: int) -> None:
    chunk = bytes([value]) * min(size, _CHUNK)
    for start in range(offset, offset + size, _CHUNK):
        _write_all(fd, chunk[: offset + size - start], start)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    if os.pwrite(fd, data, offset) != len(data):
        raise OSError(errno.ENOSPC, "no memory left for what a BAR holds")


def _first_nonzero(fd: int, size: int) -> int | None:
    for offset, chunk in _data(fd, 0, size):
        rest = chunk.lstrip(b"\0")
        if rest:
            return offset + len(chunk) - len(rest)
    return None
