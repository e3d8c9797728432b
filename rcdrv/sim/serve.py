"""Serve a software endpoint on a vfio-user socket until it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from rcdrv.errors import UsageError
from rcdrv.files import open_output
from rcdrv.interrupts import allow_descriptors
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.description import Layout
from rcdrv.sim.endpoint import SimEndpoint
from rcdrv.vfio_user.listen import listen
from rcdrv.vfio_user.server import Server
from rcdrv.wait import heeded

_TICK = 1.0
"""Seconds that a write to an eventfd may block: see :meth:`rcdrv.vfio_user.irqs.EventFd.fire`."""


def serve(
    layout: Layout,
    where: Path | int,
    *,
    access_log: Path | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve ``layout`` to one client after another, until SIGTERM or SIGINT.

    :param where: path of the socket to listen on, only for this user, and removed at the end; or
        the descriptor of a UNIX socket: if connected, only that client is served; if listening, one
        client after another
    :param access_log: file for the access log, overwritten. It has every access unless the layout
        has ``trap = "sparse"``
    :param ready: called once a client can connect
    :raises UsageError: the descriptor is no such socket
    :raises HostError: cannot listen there, or the access log cannot be written
    """
    allow_descriptors(layout.msi + layout.msix)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open_output(access_log)) if access_log is not None else None
        log = AccessLog(stream)
        endpoint = SimEndpoint(layout, log)
        stack.callback(endpoint.close)
        server = Server(endpoint, wake=endpoint.function.wake_fd)
        stack.callback(server.close)
        stack.enter_context(_signals(server))
        stack.enter_context(_ticks())
        sock = stack.enter_context(_inherited(where) if isinstance(where, int) else listen(where))
        if ready:
            ready()
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            server.serve(sock)
        else:
            server.serve_connected(sock)


def _inherited(fd: int) -> socket.socket:
    """Return the stream socket of a descriptor."""
    wrong = UsageError(
        f"descriptor {fd} is not a UNIX stream socket that listens or is connected",
        hint="the program that starts this one has to make the socket, and pass it on",
    )
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise wrong from error
    kind = (sock.family, sock.type & ~socket.SOCK_NONBLOCK & ~socket.SOCK_CLOEXEC)
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.getpeername()
    except OSError as error:
        sock.close()
        raise wrong from error
    if kind != (socket.AF_UNIX, socket.SOCK_STREAM):
        sock.close()
        raise wrong
    sock.set_inheritable(False)
    return sock


@contextlib.contextmanager
def _signals(server: Server) -> Iterator[None]:
    def stop(_signum: int, _frame: FrameType | None) -> None:
        server.stop()

    before = {
        signum: signal.signal(signum, stop) for signum in heeded([signal.SIGTERM, signal.SIGINT])
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _ticks() -> Iterator[None]:
    """Interrupt system calls once a second by a signal without effect, for those that Python does
    not restart."""
    before = signal.signal(signal.SIGALRM, lambda _signum, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
