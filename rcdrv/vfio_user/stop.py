"""Request to end a vfio-user server, from any thread or signal handler."""

from __future__ import annotations

import os
import select


class Stop:
    """An eventfd that stays readable after :meth:`set`."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.requested = False
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def wait(self, seconds: float) -> None:
        """Sleep until :meth:`set`, at most ``seconds``."""
        self._poll.poll(seconds * 1000)

    def set(self) -> None:
        self.requested = True
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
