"""The eventfds that a client armed, by kind and vector."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence
from pathlib import Path

from rcdrv.device import IrqKind


def is_eventfd(fd: int) -> bool:
    """Whether the descriptor is one: a write to anything else could block or kill."""
    return str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventfd]"


class EventFd:
    """An eventfd of the client's, owned by this object."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._writable = select.poll()
        self._writable.register(fd, select.POLLOUT)

    def fire(self) -> None:
        """Add one. A full counter is as good as fired, and writing to it would block.

        O_NONBLOCK is not set on the client's own file description, which it may read blocking.
        Where it fills the counter after the look at it, a signal ends the write.
        """
        if self._writable.poll(0):
            with contextlib.suppress(BlockingIOError, InterruptedError):
                os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        os.close(self.fd)


class Vectors:
    """The armed vectors of every kind."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._vectors: list[list[EventFd | None]] = [[None] * count for count in counts]
        self._armed = [0] * len(counts)

    def count(self, kind: int) -> int:
        """How many vectors the kind has."""
        return len(self._vectors[kind])

    def armed(self, kind: int) -> int:
        """Highest armed vector plus 1."""
        return self._armed[kind]

    def active(self) -> int | None:
        """Which of INTx, MSI and MSI-X is armed; a function uses one at a time."""
        for kind in (IrqKind.INTX, IrqKind.MSI, IrqKind.MSIX):
            if self.armed(kind):
                return kind
        return None

    def arm(self, kind: int, vector: int, fd: int) -> None:
        """Give a vector its eventfd, which this object owns from now on; -1 takes it away."""
        vectors = self._vectors[kind]
        old, vectors[vector] = vectors[vector], EventFd(fd) if fd >= 0 else None
        if old is not None:
            old.close()
        armed = max(self._armed[kind], vector + 1)
        while armed and vectors[armed - 1] is None:
            armed -= 1
        self._armed[kind] = armed

    def fire(self, kind: int, vector: int) -> bool:
        """Signal a vector; False if it is not armed or does not exist."""
        vectors = self._vectors[kind]
        eventfd = vectors[vector] if 0 <= vector < len(vectors) else None
        if eventfd is None:
            return False
        eventfd.fire()
        return True

    def clear(self, kind: int) -> None:
        """Disarm all vectors of a kind."""
        for vector in reversed(range(self.armed(kind))):
            self.arm(kind, vector, -1)

    def close(self) -> None:
        for kind in range(len(self._vectors)):
            self.clear(kind)
