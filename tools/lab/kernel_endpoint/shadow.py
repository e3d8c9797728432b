"""Mappable memory of a BAR whose target the endpoint can change at any time.

A client keeps its mapping, so it cannot be the endpoint's memory. It is a copy of what the BAR
shows, updated when either side may have changed it: at accesses to the test registers, and when
the target changes.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable

from rcdrv.device import sealed_memory

Write = Callable[[int, bytes], None]


class Shadow:
    """A copy of ``size`` bytes in shared memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = sealed_memory("rcdrv-bar", size)
        self._map = mmap.mmap(self.fd, size)
        self._seen = bytes(size)  # contents after the last update
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        """Read as the root complex."""
        return self._map[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        """Write as the root complex."""
        self._map[offset : offset + len(data)] = data

    def push(self, write: Write) -> None:
        """Pass changes of the root complex to ``write``, page by page."""
        with self._lock:
            self._seen = self._update(self._map[:], write)

    def pull(self, now: bytes) -> None:
        """Apply changes of the endpoint, whose contents are ``now``."""
        with self._lock:
            self._seen = self._update(now, self.write)

    def show(self, now: bytes) -> None:
        """Replace the whole contents by ``now``."""
        with self._lock:
            self._map[:] = self._seen = now

    def _update(self, now: bytes, write: Write) -> bytes:
        seen = self._seen
        if now == seen:
            return seen
        known = bytearray(seen)
        for start in range(0, self.size, mmap.PAGESIZE):
            page = now[start : start + mmap.PAGESIZE]
            if page != seen[start : start + mmap.PAGESIZE]:
                write(start, page)
                known[start : start + mmap.PAGESIZE] = page
        return bytes(known)

    def close(self) -> None:
        """Free the memory; a client keeps its mapping."""
        self._map.close()
        os.close(self.fd)
