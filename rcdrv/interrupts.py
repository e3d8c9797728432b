"""Interrupts of a function: armed vectors, one eventfd each, and the wait for them."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Sequence

from rcdrv.device import Device, IrqKind, SetIrqs
from rcdrv.errors import HostError
from rcdrv.wait import Deadline


def allow_descriptors(count: int) -> None:
    """Raise the soft limit of open files, as far as the hard one allows, for ``count`` more.

    2048 MSI-X vectors are 2048 eventfds, and the usual soft limit is 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256  # what a program has open besides
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def take_count(eventfd: int) -> int:
    """Read an eventfd's counter.

    Never blocks: a vfio-user server has the same file description, so it may clear O_NONBLOCK and
    read the counter first.

    :raises BlockingIOError: it is 0
    """
    counter = bytearray(8)
    try:
        os.preadv(eventfd, (counter,), -1, os.RWF_NOWAIT)
    except BlockingIOError:
        raise
    except OSError:  # before Linux 5.8 (fs/eventfd.c) it cannot be asked so
        return os.eventfd_read(eventfd)
    return int.from_bytes(counter, sys.byteorder)


class Interrupts:
    """The armed vectors of one kind, one eventfd each. Made by :meth:`Function.interrupts`."""

    def __init__(
        self,
        device: Device,
        kind: IrqKind,
        count: int,
        poll: Callable[[float], Sequence[int]],
        release: Callable[[Interrupts], None],
    ) -> None:
        self._device = device
        self._poll = poll
        self._release = release
        self.kind = kind
        self.count = count
        """Vectors armed, numbered from 0. The endpoint's IRQ_NUMBER counts from 1."""
        self.eventfds: list[int] = []
        """One per vector."""
        self._masked = False

    def arm(self, fewer: bool) -> None:
        """Arm all vectors, or as many as the host has where ``fewer`` will do.

        :raises HostError: the host cannot give that many
        """
        allow_descriptors(self.count)
        try:
            for _ in range(self.count):
                self.eventfds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError as error:
            raise HostError(
                f"{self.count} vectors need as many open files: {error.strerror}",
                hint="raise the hard limit of open files: ulimit -Hn",
            ) from error
        flags = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER
        available = self._device.set_irqs(self.kind, flags, 0, self.count, self.eventfds)
        if fewer and 0 < available < self.count:
            # Nothing is armed yet (VFIO_DEVICE_SET_IRQS): ask again for the available number.
            for fd in self.eventfds[available:]:
                os.close(fd)
            del self.eventfds[available:]
            self.count = available
            available = self._device.set_irqs(self.kind, flags, 0, self.count, self.eventfds)
        if available:
            raise HostError(
                f"{self._device.address}: only {available} of {self.count} {self.kind.name} vectors"
                " can be had here",
                hint=f"ask for {available} vectors, or check that interrupt remapping is on",
            )

    def wait(self, deadline: Deadline) -> dict[int, int]:
        """Sleep until a vector fires.

        INTx is a level: VFIO masks it when it fires, and it is unmasked here, in the next call.
        By then the caller has served the device, which makes it drop the line. A device that still
        holds the line fires again, so the count of INTx says nothing.

        :returns: {vector: how often}, everything that was pending; empty when the time is up
        :raises DeviceLost: the device went, or the host wants it back
        :raises Interrupted: the user asked to stop
        """
        self._unmask()
        while True:
            fired = self._poll(deadline.remaining)
            if fired or deadline.expired:
                return self._collect(fired)

    def take(self) -> dict[int, int]:
        """Return what has fired since the last call, without sleeping."""
        self._unmask()
        return self._collect(self._poll(0.0))

    def _collect(self, vectors: Sequence[int]) -> dict[int, int]:
        counts: dict[int, int] = {}
        for vector in vectors:
            with contextlib.suppress(BlockingIOError):
                counts[vector] = take_count(self.eventfds[vector])
        self._masked = bool(counts) and self.kind is IrqKind.INTX
        return counts

    def _unmask(self) -> None:
        if self._masked:
            self._masked = False
            flags = SetIrqs.DATA_NONE | SetIrqs.ACTION_UNMASK
            self._device.set_irqs(IrqKind.INTX, flags, 0, 1)

    def close(self) -> None:
        """Disarm. Also safe on a device that is gone; closing twice is harmless."""
        self._release(self)

    def __enter__(self) -> Interrupts:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
