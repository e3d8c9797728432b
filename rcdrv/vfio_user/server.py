"""A vfio-user server: one :class:`~rcdrv.vfio_user.served.ServedDevice`, one client at a time.

Clients are :class:`rcdrv.vfio_user.client.Client` and QEMU's ``vfio-user-pci``. Everything runs in
the thread that calls :meth:`Server.serve`; only :meth:`Server.stop` may be called from elsewhere. A
client is not trusted: an invalid request gets an error reply, and an invalid stream is closed. The
next client is served as if it were the first.
"""

from __future__ import annotations

import select
import socket

from rcdrv.device import CONFIG_REGION, IrqKind
from rcdrv.vfio_user.served import ServedDevice
from rcdrv.vfio_user.session import Session, complain
from rcdrv.vfio_user.stop import Stop


class Server:
    """Server of ``device`` for one client after another.

    :param timeout: seconds that a client may take to agree on a version, to read a reply, or to
        answer a DMA request
    :param wake: eventfd with which another thread makes the server call the device's
        :meth:`~ServedDevice.next_event` again; -1 for none
    """

    def __init__(self, device: ServedDevice, timeout: float = 5.0, wake: int = -1) -> None:
        if len(device.regions()) <= CONFIG_REGION or len(device.irq_counts()) != len(IrqKind):
            raise ValueError("a PCI device has at least 8 regions and exactly 5 interrupt kinds")
        self._device = device
        self._timeout = timeout
        self._wake = wake
        self._stop = Stop()

    def stop(self) -> None:
        """Make :meth:`serve` and :meth:`serve_connected` return, also when they are called later.

        Safe in signal handlers and from other threads.
        """
        self._stop.set()

    def serve(self, listener: socket.socket, *, once: bool = False) -> None:
        """Accept clients on a listening socket (see :func:`listen`) until :meth:`stop`.

        :param once: return after the first client that agreed on a version
        """
        listener.setblocking(False)
        waiting = select.poll()
        waiting.register(listener, select.POLLIN)
        waiting.register(self._stop.fd, select.POLLIN)
        while not self._stop.requested:
            waiting.poll()
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError:
                # Out of descriptors or memory: the client stays in the queue.
                self._stop.wait(0.1)
                continue
            if self.serve_connected(sock) and once:
                return

    def serve_connected(self, sock: socket.socket) -> bool:
        """Serve the client at the other end of ``sock``, and close it.

        :returns: whether the client agreed on a version
        """
        try:
            session = Session(self._device, sock, self._stop, self._timeout, self._wake)
        except OSError as error:  # out of descriptors
            complain(error)
            sock.close()
            return False
        try:
            session.run()
        finally:
            session.close()
        return session.attached

    def close(self) -> None:
        """Release the server's own resources, after :meth:`serve` has returned."""
        self._stop.close()
