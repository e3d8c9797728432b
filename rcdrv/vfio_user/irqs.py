"""Interrupts of a served device: the client's eventfds, and DEVICE_SET_IRQS."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from pathlib import Path

from rcdrv.device import IrqKind, SetIrqs
from rcdrv.vfio_user.messages import IrqSet
from rcdrv.vfio_user.served import ServedDevice
from rcdrv.vfio_user.wire import Refused


def is_eventfd(fd: int) -> bool:
    """Return whether a descriptor is an eventfd: a write to anything else could block or kill."""
    return str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventfd]"


class EventFd:
    """An eventfd of the client; this object owns it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._writable = select.poll()
        self._writable.register(fd, select.POLLOUT)

    def fire(self) -> None:
        """Add 1, unless the counter is full: then it is signalled already, and a write would block.

        O_NONBLOCK would change the client's own file description. If the client fills the counter
        after the poll, a signal ends the write.
        """
        if self._writable.poll(0):
            with contextlib.suppress(BlockingIOError, InterruptedError):
                os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        os.close(self.fd)


class ServedIrqs:
    """The interrupts of a device, as one client has armed and masked them."""

    def __init__(self, device: ServedDevice, epoll: select.epoll) -> None:
        self._device = device
        self._epoll = epoll
        self._vectors: list[list[EventFd | None]] = [[None] * n for n in device.irq_counts()]
        self._armed = [0] * len(self._vectors)
        self._intx_masked = False
        self.unmask_fd = -1
        """Eventfd in ``epoll`` that requests ``mask_intx(False)``; -1 if there is none."""

    def count(self, kind: int) -> int:
        """Return the number of vectors of a kind."""
        return len(self._vectors[kind])

    def armed(self, kind: int) -> int:
        """Return the highest armed vector plus 1."""
        return self._armed[kind]

    def trigger(self, kind: IrqKind, vector: int) -> bool:
        """Fire a vector, and mask INTx if it is one. Return False if it cannot be fired."""
        if kind is IrqKind.INTX and self._intx_masked:
            return False
        if not self._fire(kind, vector):
            return False
        if kind is IrqKind.INTX:
            self.mask_intx(True)
        return True

    def _fire(self, kind: int, vector: int) -> bool:
        """Signal a vector. Return False if it is not armed or does not exist."""
        vectors = self._vectors[kind]
        eventfd = vectors[vector] if 0 <= vector < len(vectors) else None
        if eventfd is None:
            return False
        eventfd.fire()
        return True

    def mask_intx(self, masked: bool) -> None:
        """Mask or unmask INTx, and notify the device."""
        if masked != self._intx_masked:
            self._intx_masked = masked
            self._device.intx_masked(masked)

    def set(self, request: IrqSet, fds: list[int]) -> None:
        """Serve DEVICE_SET_IRQS. Descriptors that are armed are removed from ``fds``.

        :raises Refused: the kind does not exist, cannot be masked, or another kind is armed
        :raises ProtocolError: the fields are inconsistent
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
                self._fire(kind, vector)

    def _arm(self, kind: IrqKind, request: IrqSet, fds: list[int]) -> None:
        exclusive = (IrqKind.INTX, IrqKind.MSI, IrqKind.MSIX)  # a function uses one at a time
        others = [other for other in exclusive if other is not kind and self._armed[other]]
        if fds and kind in exclusive and others:
            raise Refused(errno.EINVAL)
        for vector in range(request.start, request.start + request.count):
            self._arm_one(kind, vector, fds.pop(0) if fds else -1)
        self._device.irqs_changed(kind)

    def _arm_one(self, kind: int, vector: int, fd: int) -> None:
        """Set the eventfd of a vector, owned from now on; -1 disarms it."""
        vectors = self._vectors[kind]
        old, vectors[vector] = vectors[vector], EventFd(fd) if fd >= 0 else None
        if old is not None:
            old.close()
        armed = max(self._armed[kind], vector + 1)
        while armed and vectors[armed - 1] is None:
            armed -= 1
        self._armed[kind] = armed

    def _clear(self, kind: int) -> None:
        for vector in reversed(range(self._armed[kind])):
            self._arm_one(kind, vector, -1)

    def _disarm(self, kind: IrqKind) -> None:
        self._clear(kind)
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
        """Unmask INTx whenever the client signals ``fd``, owned from now on; -1 for never.

        VFIO does the same. KVM signals the eventfd at the guest's end of interrupt.
        """
        if self.unmask_fd >= 0:
            # Closing does not unregister it: the client has the same eventfd open.
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(self.unmask_fd)
            os.close(self.unmask_fd)
        self.unmask_fd = fd
        if fd >= 0:
            # Every write is an edge, so the counter is never read: a read could block.
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        for kind in range(len(self._vectors)):
            self._clear(kind)
        self._watch_unmask(-1)
