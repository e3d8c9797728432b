"""Interrupts of a served device: the eventfds that a client armed, and DEVICE_SET_IRQS."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Sequence
from pathlib import Path

from rcdrv.device import IrqKind, SetIrqs
from rcdrv.vfio_user.messages import IrqSet
from rcdrv.vfio_user.served import ServedDevice
from rcdrv.vfio_user.wire import Refused


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
        """Add one, unless the counter is full: then it has fired, and a write would block.

        O_NONBLOCK is not set on the client's own file description, which it may read blocking.
        If it fills the counter after the poll, a signal ends the write.
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
        """Return the number of vectors of a kind."""
        return len(self._vectors[kind])

    def armed(self, kind: int) -> int:
        """Highest armed vector plus 1."""
        return self._armed[kind]

    def active(self) -> int | None:
        """Return which of INTx, MSI and MSI-X is armed, or None; a function uses one at a time."""
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


class ServedIrqs:
    """The interrupts of a device as one client set them up."""

    def __init__(self, device: ServedDevice, epoll: select.epoll) -> None:
        self._device = device
        self._epoll = epoll
        self._vectors = Vectors(device.irq_counts())
        self._intx_masked = False
        self.unmask_fd = -1
        """An eventfd in ``epoll`` that asks for :meth:`mask_intx` with False; -1 if none."""

    def count(self, kind: int) -> int:
        """Number of vectors of a kind."""
        return self._vectors.count(kind)

    def armed(self, kind: IrqKind) -> int:
        """Highest armed vector plus 1."""
        return self._vectors.armed(kind)

    def trigger(self, kind: IrqKind, vector: int) -> bool:
        """Fire a vector, and mask INTx with it; False if that cannot be."""
        if kind is IrqKind.INTX and self._intx_masked:
            return False
        if not self._vectors.fire(kind, vector):
            return False
        if kind is IrqKind.INTX:
            self.mask_intx(True)
        return True

    def mask_intx(self, masked: bool) -> None:
        """Mask or unmask INTx, and tell the device."""
        if masked != self._intx_masked:
            self._intx_masked = masked
            self._device.intx_masked(masked)

    def set(self, request: IrqSet, fds: list[int]) -> None:
        """Serve DEVICE_SET_IRQS; what is armed is taken out of ``fds``.

        :raises Refused: the kind does not exist, cannot be masked, or another one is armed
        :raises ProtocolError: the fields contradict each other
        """
        if request.index >= len(IrqKind):
            raise Refused(errno.EINVAL)
        kind = IrqKind(request.index)
        request.check(self.count(kind), len(fds))
        if not all(map(is_eventfd, fds)):
            raise Refused(errno.EINVAL)
        if not request.count:
            self._disarm(kind)
        elif not request.flags & SetIrqs.ACTION_TRIGGER:
            self._set_mask(kind, bool(request.flags & SetIrqs.ACTION_MASK), request, fds)
        elif request.flags & SetIrqs.DATA_EVENTFD:
            self._arm(kind, request, fds)
        else:
            for vector in request.chosen:
                self._vectors.fire(kind, vector)

    def _arm(self, kind: IrqKind, request: IrqSet, fds: list[int]) -> None:
        exclusive = kind in (IrqKind.INTX, IrqKind.MSI, IrqKind.MSIX)
        if fds and exclusive and self._vectors.active() not in (None, kind):
            raise Refused(errno.EINVAL)
        for vector in range(request.start, request.start + request.count):
            self._vectors.arm(kind, vector, fds.pop(0) if fds else -1)
        self._device.irqs_changed(kind)

    def _disarm(self, kind: IrqKind) -> None:
        self._vectors.clear(kind)
        if kind is IrqKind.INTX:
            self._watch_unmask(-1)
            self.mask_intx(False)
        self._device.irqs_changed(kind)

    def _set_mask(self, kind: IrqKind, masked: bool, request: IrqSet, fds: list[int]) -> None:
        if kind is not IrqKind.INTX:
            raise Refused(errno.ENOTSUP)
        if not request.flags & SetIrqs.DATA_EVENTFD:
            if request.chosen:
                self.mask_intx(masked)
            return
        if masked:
            raise Refused(errno.ENOTSUP)
        self._watch_unmask(fds.pop() if fds else -1)

    def _watch_unmask(self, fd: int) -> None:
        """Unmask INTx whenever the client signals ``fd``, as VFIO does; KVM signals it at the
        guest's end of interrupt. This object owns it; -1 ends that."""
        if self.unmask_fd >= 0:
            # Closing it would not do: the client has the same eventfd open.
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(self.unmask_fd)
            os.close(self.unmask_fd)
        self.unmask_fd = fd
        if fd >= 0:
            # Every write is an edge, so the counter need not be read, which could block.
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        """Close all eventfds of the client."""
        self._vectors.close()
        self._watch_unmask(-1)
