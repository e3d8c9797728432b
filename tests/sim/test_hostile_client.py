"""vfio-user clients that truncate, lie and flood: ``rcdrv sim`` goes on serving the next one.

``stop`` fails on a traceback or on exit status 70 (issue 11, A2, B5).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcdrv import pci
from rcdrv.device import CONFIG_REGION, IrqKind, SetIrqs
from rcdrv.epf_test.registers import Command, Reg, Status
from rcdrv.errors import HostError, RcdrvError
from rcdrv.vfio_user import messages, wire
from rcdrv.vfio_user.caller import ClientMemory
from rcdrv.vfio_user.client import Client
from rcdrv.wait import Deadline

from .conftest import Endpoint, rcdrv

IOVA = 0x1000_0000
SIZE = 1 << 16
BUS_MASTER = pci.Command.MEMORY | pci.Command.BUS_MASTER
TRIGGER = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER
ANSWER = sum({flag for flag in Status if flag.name and flag.name.endswith(("_SUCCESS", "_FAIL"))})

FAILED = Status.READ_FAIL | Status.WRITE_SUCCESS
"""How a transfer that does not reach memory ends: a write is posted, and nobody answers it."""


class Host(Client):
    """A client without any of the driver's manners."""

    def command(self, command: Command, timeout: float = 10.0, **registers: int) -> Status:
        """Have a command executed; its STATUS."""
        for name, value in {"STATUS": 0, **registers, "COMMAND": command}.items():
            self.write(0, Reg[name], value.to_bytes(4, "little"))
        deadline = Deadline(timeout)
        while not deadline.expired:
            status = Status(int.from_bytes(self.read(0, Reg.STATUS, 4), "little"))
            if status & ANSWER:
                return status
        pytest.fail(f"{command.name} is not answered")

    def transfer(self, command: Command, iova: int = IOVA, size: int = SIZE) -> Status:
        addresses = {"SRC_ADDR_LOW": iova, "DST_ADDR_LOW": iova}
        return self.command(command, SIZE=size, **addresses)


@contextlib.contextmanager
def host(endpoint: Endpoint) -> Iterator[Host]:
    client = Host.connect(endpoint.socket)
    assert isinstance(client, Host)
    with contextlib.closing(client):
        client.write(CONFIG_REGION, 0x04, BUS_MASTER.to_bytes(2, "little"))
        yield client


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


Make = Callable[..., Endpoint]


@pytest.fixture
def served(endpoint: Make) -> Iterator[Endpoint]:
    """An endpoint that has to serve another client, and to end well, after all of it."""
    served = endpoint("rk3588", "--set", "trap=sparse")
    yield served
    check(served)


def check(served: Endpoint) -> None:
    assert rcdrv("--device", served.address, "ring").status == 0
    result = served.stop()
    assert result.status == 0, result.err


def map_file(client: Client, fd: int, iova: int = IOVA, size: int = SIZE) -> None:
    client._caller.ask(wire.WireCommand.DMA_MAP, messages.DmaMap(3, 0, iova, size).pack(), (fd,))


def test_the_file_of_a_bar_is_sealed(served: Endpoint) -> None:
    with host(served) as client:
        fds = [client._region(bar).fd for bar in range(6)]
        assert any(fd >= 0 for fd in fds)
        for fd in fds:
            if fd < 0:
                continue
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            for file in (fd, again):
                for size in (0, 1 << 40):
                    with pytest.raises(PermissionError):
                        os.ftruncate(file, size)
            os.close(again)
        client.command(Command.ENABLE_DOORBELL)


@pytest.mark.parametrize("command", [Command.WRITE, Command.READ])
def test_memory_that_was_truncated(served: Endpoint, memory: int, command: Command) -> None:
    with host(served) as client:
        map_file(client, memory)
        os.ftruncate(memory, 4096)
        assert client.transfer(command) & FAILED
        assert os.fstat(memory).st_size == 4096


@pytest.mark.parametrize("command", [Command.WRITE, Command.READ])
def test_memory_that_is_truncated_meanwhile(
    served: Endpoint, memory: int, command: Command
) -> None:
    """Between the check and the copy."""
    stop = threading.Event()

    def toggle() -> None:
        while not stop.is_set():
            os.ftruncate(memory, 0)
            os.ftruncate(memory, SIZE)

    with host(served) as client:
        map_file(client, memory)
        thread = threading.Thread(target=toggle)
        thread.start()
        try:
            for _ in range(200):
                client.transfer(command)
        finally:
            stop.set()
            thread.join()


def test_memory_without_pages(served: Endpoint) -> None:
    """A write to a sparse file that finds no page, here in a pool of huge pages."""
    fd = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    try:
        os.ftruncate(fd, 1 << 40)
        with host(served) as client:
            map_file(client, fd)
            client.transfer(Command.WRITE)
    finally:
        os.close(fd)


def test_a_full_eventfd(served: Endpoint) -> None:
    """A write to it would block."""
    fd = os.eventfd(0xFFFF_FFFF, os.EFD_CLOEXEC)
    os.eventfd_write(fd, (1 << 64) - 2 - 0xFFFF_FFFF)
    try:
        with host(served) as client:
            for kind in (IrqKind.MSI, IrqKind.MSIX, IrqKind.INTX):
                client.set_irqs(kind, TRIGGER, 0, 1, [fd])
                for command in (Command.ENABLE_DOORBELL, Command.DISABLE_DOORBELL):
                    client.command(command, IRQ_TYPE=kind, IRQ_NUMBER=1)
                client.set_irqs(kind, SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER, 0, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("command", [Command.WRITE, Command.READ])
def test_an_errno_of_32_bits(
    served: Endpoint, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise wire.Refused(0xFFFF_FFFF)

    monkeypatch.setattr(ClientMemory, "_read", refuse)
    monkeypatch.setattr(ClientMemory, "_write", refuse)
    with host(served) as client, mmap.mmap(-1, SIZE) as memory:
        client.dma_map(IOVA, memory, SIZE, -1)
        assert client.transfer(command) & FAILED


def test_no_descriptors_left(endpoint: Make, tmp_path: Path) -> None:
    """The client has the server open files until it can open no more."""
    served = endpoint("rk3588", "--set", "trap=sparse")
    resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (40, 40))

    with host(served) as client, contextlib.ExitStack() as stack:
        refused = ""
        for number in range(64):
            file = stack.enter_context((tmp_path / f"{number}").open("w+b"))
            file.truncate(SIZE)
            try:
                map_file(client, file.fileno(), IOVA + number * SIZE)
            except HostError as error:
                refused = error.message
        assert refused
        with contextlib.suppress(RcdrvError):
            client.command(Command.ENABLE_DOORBELL)
    check(served)
