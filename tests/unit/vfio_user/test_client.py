"""The client, against the real server, and against servers that lie, hang or vanish."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcdrv.device import (
    CONFIG_REGION,
    Area,
    IrqKind,
    RegionFlag,
    RegionInfo,
    SetIrqs,
    sealed_memory,
)
from rcdrv.errors import DeviceLost, EndpointError, HostError, RcdrvError
from rcdrv.vfio_user import messages, version, wire
from rcdrv.vfio_user.client import Client
from rcdrv.vfio_user.served import ServedRegion
from rcdrv.vfio_user.wire import Message, WireCommand
from rcdrv.wait import Deadline

from .fake import (
    BAR_MAPPED,
    BAR_READ_ONLY,
    BAR_SPARSE,
    BAR_TRAPPED,
    PAGE,
    RW,
    TIMEOUT,
    FakeDevice,
    Script,
    Thread,
    connected,
    served,
)

Act = Callable[[Script, Message], bool]

EVENTFD_TRIGGER = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER


@contextlib.contextmanager
def scripted(act: Act, timeout: float = TIMEOUT) -> Iterator[Client]:
    script = Script(act)
    try:
        with contextlib.closing(Client(script.sock, "fake", timeout)) as client:
            yield client
    finally:
        script.close()


# -- what works ---------------------------------------------------------------------------------


def test_names(client: Client) -> None:
    assert (client.address, client.backend) == ("fake", "vfio-user")
    assert client.fileno() >= 0
    assert list(client.dma_ranges()) == [(0, (1 << 64) - 1)]


def test_regions(device: FakeDevice, client: Client) -> None:
    mappable = RW | RegionFlag.MMAP
    areas = (Area(PAGE, PAGE), Area(3 * PAGE, PAGE))
    assert client.region(BAR_TRAPPED) == RegionInfo(BAR_TRAPPED, 1 << 20, RW)
    assert client.region(BAR_SPARSE) == RegionInfo(BAR_SPARSE, 4 * PAGE, mappable, areas)
    whole = (Area(0, 2 * PAGE),)
    assert client.region(BAR_MAPPED) == RegionInfo(BAR_MAPPED, 2 * PAGE, mappable, whole)
    assert client.region(BAR_READ_ONLY) == RegionInfo(BAR_READ_ONLY, 100, RegionFlag.READ)
    assert client.region(CONFIG_REGION).size == 256
    assert client.region(1).size == client.region(99).size == client.region(-1).size == 0


def test_many_areas(device: FakeDevice) -> None:
    """More than fit in the reply that the client has room for at first."""
    os.ftruncate(device.shared, 1000 * PAGE)
    areas = tuple(Area(page * PAGE, PAGE) for page in range(0, 1000, 2))
    device.layout[3] = type(device.layout[3])(1000 * PAGE, RW, areas, device.shared)
    with connected(device) as client:
        assert client.region(3).areas == areas


def test_map(device: FakeDevice, client: Client) -> None:
    with client.map(BAR_SPARSE, Area(3 * PAGE, PAGE)) as memory:
        os.pwrite(device.shared, b"there", 3 * PAGE)
        assert memory[:5] == b"there"
        memory[8:12] = b"back"
        assert os.pread(device.shared, 4, 3 * PAGE + 8) == b"back"
    with pytest.raises(HostError, match="cannot be mapped"):
        client.map(BAR_SPARSE, Area(0, PAGE))
    with pytest.raises(HostError, match="cannot be mapped"):
        client.map(BAR_TRAPPED, Area(0, PAGE))


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_register_access_is_one_access(device: FakeDevice, client: Client, width: int) -> None:
    data = bytes(range(1, width + 1))
    client.write(BAR_TRAPPED, 64, data)
    assert client.read(BAR_TRAPPED, 64, width) == data
    assert device.take() == [
        ("write", BAR_TRAPPED, 64, data),
        ("read", BAR_TRAPPED, 64, width),
    ]


def test_a_posted_write_has_no_answer(device: FakeDevice, client: Client) -> None:
    """And one that is refused leaves the next answer to the next question."""
    client.post(BAR_TRAPPED, 64, b"\1\2\3\4")
    client.post(CONFIG_REGION, 256, bytes(4))
    assert client.read(BAR_TRAPPED, 64, 4) == b"\1\2\3\4"
    assert device.take() == [
        ("write", BAR_TRAPPED, 64, b"\1\2\3\4"),
        ("read", BAR_TRAPPED, 64, 4),
    ]


def test_a_posted_write_to_a_server_that_has_gone() -> None:
    script = Script(lambda _script, _message: False)
    with contextlib.closing(Client(script.sock, "fake")) as client:
        script.connection.shutdown()
        for _ in range(2):
            with pytest.raises(DeviceLost, match="gone before its answer to REGION_WRITE"):
                client.post(BAR_TRAPPED, 64, bytes(4))
    script.close()


def test_a_server_that_answers_a_posted_write() -> None:
    """Its answer is not taken for the one to the next question, nor left unsaid."""

    def act(script: Script, message: Message) -> bool:
        posted = bool(message.flags & wire.NO_REPLY)
        if posted:
            script.reply(message, messages.RegionAccess(0, BAR_TRAPPED, 4).pack())
        return posted

    script = Script(act)
    with contextlib.closing(Client(script.sock, "fake")) as client:
        client.post(BAR_TRAPPED, 0, b"1234")
        with pytest.raises(DeviceLost, match=r"REGION_READ \d+ was answered by REGION_WRITE \d+"):
            client.read(BAR_TRAPPED, 0, 4)
    script.close()


def test_a_server_that_never_reads_posted_writes() -> None:
    stop = threading.Event()
    script = Script(lambda _script, message: bool(message.flags & wire.NO_REPLY) and stop.wait(60))
    with contextlib.closing(Client(script.sock, "fake")) as client:
        client.timeout = 0.2

        def fill() -> None:
            for _ in range(100_000):
                client.post(BAR_TRAPPED, 0, b"1234")

        with pytest.raises(DeviceLost, match="REGION_WRITE"):
            fill()
        stop.set()
    script.close()


def test_long_accesses_are_split(device: FakeDevice, client: Client) -> None:
    content = os.urandom(150000)
    client.write(BAR_TRAPPED, 8, content)
    assert client.read(BAR_TRAPPED, 8, 150000) == content
    calls = device.take()
    assert [(call[0], call[2]) for call in calls] == [
        (name, 8 + start) for name in ("write", "read") for start in (0, 65536, 131072)
    ]


def test_accesses_of_nothing(device: FakeDevice, client: Client) -> None:
    assert client.read(BAR_TRAPPED, 0, 0) == b""
    client.write(BAR_TRAPPED, 0, b"")
    assert device.take() == []


def test_an_access_that_is_refused(client: Client) -> None:
    with pytest.raises(HostError, match="REGION_READ was refused"):
        client.read(CONFIG_REGION, 256, 4)
    assert client.read(CONFIG_REGION, 0, 4) == bytes(4)


def test_write_many(device: FakeDevice, client: Client) -> None:
    writes = [(BAR_TRAPPED, offset, bytes([offset % 251] * 4)) for offset in range(0, 16000, 4)]
    client.write_many(writes)
    assert device.take() == [("write", *write) for write in writes]
    with pytest.raises(HostError, match="refused"):
        client.write_many([(CONFIG_REGION, 256, b"!")])


def test_write_many_to_a_server_that_cannot() -> None:
    seen = []

    def act(script: Script, message: Message) -> bool:
        if message.command == WireCommand.VERSION:
            script.reply(message, version.Version(0, 0, version.Capabilities()).pack())
            return True
        if message.command == WireCommand.REGION_WRITE:
            access = messages.RegionAccess.unpack(message.body, with_data=True)
            seen.append(access.data)
            done = messages.RegionAccess(access.offset, access.region, access.count)
            script.reply(message, done.pack())
            return True
        return False

    with scripted(act) as client:
        client.write_many([(0, 0, b"one"), (0, 4, b"two")])
    assert seen == [b"one", b"two"]


def test_irq_counts(client: Client) -> None:
    assert [client.irq_count(kind) for kind in IrqKind] == [1, 32, 2048, 1, 1]


def test_set_irqs(device: FakeDevice, client: Client, eventfds: list[int]) -> None:
    fds = eventfds[:32]
    assert client.set_irqs(IrqKind.MSI, EVENTFD_TRIGGER, 0, 32, fds) == 0
    assert device.take() == [("irqs", IrqKind.MSI, 16), ("irqs", IrqKind.MSI, 32)]
    flags = SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER
    assert client.set_irqs(IrqKind.MSI, flags, 31, 1) == 0
    assert os.eventfd_read(fds[31]) == 1
    assert client.set_irqs(IrqKind.MSI, flags, 0, 0) == 0
    assert device.take() == [("irqs", IrqKind.MSI, 0)]


def test_set_irqs_with_gaps(device: FakeDevice, client: Client, eventfds: list[int]) -> None:
    wanted = [eventfds[0], -1, -1, eventfds[1], eventfds[2], -1]
    client.set_irqs(IrqKind.MSIX, EVENTFD_TRIGGER, 0, 6, eventfds[3:9])
    client.set_irqs(IrqKind.MSIX, EVENTFD_TRIGGER, 0, 6, wanted)
    peer = device.peer
    assert peer is not None
    assert [peer.trigger(IrqKind.MSIX, vector) for vector in range(6)] == [fd >= 0 for fd in wanted]
    assert [os.eventfd_read(fd) for fd in eventfds[:3]] == [1, 1, 1]


def test_set_irqs_by_bool(device: FakeDevice, client: Client, eventfds: list[int]) -> None:
    client.set_irqs(IrqKind.MSI, EVENTFD_TRIGGER, 0, 3, eventfds[:3])
    flags = SetIrqs.DATA_BOOL | SetIrqs.ACTION_TRIGGER
    client.set_irqs(IrqKind.MSI, flags, 0, 3, [0, 1, 0])
    poll = select.poll()
    for fd in eventfds[:3]:
        poll.register(fd, select.POLLIN)
    assert [fd for fd, _ in poll.poll(0)] == [eventfds[1]]


def test_set_irqs_beyond_the_last_vector(client: Client, eventfds: list[int]) -> None:
    with pytest.raises(HostError, match="refused"):
        client.set_irqs(IrqKind.MSI, EVENTFD_TRIGGER, 31, 2, eventfds[:2])
    with pytest.raises(ValueError, match="eventfds"):
        client.set_irqs(IrqKind.MSI, EVENTFD_TRIGGER, 0, 2, eventfds[:1])


def test_a_descriptor_that_cannot_be_sent(client: Client) -> None:
    with pytest.raises(HostError, match="cannot send DEVICE_SET_IRQS"):
        client.set_irqs(IrqKind.MSI, EVENTFD_TRIGGER, 0, 1, [1 << 20])
    assert client.read(CONFIG_REGION, 0, 4) == bytes(4)


def test_reset(device: FakeDevice, client: Client) -> None:
    assert client.can_reset()
    client.reset()
    assert device.take() == [("reset",)]


def test_no_reset(device: FakeDevice) -> None:
    device.resettable = False
    with connected(device) as client:
        assert not client.can_reset()
        with pytest.raises(HostError, match="refused"):
            client.reset()


def test_dma(device: FakeDevice, client: Client) -> None:
    fd = os.memfd_create("buffer", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE)
    with mmap.mmap(fd, PAGE) as memory:
        memory[:4] = b"ping"
        client.dma_map(0x100000, memory, len(memory), fd)
        device.soon(lambda peer: peer.dma_read(0x100000, 4))
        device.soon(lambda peer: peer.dma_write(0x100010, b"pong"))
        client.write(BAR_TRAPPED, 0, b"go")
        assert device.job_done.wait(TIMEOUT)
        assert device.results == [b"ping", None]
        assert memory[16:20] == b"pong"
        with pytest.raises(HostError, match="DMA_MAP was refused: File exists"):
            client.dma_map(0x100000, memory, len(memory), -1)
        client.dma_unmap(0x100000, PAGE)
        with pytest.raises(HostError, match="DMA_UNMAP was refused"):
            client.dma_unmap(0x100000, PAGE)
    os.close(fd)


def test_dma_by_messages(device: FakeDevice, client: Client) -> None:
    """Memory without a descriptor: the server asks the client for it."""
    content = os.urandom(40 * PAGE)
    with (
        mmap.mmap(-1, 20 * PAGE) as one,
        mmap.mmap(-1, 20 * PAGE) as other,
    ):
        one[:], other[:] = content[: 20 * PAGE], content[20 * PAGE :]
        client.dma_map(0x200000, one, len(one), -1)
        client.dma_map(0x200000 + 20 * PAGE, other, len(other), -1)
        device.soon(lambda peer: peer.dma_read(0x200000, 40 * PAGE))
        device.soon(lambda peer: peer.dma_write(0x200000 + 20 * PAGE - 2, b"edge"))
        while not device.job_done.is_set():
            # Served while the client waits for a reply of its own.
            client.write(BAR_TRAPPED, 0, b"tick")
        assert device.results == [content, None]
        assert (one[-2:], other[:2]) == (b"ed", b"ge")
        device.job_done.clear()
        device.soon(lambda peer: peer.dma_read(0x200000, 3))
        client.write(BAR_TRAPPED, 0, b"tick")
        poll = select.poll()
        poll.register(client.fileno(), select.POLLIN)
        while not device.job_done.is_set():
            # And while it waits for an interrupt.
            if poll.poll(10):
                client.on_readable()
        assert device.results.pop() == content[:3]


def test_requests_that_the_client_refuses() -> None:
    """One REGION_READ, during which the server asks for what it may not have."""
    errors = []
    requests = [
        (WireCommand.DMA_READ, messages.DmaAccess(0x100000, 4).pack()),
        (WireCommand.DMA_WRITE, messages.DmaAccess(0x100000, 4, b"1234").pack()),
        (WireCommand.DMA_WRITE, messages.DmaAccess(0x100000, 4, b"123").pack()),
        (WireCommand.DMA_READ, messages.DmaAccess(0, 1 << 40).pack()),
        (WireCommand.DMA_READ, b""),
        (WireCommand.REGION_READ, bytes(16)),
    ]

    def act(script: Script, message: Message) -> bool:
        if message.command != WireCommand.REGION_READ:
            return False
        for command, body in requests:
            script.connection.send(command, 9, 0, body, Deadline(TIMEOUT))
            reply = script.connection.receive(Deadline(TIMEOUT))
            assert reply is not None
            errors.append(reply.error)
        access = messages.RegionAccess.unpack(message.body, with_data=False)
        data = messages.RegionAccess(access.offset, access.region, access.count, b"done").pack()
        script.reply(message, data)
        return True

    with scripted(act) as client:
        assert client.read(0, 0, 4) == b"done"
    bad, fault, many, never = errno.EINVAL, errno.EFAULT, errno.E2BIG, errno.ENOTSUP
    assert errors == [fault, fault, bad, many, bad, never]


def test_closing_twice(device: FakeDevice) -> None:
    with served(device) as sock:
        client = Client(sock, "fake")
        client.region(BAR_SPARSE)
        client.close()
        client.close()
        with pytest.raises(DeviceLost, match="closed"):
            client.read(0, 0, 4)


# -- servers that hang or vanish ----------------------------------------------------------------

CALLS: dict[str, Callable[[Client], object]] = {
    "DEVICE_GET_REGION_INFO": lambda client: client.region(0),
    "DEVICE_GET_IRQ_INFO": lambda client: client.irq_count(IrqKind.MSI),
    "DEVICE_SET_IRQS": lambda client: client.set_irqs(IrqKind.MSI, SetIrqs(0x21), 0, 0),
    "REGION_READ": lambda client: client.read(0, 0, 4),
    "REGION_WRITE": lambda client: client.write(0, 0, b"1234"),
    "REGION_WRITE_MULTI": lambda client: client.write_many([(0, 0, b"1234")]),
    "DMA_UNMAP": lambda client: client.dma_unmap(0, 4096),
    "DEVICE_RESET": lambda client: client.reset(),
}


class LateDeadline(Deadline):
    """Every answer seems to have taken a second."""

    __slots__ = ()

    @property
    def remaining(self) -> float:
        return self.seconds - 1.0


@pytest.mark.parametrize(("timeout", "calls", "cleanup"), [(1.0, 10, 2), (10.0, 19, 4)])
def test_late_answers_are_bounded_in_sum(
    client: Client, monkeypatch: pytest.MonkeyPatch, timeout: float, calls: int, cleanup: int
) -> None:
    """Each of the 60 answers of a ring was late: `--timeout 1` took a minute."""
    client.timeout = 10.0
    client.allow(timeout)
    monkeypatch.setattr("rcdrv.vfio_user.caller.Deadline", LateDeadline)
    for expected in (calls, cleanup):
        for _ in range(expected):
            client.read(BAR_TRAPPED, 0, 4)
        with pytest.raises(DeviceLost, match="replies are too slow"):
            client.read(BAR_TRAPPED, 0, 4)
    client.allow(1000.0)
    with pytest.raises(DeviceLost, match="replies are too slow"):  # for good
        client.read(BAR_TRAPPED, 0, 4)


def test_a_server_that_reads_posted_writes_slowly_is_bounded_in_sum(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posts had no budget: 185 of them took 6 s of a time-out of 1 s."""
    client.timeout = 10.0
    monkeypatch.setattr("rcdrv.vfio_user.caller.Deadline", LateDeadline)
    for _ in range(10):
        client.post(BAR_TRAPPED, 0, b"1234")
    with pytest.raises(DeviceLost, match="replies are too slow"):
        client.post(BAR_TRAPPED, 0, b"1234")


def test_late_answers_within_the_users_patience(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.timeout = 10.0
    client.allow(20.0)
    monkeypatch.setattr("rcdrv.vfio_user.caller.Deadline", LateDeadline)
    for _ in range(100):
        client.read(BAR_TRAPPED, 0, 4)


@pytest.mark.parametrize("name", CALLS)
def test_silence(name: str) -> None:
    def act(_script: Script, message: Message) -> bool:
        return wire.command_name(message.command) == name

    with scripted(act) as client:
        client.timeout = 0.05  # now that it has agreed on a version
        with pytest.raises(DeviceLost, match=f"no answer to {name} within 0.05 s") as lost:
            CALLS[name](client)
        assert lost.value.hint
        for call in CALLS.values():
            with pytest.raises(DeviceLost) as again:
                call(client)
            assert again.value.message == lost.value.message
        with pytest.raises(DeviceLost):
            client.on_readable()
        assert select.select([client.fileno()], [], [], TIMEOUT)[0], "nobody who waits wakes up"


@pytest.mark.parametrize("name", CALLS)
def test_a_server_that_vanishes(name: str) -> None:
    def act(script: Script, message: Message) -> bool:
        if wire.command_name(message.command) == name:
            script.connection.close()
            raise wire.Disconnected("over")
        return False

    with scripted(act) as client:
        started = time.monotonic()
        with pytest.raises(DeviceLost, match=f"gone before its answer to {name}"):
            CALLS[name](client)
        assert time.monotonic() - started < TIMEOUT / 2
        with pytest.raises(DeviceLost, match="gone before its answer"):
            client.region(7)


def test_a_server_that_vanishes_while_nobody_asks(device: FakeDevice) -> None:
    script = Script(lambda _script, _message: False)
    with contextlib.closing(Client(script.sock, "fake")) as client:
        script.connection.shutdown()
        assert select.select([client.fileno()], [], [], TIMEOUT)[0]
        with pytest.raises(DeviceLost, match="is gone"):
            client.on_readable()
    script.close()


def test_the_page_size_of_the_server() -> None:
    def act(script: Script, message: Message) -> bool:
        if message.command == WireCommand.VERSION:
            script.reply(
                message, version.Version(0, 0, version.Capabilities(pgsizes=0x110000)).pack()
            )
        elif message.command == WireCommand.DMA_MAP:
            script.reply(message)
        return message.command in (WireCommand.VERSION, WireCommand.DMA_MAP)

    with scripted(act) as client, mmap.mmap(-1, 0x10000) as memory:
        client.dma_map(0x10000, memory, 0x10000, -1)
        for iova, size in ((0x20000, 0x1000), (0x21000, 0x10000)):
            with pytest.raises(HostError, match="in pages of 0x10000 bytes"):
                client.dma_map(iova, memory, size, -1)


def test_a_wait_handles_one_message_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server that sends for ever would keep it beyond its bound."""
    script = Script(lambda _script, _message: False)
    with contextlib.closing(Client(script.sock, "fake")) as client:
        served: list[Message] = []
        monkeypatch.setattr(
            client._caller, "_serve", lambda message, _deadline: served.append(message)
        )
        for number in range(3):
            body = messages.DmaAccess(0, 4).pack()
            script.connection.send(
                WireCommand.DMA_READ, number, wire.NO_REPLY, body, Deadline(TIMEOUT)
            )
        for number in range(3):
            client.on_readable()
            assert [message.id for message in served] == list(range(number + 1))
    script.close()


def test_a_server_that_talks_but_never_answers(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests must not keep the client waiting beyond the time-out."""
    request = Message(1, WireCommand.DMA_READ, wire.NO_REPLY, 0, messages.DmaAccess(0, 4).pack())
    monkeypatch.setattr(client, "timeout", 0.1)
    monkeypatch.setattr(client._caller._connection, "receive", lambda _deadline: request)
    with pytest.raises(DeviceLost, match="no answer to DEVICE_RESET"):
        client.reset()


# -- servers that lie ---------------------------------------------------------------------------


@pytest.mark.parametrize("lie", ["id", "command", "type", "frame"])
def test_an_answer_to_another_question(lie: str) -> None:
    def act(script: Script, message: Message) -> bool:
        if message.command != WireCommand.DEVICE_RESET:
            return False
        if lie == "id":
            script.reply(message, number=message.id ^ 1)
        elif lie == "command":
            script.reply(message, command=WireCommand.REGION_READ)
        elif lie == "type":
            script.connection.send(message.command, message.id, 3, b"", Deadline(TIMEOUT))
        else:
            raw = wire.HEADER.pack(message.id, message.command, 3, 1, 0)
            os.write(script.connection.fileno(), raw)
        return True

    with scripted(act) as client:
        with pytest.raises(DeviceLost):
            client.reset()
        with pytest.raises(DeviceLost):
            client.reset()


def answer_with(command: int, body: bytes, fds: tuple[int, ...] = ()) -> Act:
    def act(script: Script, message: Message) -> bool:
        if message.command != command:
            return False
        script.reply(message, body, fds=fds)
        return True

    return act


@pytest.mark.parametrize(
    "body",
    [
        b"",
        messages.RegionAccess(0, 0, 4, b"123").pack(),
        messages.RegionAccess(0, 0, 4, b"12345").pack(),
        messages.RegionAccess(0, 0, 3, b"123").pack(),
        messages.RegionAccess(0, 0, 8, b"12345678").pack(),
        messages.RegionAccess(0, 0, 0xFFFFFFFF, b"1234").pack(),
        messages.RegionAccess(4, 0, 4, b"1234").pack(),
        messages.RegionAccess(0, 1, 4, b"1234").pack(),
    ],
)
def test_a_wrong_answer_to_a_read(body: bytes) -> None:
    with scripted(answer_with(WireCommand.REGION_READ, body)) as client:
        with pytest.raises(DeviceLost, match="a wrong answer to an access of 4 bytes"):
            client.read(0, 0, 4)
        with pytest.raises(DeviceLost):
            client.irq_count(IrqKind.MSI)


@pytest.mark.parametrize(
    "body",
    [b"", messages.RegionAccess(0, 0, 3).pack(), messages.RegionAccess(0, 0, 4, b"1234").pack()],
)
def test_a_wrong_answer_to_a_write(body: bytes) -> None:
    with (
        scripted(answer_with(WireCommand.REGION_WRITE, body)) as client,
        pytest.raises(DeviceLost, match="a wrong answer"),
    ):
        client.write(0, 0, b"1234")


def test_an_error_without_a_reason() -> None:
    def act(script: Script, message: Message) -> bool:
        if message.command != WireCommand.DEVICE_RESET:
            return False
        flags = wire.TYPE_REPLY | wire.ERROR
        script.connection.send(message.command, message.id, flags, b"", Deadline(TIMEOUT))
        return True

    with scripted(act) as client, pytest.raises(HostError, match="no reason given"):
        client.reset()


def region_info(
    index: int = 0, flags: int = 15, size: int = 4 * PAGE, offset: int = 0, *areas: Area
) -> bytes:
    return messages.WireRegionInfo(index, flags, size, offset, areas or None).pack(room=65536)


LOOP = struct.pack("=IIIIQQ", 40, 15, 0, 32, 4096, 0) + struct.pack("=HHI", 9, 1, 32)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(LOOP, id="chain"),
        pytest.param(region_info(1), id="index"),
        pytest.param(struct.pack("=IIIIQQ", 100, 15, 0, 32, 4096, 0), id="cut off"),
        pytest.param(struct.pack("=IIIIQQ", 1 << 20, 15, 0, 32, 4096, 0), id="argsz"),
        pytest.param(region_info(0, 3, (1 << 64) - 1, 4096), id="size"),
        pytest.param(region_info(0, 15, 4 * PAGE, 0, Area(PAGE, 4 * PAGE)), id="outside"),
        pytest.param(region_info(0, 15, 4 * PAGE, 0, Area((1 << 64) - PAGE, PAGE)), id="far"),
        pytest.param(
            region_info(0, 15, 4 * PAGE, 0, Area(0, 2 * PAGE), Area(PAGE, PAGE)), id="overlap"
        ),
        pytest.param(region_info(0, 7, 8 * PAGE), id="beyond the file"),
        pytest.param(region_info(0, 7, 4 * PAGE, PAGE), id="offset beyond the file"),
    ],
)
def test_region_info_that_lies(device: FakeDevice, body: bytes) -> None:
    act = answer_with(WireCommand.DEVICE_GET_REGION_INFO, body, (device.shared,))
    with scripted(act) as client:
        with pytest.raises(EndpointError, match="fake: "):
            client.region(0)
        assert client.region(99).size == 0, "the connection itself is sound"


@pytest.mark.parametrize(
    ("body", "descriptors", "areas"),
    [
        (region_info(0, 7, 4 * PAGE), 1, (Area(0, 4 * PAGE),)),
        (struct.pack("=IIIIQQ", 4096, 7, 0, 0, PAGE, 0), 1, (Area(0, PAGE),)),
        (region_info(0, 7, 4 * PAGE), 0, ()),
        (region_info(0, 7, 4 * PAGE), 2, ()),
        (region_info(0, 3, 4 * PAGE), 1, ()),
        (region_info(0, 7, 100), 1, ()),
        (region_info(0, 7, 2 * PAGE, 1), 1, ()),
        (region_info(0, 15, 4 * PAGE, 0, Area(0, 100), Area(PAGE, PAGE)), 1, (Area(PAGE, PAGE),)),
        (region_info(0, 15, 4 * PAGE, 0, Area(0, 0)), 1, ()),
    ],
)
def test_what_cannot_be_mapped_is_trapped(
    device: FakeDevice, body: bytes, descriptors: int, areas: tuple[Area, ...]
) -> None:
    fds = (device.shared,) * descriptors
    with scripted(answer_with(WireCommand.DEVICE_GET_REGION_INFO, body, fds)) as client:
        assert client.region(0).areas == areas


def test_a_region_that_the_server_will_not_describe() -> None:
    def act(script: Script, message: Message) -> bool:
        if message.command in (WireCommand.DEVICE_GET_REGION_INFO, WireCommand.DEVICE_GET_IRQ_INFO):
            script.reply(message, error=errno.EINVAL)
            return True
        return False

    with scripted(act) as client:
        assert client.region(0).size == 0
        assert client.irq_count(IrqKind.ERR) == 0


@pytest.mark.parametrize(
    "body", [b"", messages.IrqInfo(2, 1, 4).pack(), messages.IrqInfo(1, 1, 33).pack()]
)
def test_irq_info_that_lies(body: bytes) -> None:
    with (
        scripted(answer_with(WireCommand.DEVICE_GET_IRQ_INFO, body)) as client,
        pytest.raises(EndpointError),
    ):
        client.irq_count(IrqKind.MSI)


# -- connecting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [
        (b"", HostError, "VERSION"),
        (b"HTTP/1.1 400 Bad Request", HostError, "NUL"),
        (struct.pack("=HH", 1, 0), HostError, "speaks vfio-user 1.0"),
        (struct.pack("=HH", 0, 1), HostError, "speaks vfio-user 0.1"),
        (
            version.Version(0, 0, version.Capabilities(max_data_xfer_size=4)).pack(),
            HostError,
            "4 bytes in a message",
        ),
        (version.Version(0, 0, version.Capabilities(pgsizes=0)).pack(), HostError, "no page size"),
    ],
)
def test_a_version_that_does_not_fit(body: bytes, error: type[RcdrvError], match: str) -> None:
    with pytest.raises(error, match=match) as raised, scripted(answer_with(1, body)):
        pass
    assert raised.value.hint


@pytest.mark.parametrize(
    ("info", "error"),
    [
        (messages.DeviceInfo(0, 9, 5), HostError),
        (messages.DeviceInfo(2, 101, 5), EndpointError),
        (messages.DeviceInfo(2, 9, 0xFFFFFFFF), EndpointError),
    ],
)
def test_a_device_that_is_none(info: messages.DeviceInfo, error: type[RcdrvError]) -> None:
    with pytest.raises(error), scripted(answer_with(WireCommand.DEVICE_GET_INFO, info.pack())):
        pass


def test_a_version_that_is_refused() -> None:
    def act(script: Script, message: Message) -> bool:
        script.reply(message, error=errno.EINVAL)
        return True

    with pytest.raises(HostError, match="VERSION was refused"), scripted(act):
        pass


def test_a_server_that_says_nothing() -> None:
    with (
        pytest.raises(DeviceLost, match="no answer to VERSION") as lost,
        scripted(lambda _script, _message: True, timeout=0.05),
    ):
        pass
    assert "one client at a time" in lost.value.hint


def test_a_server_of_another_protocol(tmp_path: Path) -> None:
    path = tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = Thread(answer)
        with pytest.raises(HostError, match="no vfio-user answer") as raised:
            Client.connect(path, TIMEOUT)
        assert "rcdrv sim" in raised.value.hint
        thread.finish()


def test_no_such_socket(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no such socket") as raised:
        Client.connect(tmp_path / "absent")
    assert "rcdrv sim" in raised.value.hint


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    with pytest.raises(HostError, match="no server listens"):
        Client.connect(path)


def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "private"
    user = os.geteuid()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        path.chmod(0)
        if user == 0:
            os.seteuid(65534)  # everything is permitted to root
        try:
            with pytest.raises(HostError, match="permission denied"):
                Client.connect(path)
        finally:
            os.seteuid(user)


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(HostError, match="too long"):
        Client.connect("/" + "x" * 200)


def test_a_queue_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "popular"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(path))
        with pytest.raises(HostError, match="busy"):
            Client.connect(path, 0.05)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_file_that_may_shrink(device: FakeDevice, sealed: bool) -> None:
    """The command line goes on in a child then: see rcdrv.cli.guard."""
    fd = sealed_memory("bar", PAGE) if sealed else os.dup(device.shared)
    device.layout[BAR_MAPPED] = ServedRegion(PAGE, RW, (Area(0, PAGE),), fd)
    with connected(device) as client:
        assert client.sealed
        client.region(BAR_MAPPED)
        assert client.sealed == client.in_memory(BAR_MAPPED) == sealed
    os.close(fd)
