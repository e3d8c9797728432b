"""The socket on the file system, and one client after another."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdrv.device import IrqKind, SetIrqs
from rcdrv.errors import HostError
from rcdrv.vfio_user.client import Client
from rcdrv.vfio_user.listen import listen
from rcdrv.vfio_user.server import Server

from .fake import BAR_TRAPPED, TIMEOUT, FakeDevice, Thread

EVENTFD_TRIGGER = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER


@contextlib.contextmanager
def serving(device: FakeDevice, path: Path, *, once: bool = False) -> Iterator[Thread]:
    server = Server(device)
    with listen(path) as listener:
        thread = Thread(lambda: server.serve(listener, once=once))
        try:
            yield thread
        finally:
            server.stop()
            thread.finish()
            server.close()


def test_one_client_after_another(device: FakeDevice, tmp_path: Path, eventfds: list[int]) -> None:
    path = tmp_path / "ep.sock"
    with serving(device, path):
        for number in range(3):
            device.detached.clear()
            with contextlib.closing(Client.connect(path)) as client:
                assert client.address == f"vfio-user:{path}"
                client.write(BAR_TRAPPED, 0, bytes([number]))
                # What one client armed or mapped, the next one does not find.
                assert device.peer is not None
                assert device.peer.armed(IrqKind.MSI) == 0
                client.set_irqs(IrqKind.MSI, EVENTFD_TRIGGER, 0, 1, eventfds[:1])
            assert device.detached.wait(TIMEOUT)


def test_the_next_client_waits(device: FakeDevice, tmp_path: Path) -> None:
    path = tmp_path / "ep.sock"
    with serving(device, path):
        first = Client.connect(path)
        waiting = Thread(lambda: Client.connect(path).close())
        first.read(BAR_TRAPPED, 0, 4)
        assert waiting.is_alive()
        first.close()
        waiting.finish()


def test_once(device: FakeDevice, tmp_path: Path) -> None:
    path = tmp_path / "ep.sock"
    with serving(device, path, once=True) as thread:
        # Who only looks whether somebody listens is not the one client.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
        Client.connect(path).close()
        thread.finish()


def test_the_socket_is_private_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "ep.sock"
    before = os.umask(0)
    try:
        with listen(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_live_server_is_not_replaced(device: FakeDevice, tmp_path: Path) -> None:
    path = tmp_path / "ep.sock"
    with serving(device, path):
        with pytest.raises(HostError, match=r"listening on .* already"), listen(path):
            pass
        Client.connect(path).close()


def test_a_busy_server_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ep.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        with pytest.raises(HostError, match=r"listening on .* already"), listen(path):
            pass


def test_a_stale_socket_is_replaced(device: FakeDevice, tmp_path: Path) -> None:
    path = tmp_path / "ep.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(device, path):
        Client.connect(path).close()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_other_things_are_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ep.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(HostError, match="not a socket"), listen(path):
        pass
    assert os.path.lexists(path)


@pytest.mark.parametrize("path", ["/nowhere/ep.sock", "/proc/ep.sock", "/tmp/" + "x" * 120])
def test_where_no_socket_can_be(path: str) -> None:
    with pytest.raises(HostError, match="cannot listen") as raised, listen(path):
        pass
    assert raised.value.hint


def test_a_socket_that_somebody_else_put_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ep.sock"
    with listen(path):
        path.unlink()
        path.write_text("not ours")
    assert path.read_text() == "not ours"


def test_stop_before_and_after(device: FakeDevice, tmp_path: Path) -> None:
    server = Server(device)
    server.stop()
    with listen(tmp_path / "ep.sock") as listener:
        server.serve(listener)
    server.close()
    server.stop()
