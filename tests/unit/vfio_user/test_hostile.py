"""Clients that send anything and vanish anywhere: the server stays, leaks nothing, and serves."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import resource
import socket
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcdrv.device import CONFIG_REGION, Area, IrqKind, SetIrqs
from rcdrv.vfio_user import messages, version, wire
from rcdrv.vfio_user.client import Client
from rcdrv.vfio_user.listen import listen
from rcdrv.vfio_user.server import Server
from rcdrv.vfio_user.wire import WireCommand

from .fake import BAR_MAPPED, BAR_TRAPPED, PAGE, TIMEOUT, FakeDevice, Thread, open_fds


class Service:
    """A server in a thread, and what it holds open when it has no client."""

    def __init__(self, device: FakeDevice, path: Path) -> None:
        self.device = device
        self.path = path
        self.idle = 0

    def check(self) -> None:
        """The server serves a decent client, and then holds no more than before the first one."""
        with contextlib.closing(Client.connect(self.path, TIMEOUT)) as client:
            # It is served, so all clients before it have been detached.
            self.device.detached.clear()
            client.write(BAR_TRAPPED, 0, b"fine")
            assert client.read(BAR_TRAPPED, 0, 4) == b"fine"
        # The server tells the device once all that the client left is closed.
        assert self.device.detached.wait(TIMEOUT)
        assert len(open_fds()) == self.idle


@pytest.fixture
def service(device: FakeDevice, tmp_path: Path) -> Iterator[Service]:
    path = tmp_path / "ep.sock"
    server = Server(device, TIMEOUT)
    with listen(path) as listener:
        thread = Thread(lambda: server.serve(listener))
        service = Service(device, path)
        try:
            service.idle = len(open_fds())
            yield service
        finally:
            server.stop()
            thread.finish()
            server.close()


def message(command: int, body: bytes, number: int = 1, flags: int = 0) -> bytes:
    return wire.HEADER.pack(number, command, wire.HEADER.size + len(body), flags, 0) + body


VERSION = message(WireCommand.VERSION, version.Version().pack())

SENSIBLE = [
    (WireCommand.VERSION, version.Version().pack()),
    (WireCommand.DMA_MAP, messages.DmaMap(3, 0, 0x10000, 4096).pack()),
    (WireCommand.DMA_UNMAP, messages.DmaUnmap(0, 0x10000, 4096).pack()),
    (WireCommand.DEVICE_GET_INFO, messages.DeviceInfo().pack()),
    (WireCommand.DEVICE_GET_REGION_INFO, messages.RegionInfoRequest(BAR_MAPPED, 4096).pack()),
    (WireCommand.DEVICE_GET_IRQ_INFO, messages.IrqInfo(1).pack()),
    (WireCommand.DEVICE_SET_IRQS, messages.IrqSet(0x24, IrqKind.MSI, 0, 2).pack()),
    (WireCommand.DEVICE_SET_IRQS, messages.IrqSet(0x14, IrqKind.INTX, 0, 1).pack()),
    (WireCommand.REGION_READ, messages.RegionAccess(0, BAR_TRAPPED, 65536).pack()),
    (WireCommand.REGION_WRITE, messages.RegionAccess(0, BAR_TRAPPED, 4, b"abcd").pack()),
    (
        WireCommand.REGION_WRITE_MULTI,
        messages.WriteMulti((messages.RegionAccess(0, BAR_TRAPPED, 4, b"abcd"),)).pack(),
    ),
    (WireCommand.DEVICE_RESET, b""),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sensible message with a few bytes changed, cut or added."""
    command, body = draw(st.sampled_from(SENSIBLE))
    data = bytearray(body)
    for _ in range(draw(st.integers(0, 3))):
        if data:
            index = draw(st.integers(0, len(data) - 1))
            data[index] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    data = data[: draw(st.integers(max(0, len(data) - 4), len(data)))]
    data += draw(st.binary(max_size=3))
    flags = draw(st.sampled_from([0, 0, 0, wire.NO_REPLY, 1, 2, 0xFFFFFFFF]))
    return message(command, bytes(data), draw(st.integers(0, 65535)), flags)


def any_message() -> st.SearchStrategy[bytes]:
    return st.builds(message, st.integers(0, 0xFFFF), st.binary(max_size=80))


PIECES = st.lists(
    st.tuples(
        st.one_of(mutated(), any_message(), st.binary(min_size=1, max_size=40)),
        st.sampled_from(["", "", "e", "ee", "m", "mm", "s", "e" * 17, "m" * 40]),
    ),
    max_size=8,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(pieces=PIECES, negotiate=st.booleans())
def test_any_stream(service: Service, pieces: list[tuple[bytes, str]], negotiate: bool) -> None:
    """Eventfds (e), memory (m) and sockets (s) travel with pieces that make sense or not."""
    with contextlib.ExitStack() as stack:
        eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, eventfd)
        memory = os.memfd_create("memory", os.MFD_CLOEXEC)
        stack.callback(os.close, memory)
        os.ftruncate(memory, 4096)
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(TIMEOUT)
        sock.connect(str(service.path))
        known = {"e": eventfd, "m": memory, "s": sock.fileno()}
        with contextlib.suppress(ConnectionError):
            if negotiate:
                sock.sendall(VERSION)
            for data, kinds in pieces:
                fds = array.array("i", [known[kind] for kind in kinds])
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
                sock.sendmsg([data], rights)
            sock.shutdown(socket.SHUT_WR)
            # Replies are read, so that the server is through with everything before the end.
            while sock.recv(65536):
                pass
    service.check()


def good_client(service: Service) -> Generator[Client, None, None]:
    """A session step by step: yields after each."""
    client = Client.connect(service.path, TIMEOUT)
    yield client
    with client.map(BAR_MAPPED, Area(0, PAGE)):
        yield client
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        client.set_irqs(IrqKind.MSI, SetIrqs(0x24), 0, 1, [eventfd])
        yield client
        client.set_irqs(IrqKind.MSI, SetIrqs(0x21), 0, 0)
        client.set_irqs(IrqKind.INTX, SetIrqs(0x24), 0, 1, [eventfd])
        client.set_irqs(IrqKind.INTX, SetIrqs(0x14), 0, 1, [eventfd])
        yield client
    finally:
        os.close(eventfd)
    memory = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(memory, PAGE)
    try:
        with mmap.mmap(memory, PAGE) as shared:
            client.dma_map(0x100000, shared, PAGE, memory)
            yield client
            service.device.soon(lambda peer: peer.dma_write(0x100000, b"late"))
            client.write(CONFIG_REGION, 4, b"\0\0")
            yield client
    finally:
        os.close(memory)
    client.reset()
    yield client


@pytest.mark.parametrize("steps", range(1, 8))
def test_vanishing_after_each_step(service: Service, steps: int) -> None:
    session = good_client(service)
    for _ in range(steps):
        client = next(session)
    client.close()
    session.close()
    service.check()


@pytest.mark.parametrize(("command", "body"), SENSIBLE)
def test_vanishing_in_the_midst_of_a_message(
    service: Service, command: WireCommand, body: bytes
) -> None:
    whole = message(command, body)
    for length in sorted(
        {0, 1, 15, 16, 17, len(whole) - 1, len(whole)} & set(range(len(whole) + 1))
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(service.path))
            sock.sendall(VERSION)
            sock.recv(4096)
            sock.sendall(whole[:length])
    service.check()


def test_a_message_byte_by_byte(service: Service) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(str(service.path))
        for byte in VERSION + message(WireCommand.DEVICE_GET_INFO, messages.DeviceInfo().pack(), 2):
            sock.send(bytes([byte]))
        replies = b""
        while not replies.endswith(messages.DeviceInfo(3, 9, 5).pack()):
            replies += sock.recv(1)
    service.check()


def test_a_client_that_does_not_read(device: FakeDevice, tmp_path: Path) -> None:
    server = Server(device, 0.1)
    path = tmp_path / "ep.sock"
    with listen(path) as listener:
        thread = Thread(lambda: server.serve(listener, once=True))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(str(path))
            sock.sendall(VERSION)
            read = message(
                WireCommand.REGION_READ, messages.RegionAccess(0, BAR_TRAPPED, 65536).pack()
            )
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    sock.sendall(read)
            thread.finish()
    server.close()


def test_no_descriptors_left(service: Service) -> None:
    """A client that comes when nothing can be opened is dropped; the next one is served."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        highest = max(map(int, open_fds()))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for fd in taken:
            stack.callback(os.close, fd)
        sock.settimeout(0.2)
        sock.connect(str(service.path))
        with contextlib.suppress(OSError):
            sock.sendall(VERSION)
            sock.recv(4096)
    service.check()
