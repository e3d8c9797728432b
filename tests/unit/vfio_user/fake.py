"""Two sides to test with: a small served device, and a client that can say anything."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rcdrv.device import CONFIG_REGION, Area, DeviceFlag, IrqKind, RegionFlag
from rcdrv.vfio_user import messages, version, wire
from rcdrv.vfio_user.client import Client
from rcdrv.vfio_user.served import Peer, ServedRegion
from rcdrv.vfio_user.server import Server
from rcdrv.vfio_user.wire import Connection, Message, WireCommand
from rcdrv.wait import Deadline

TIMEOUT = 60.0
"""Seconds that a test waits before it takes the other side for hung."""

PAGE = mmap.PAGESIZE
RW = RegionFlag.READ | RegionFlag.WRITE
BAR_TRAPPED, BAR_SPARSE, BAR_MAPPED, BAR_READ_ONLY = 0, 2, 4, 5


class FakeDevice:
    """Remembers what it was asked, and does what a test hands to :meth:`soon`."""

    def __init__(self) -> None:
        self.shared = os.memfd_create("fake-bars", os.MFD_CLOEXEC)
        os.ftruncate(self.shared, 4 * PAGE)
        self.layout = [ServedRegion() for _ in range(9)]
        self.layout[BAR_TRAPPED] = ServedRegion(1 << 20, RW)
        sparse = (Area(PAGE, PAGE), Area(3 * PAGE, PAGE))
        self.layout[BAR_SPARSE] = ServedRegion(4 * PAGE, RW, sparse, self.shared)
        self.layout[BAR_MAPPED] = ServedRegion(2 * PAGE, RW, (Area(0, 2 * PAGE),), self.shared)
        self.layout[BAR_READ_ONLY] = ServedRegion(100, RegionFlag.READ)
        self.layout[CONFIG_REGION] = ServedRegion(256, RW)
        self.memory = {index: bytearray(region.size) for index, region in enumerate(self.layout)}
        self.calls: list[tuple[object, ...]] = []
        self.resettable = True
        self.peer: Peer | None = None
        self.attached = threading.Event()
        self.detached = threading.Event()
        self.unmasked = threading.Event()
        self.due: float | None = None
        self._jobs: list[Callable[[Peer], object]] = []
        self.results: list[object] = []
        self.job_done = threading.Event()

    def close(self) -> None:
        os.close(self.shared)

    def soon(self, job: Callable[[Peer], object]) -> None:
        """Let :meth:`run` do ``job`` once the next register write is answered."""
        self._jobs.append(job)

    def take(self) -> list[tuple[object, ...]]:
        calls, self.calls = self.calls, []
        return calls

    def regions(self) -> Sequence[ServedRegion]:
        return self.layout

    def irq_counts(self) -> Sequence[int]:
        return (1, 32, 2048, 1, 1)

    def can_reset(self) -> bool:
        return self.resettable

    def attach(self, peer: Peer) -> None:
        assert self.peer is None
        self.peer = peer
        self.attached.set()

    def detach(self) -> None:
        assert self.peer is not None
        self.peer = None
        self.detached.set()

    def read(self, region: int, offset: int, size: int) -> bytes:
        self.calls.append(("read", region, offset, size))
        return bytes(self.memory[region][offset : offset + size])

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.calls.append(("write", region, offset, data))
        self.memory[region][offset : offset + len(data)] = data
        if self._jobs:
            self.due = time.monotonic()

    def irqs_changed(self, kind: IrqKind) -> None:
        assert self.peer is not None
        self.calls.append(("irqs", kind, self.peer.armed(kind)))

    def intx_masked(self, masked: bool) -> None:
        self.calls.append(("masked", masked))
        if masked:
            self.unmasked.clear()
        else:
            self.unmasked.set()

    def reset(self) -> None:
        self.calls.append(("reset",))

    def next_event(self) -> float | None:
        return self.due

    def run(self) -> None:
        self.due = None
        jobs, self._jobs = self._jobs, []
        assert self.peer is not None
        for job in jobs:
            try:
                self.results.append(job(self.peer))
            except Exception as error:
                self.results.append(error)
        self.job_done.set()


class Thread(threading.Thread):
    """A thread that hands its exception to whoever joins it."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        self.join(TIMEOUT)
        assert not self.is_alive(), "the other side hangs"
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def served(
    device: FakeDevice, timeout: float = TIMEOUT, *, linger: bool = False
) -> Iterator[socket.socket]:
    """A socket to a server of ``device``, which ends when the client has gone.

    :param linger: the client is still connected at the end: stop the server
    """
    ours, theirs = socket.socketpair()
    server = Server(device, timeout)
    thread = Thread(lambda: server.serve_connected(theirs))
    try:
        with ours:
            yield ours
            if linger:
                server.stop()
                thread.finish()
        thread.finish()
    finally:
        server.stop()
        thread.join(TIMEOUT)
        server.close()


@contextlib.contextmanager
def connected(device: FakeDevice, timeout: float = TIMEOUT) -> Iterator[Client]:
    """A client of ``device``."""
    with served(device, timeout) as sock, contextlib.closing(Client(sock, "fake")) as client:
        yield client


class RawClient:
    """Sends any message and shows the bare replies."""

    def __init__(self, sock: socket.socket, *, negotiate: bool = True) -> None:
        self.connection = Connection(sock)
        self._id = 100
        if negotiate:
            reply = self.ask(WireCommand.VERSION, version.Version().pack())
            assert not reply.flags & wire.ERROR

    def send(self, command: int, body: bytes = b"", flags: int = 0, fds: Sequence[int] = ()) -> int:
        self._id += 1
        self.connection.send(command, self._id, flags, body, Deadline(TIMEOUT), fds=fds)
        return self._id

    def receive(self) -> Message:
        message = self.connection.receive(Deadline(TIMEOUT))
        assert message is not None, "nothing came"
        return message

    def ask(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """The reply to a command; it may be an error."""
        number = self.send(command, body, 0, fds)
        reply = self.receive()
        assert (reply.is_reply, reply.id, reply.command) == (True, number, command)
        return reply

    def error(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> int:
        """The errno of an error reply, which has no body; 0 if it is none."""
        with self.ask(command, body, fds) as reply:
            if not reply.flags & wire.ERROR:
                return 0
            assert not reply.body
            assert reply.error
            return reply.error


def good_replies(request: Message) -> bytes | None:
    """What a decent server says of a device without anything but a config space."""
    if request.command == WireCommand.VERSION:
        return version.Version().pack()
    if request.command == WireCommand.DEVICE_GET_INFO:
        return messages.DeviceInfo(DeviceFlag.PCI, 9, 5).pack()
    return None


class Script:
    """A server that a test writes: ``act`` sees each request first and says whether it dealt with
    it; if not, a decent answer is sent where there is one."""

    def __init__(self, act: Callable[[Script, Message], bool]) -> None:
        self._act = act
        self.sock, theirs = socket.socketpair()
        self.connection = Connection(theirs)
        self._thread = Thread(self._run)

    def _run(self) -> None:
        try:
            while True:
                message = self.connection.receive(Deadline(2 * TIMEOUT))
                if message is None:
                    return
                with message:
                    body = None if self._act(self, message) else good_replies(message)
                    if body is not None:
                        self.reply(message, body)
        except (wire.Disconnected, OSError):
            pass  # the client has heard enough, or the test closed this side
        finally:
            self.connection.close()

    def reply(
        self,
        request: Message,
        body: bytes = b"",
        *,
        error: int = 0,
        fds: Sequence[int] = (),
        number: int | None = None,
        command: int | None = None,
    ) -> None:
        self.connection.send(
            request.command if command is None else command,
            request.id if number is None else number,
            wire.TYPE_REPLY | (wire.ERROR if error else 0),
            body,
            Deadline(TIMEOUT),
            fds=fds,
            error=error,
        )

    def close(self) -> None:
        self.sock.close()
        self._thread.finish()


def open_fds() -> dict[str, str]:
    """This process's descriptors and what they are."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[path.name] = str(path.readlink())
    return found
