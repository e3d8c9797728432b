"""The end of a vfio-user server, asked for from anywhere."""

from __future__ import annotations

import os
import select


class Stop:
    """An eventfd that is readable from :meth:`set` on."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.requested = False
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def wait(self, seconds: float) -> None:
        self._poll.poll(seconds * 1000)

    def set(self) -> None:
        self.requested = True
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
