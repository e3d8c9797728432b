"""The server reaches the client's memory: through its files, and by messages."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rcdrv.device import DmaFlag, IrqKind, sealed_memory
from rcdrv.vfio_user import messages, version, wire
from rcdrv.vfio_user.dma import DmaSpace, SharedFile
from rcdrv.vfio_user.served import DmaFault, Peer
from rcdrv.vfio_user.wire import Message, WireCommand
from rcdrv.wait import Deadline

from .fake import BAR_TRAPPED, TIMEOUT, FakeDevice, RawClient, open_fds, served

BASE = 0x1_0000_0000
SIZE = 1 << 20


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("client-memory", os.MFD_CLOEXEC)
    os.pwrite(fd, random.Random(1).randbytes(SIZE), 0)
    yield fd
    os.close(fd)


def dma_map(
    raw: RawClient, address: int, size: int, fd: int = -1, offset: int = 0, flags: int = 3
) -> None:
    body = messages.DmaMap(flags, offset, address, size).pack()
    assert raw.error(WireCommand.DMA_MAP, body, fds=[fd] if fd >= 0 else []) == 0


def job(device: FakeDevice, raw: RawClient, work: Callable[[Peer], object]) -> None:
    """Have the device do ``work`` after the answer to a register write."""
    device.job_done.clear()
    device.soon(work)
    raw.ask(WireCommand.REGION_WRITE, messages.RegionAccess(0, BAR_TRAPPED, 1, b"!").pack()).close()


def outcome(device: FakeDevice) -> object:
    assert device.job_done.wait(TIMEOUT), "the device's work did not end"
    return device.results.pop()


def test_memory_shared_page_by_page(device: FakeDevice, raw: RawClient, memory: int) -> None:
    """As QEMU maps 1 MiB with a vIOMMU: 256 descriptors of one file, in no order."""
    before = len(open_fds())
    pages = list(range(SIZE // 4096))
    random.Random(2).shuffle(pages)
    for index, page in enumerate(pages):
        dma_map(raw, BASE + index * 4096, 4096, memory, page * 4096)
    assert len(open_fds()) - before <= 2, "a descriptor for each page is kept"
    content = os.pread(memory, SIZE, 0)
    expected = b"".join(content[page * 4096 : page * 4096 + 4096] for page in pages)
    job(device, raw, lambda peer: peer.dma_read(BASE + 1, SIZE - 2))
    assert outcome(device) == expected[1:-1]
    job(device, raw, lambda peer: peer.dma_write(BASE + 4090, b"across the edge"))
    assert outcome(device) is None
    assert os.pread(memory, 6, pages[0] * 4096 + 4090) == b"across"
    assert os.pread(memory, 9, pages[1] * 4096) == b" the edge"
    body = messages.DmaUnmap(0, BASE, SIZE).pack()
    assert raw.error(WireCommand.DMA_UNMAP, body) == 0
    assert len(open_fds()) == before
    job(device, raw, lambda peer: peer.dma_read(BASE, 1))
    assert isinstance(outcome(device), DmaFault)


def test_the_file_of_memory_is_known_to_the_device(
    device: FakeDevice, raw: RawClient, memory: int
) -> None:
    dma_map(raw, BASE, 8192, memory, 4096)

    def file(peer: Peer) -> tuple[bool, int]:
        found = peer.dma_file(BASE + 16, 4096)
        assert found is not None
        return os.path.sameopenfile(found[0], memory), found[1]

    job(device, raw, file)
    assert outcome(device) == (True, 4096 + 16)
    job(device, raw, lambda peer: peer.dma_file(BASE + 4096, 8192))  # half of it is not mapped
    assert outcome(device) is None


@pytest.mark.parametrize("sealed", [True, False])
def test_memory_that_may_shrink_is_not_accessed_directly(
    device: FakeDevice, raw: RawClient, sealed: bool
) -> None:
    """An access to a mapping of a truncated file raises SIGBUS."""
    fd = sealed_memory("client", SIZE) if sealed else os.memfd_create("client", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    before = len(open_fds())
    dma_map(raw, BASE, 8192, fd, 4096)
    dma_map(raw, BASE + SIZE, 8192, fd, flags=DmaFlag.READ)

    def write(peer: Peer) -> object:
        view = peer.dma_view(BASE + 16, 4096)
        if view is None:
            return None
        view[:4] = b"here"
        return len(view)

    job(device, raw, write)
    assert outcome(device) == (4096 if sealed else None)
    assert os.pread(fd, 4, 4096 + 16) == (b"here" if sealed else bytes(4))
    job(device, raw, lambda peer: peer.dma_view(BASE + 4096, 8192))  # half of it is not mapped
    assert outcome(device) is None
    for address in (BASE - 1, BASE + SIZE):  # not mapped, read-only
        job(device, raw, lambda peer, address=address: peer.dma_view(address, 1))  # type: ignore[misc]
        assert isinstance(outcome(device), DmaFault)
    assert raw.error(WireCommand.DMA_UNMAP, messages.DmaUnmap(0, BASE, SIZE + 8192).pack()) == 0
    job(device, raw, write)
    assert isinstance(outcome(device), DmaFault)
    assert len(open_fds()) == before
    os.close(fd)


def test_a_file_that_grew(device: FakeDevice, raw: RawClient, memory: int) -> None:
    dma_map(raw, BASE, SIZE, memory)
    os.ftruncate(memory, 2 * SIZE)
    os.pwrite(memory, b"new", SIZE)
    dma_map(raw, BASE + SIZE, SIZE, memory, SIZE)
    job(device, raw, lambda peer: peer.dma_read(BASE + SIZE - 1, 4))
    assert outcome(device) == os.pread(memory, 1, SIZE - 1) + b"new"


def test_a_file_that_shrank_is_a_fault_and_no_signal(
    device: FakeDevice, raw: RawClient, memory: int
) -> None:
    dma_map(raw, BASE, SIZE, memory)
    os.ftruncate(memory, 4096)
    job(device, raw, lambda peer: peer.dma_read(BASE + 8192, 4))
    assert isinstance(outcome(device), DmaFault)
    job(device, raw, lambda peer: peer.dma_write(BASE + 4094, b"four"))
    assert isinstance(outcome(device), DmaFault)


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (BASE - 1, 1),
        (BASE - 1, 2),
        (BASE + SIZE, 1),
        (BASE + SIZE - 1, 2),
        (0, 1),
        ((1 << 64) - 1, 2),
    ],
)
def test_unmapped_memory_is_a_fault(
    device: FakeDevice, raw: RawClient, memory: int, address: int, size: int
) -> None:
    dma_map(raw, BASE, SIZE, memory)
    before = os.pread(memory, SIZE, 0)
    job(device, raw, lambda peer: peer.dma_read(address, size))
    assert isinstance(outcome(device), DmaFault)
    job(device, raw, lambda peer: peer.dma_write(address, bytes(size)))
    assert isinstance(outcome(device), DmaFault)
    assert os.pread(memory, SIZE, 0) == before, "a part of the write was done"


def test_rights_of_a_mapping(device: FakeDevice, raw: RawClient, memory: int) -> None:
    dma_map(raw, BASE, 4096, memory, flags=1)
    dma_map(raw, BASE + 4096, 4096, memory, flags=2)
    for work, works in (
        (lambda peer: peer.dma_read(BASE, 1), True),
        (lambda peer: peer.dma_write(BASE, b"1"), False),
        (lambda peer: peer.dma_read(BASE + 4096, 1), False),
        (lambda peer: peer.dma_write(BASE + 4096, b"1"), True),
    ):
        job(device, raw, work)
        assert isinstance(outcome(device), DmaFault) != works


def test_mappings_are_limited(memory: int) -> None:
    space = DmaSpace(limit=2)
    for page in range(2):
        space.map(messages.DmaMap(3, 0, page * 4096, 4096), memory)
    with pytest.raises(wire.Refused) as refused:
        space.map(messages.DmaMap(3, 0, 8192, 4096), memory)
    assert refused.value.error == errno.ENOSPC
    space.clear()
    space.map(messages.DmaMap(3, 0, 0, 4096), memory)
    space.clear()


# -- by messages --------------------------------------------------------------------------------


def answer(raw: RawClient, request: Message, body: bytes = b"", error: int = 0) -> None:
    flags = wire.TYPE_REPLY | (wire.ERROR if error else 0)
    raw.connection.send(request.command, request.id, flags, body, Deadline(TIMEOUT), error=error)


def expect_read(raw: RawClient) -> tuple[Message, messages.DmaAccess]:
    request = raw.receive()
    assert request.is_command
    assert request.command == WireCommand.DMA_READ
    return request, messages.DmaAccess.unpack(request.body, with_data=False)


def test_reads_in_chunks(device: FakeDevice, raw: RawClient) -> None:
    dma_map(raw, BASE, SIZE)
    job(device, raw, lambda peer: peer.dma_read(BASE + 5, 150000))
    content = random.Random(3).randbytes(150000)
    done = 0
    for size in (65536, 65536, 18928):
        request, access = expect_read(raw)
        assert (access.address, access.count) == (BASE + 5 + done, size)
        data = content[done : done + size]
        answer(raw, request, messages.DmaAccess(access.address, size, data).pack())
        done += size
    assert outcome(device) == content


def test_chunks_no_longer_than_the_client_takes(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock, negotiate=False)
        capabilities = version.Capabilities(max_data_xfer_size=4096)
        raw.ask(WireCommand.VERSION, version.Version(0, 0, capabilities).pack()).close()
        dma_map(raw, BASE, SIZE)
        job(device, raw, lambda peer: peer.dma_write(BASE, b"x" * 5000))
        for size in (4096, 904):
            request = raw.receive()
            assert messages.DmaAccess.unpack(request.body, with_data=True).count == size
            answer(raw, request)
        assert outcome(device) is None
        raw.connection.close()


@pytest.mark.parametrize("length", [0, 12, 16], ids=["QEMU", "specification", "libvfio-user"])
def test_answers_to_a_write(device: FakeDevice, raw: RawClient, length: int) -> None:
    dma_map(raw, BASE, SIZE)
    job(device, raw, lambda peer: peer.dma_write(BASE + 1, b"data"))
    request = raw.receive()
    access = messages.DmaAccess.unpack(request.body, with_data=True)
    assert access == messages.DmaAccess(BASE + 1, 4, b"data")
    answer(raw, request, request.body[:length])
    assert outcome(device) is None


def test_requests_are_served_while_an_answer_is_outstanding(
    device: FakeDevice, raw: RawClient, memory: int, eventfds: list[int]
) -> None:
    """QEMU's processor threads go on accessing registers meanwhile (trap 1)."""
    dma_map(raw, BASE, SIZE)
    job(device, raw, lambda peer: peer.dma_read(BASE, 4))
    request, _ = expect_read(raw)
    body = messages.RegionAccess(4, BAR_TRAPPED, 4, b"more").pack()
    raw.ask(WireCommand.REGION_WRITE, body).close()
    read = messages.RegionAccess(4, BAR_TRAPPED, 4).pack()
    assert raw.ask(WireCommand.REGION_READ, read).body.endswith(b"more")
    dma_map(raw, BASE + SIZE, SIZE, memory)
    irqs = messages.IrqSet(0x24, IrqKind.MSI, 0, 1).pack()
    assert raw.error(WireCommand.DEVICE_SET_IRQS, irqs, eventfds[:1]) == 0
    assert not device.job_done.is_set()
    answer(raw, request, messages.DmaAccess(BASE, 4, b"late").pack())
    assert outcome(device) == b"late"


def test_memory_that_is_unmapped_while_it_is_read(device: FakeDevice, raw: RawClient) -> None:
    dma_map(raw, BASE, SIZE)
    job(device, raw, lambda peer: peer.dma_read(BASE, 100000))
    request, access = expect_read(raw)
    assert raw.error(WireCommand.DMA_UNMAP, messages.DmaUnmap(0, BASE, SIZE).pack()) == 0
    answer(raw, request, messages.DmaAccess(BASE, access.count, bytes(access.count)).pack())
    assert isinstance(outcome(device), DmaFault)


@pytest.mark.parametrize(
    ("command", "body", "error"),
    [
        (WireCommand.DMA_READ, b"", errno.EFAULT),
        (WireCommand.DMA_READ, b"", 0),
        (WireCommand.DMA_READ, messages.DmaAccess(BASE, 3, b"123").pack(), 0),
        (WireCommand.DMA_READ, messages.DmaAccess(BASE, 4, b"123").pack(), 0),
        (WireCommand.DMA_WRITE, messages.DmaAccess(BASE, 4, b"1234").pack(), 0),
    ],
)
def test_answers_that_are_a_fault(
    device: FakeDevice, raw: RawClient, command: int, body: bytes, error: int
) -> None:
    dma_map(raw, BASE, SIZE)
    job(device, raw, lambda peer: peer.dma_read(BASE, 4))
    request, _ = expect_read(raw)
    request.command = command
    answer(raw, request, body, error)
    assert isinstance(outcome(device), DmaFault)
    assert raw.error(WireCommand.DEVICE_RESET) == 0


def test_an_answer_that_does_not_come(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock)
        dma_map(raw, BASE, SIZE)
        session: Any = device.peer
        session._timeout = 0.1
        job(device, raw, lambda peer: peer.dma_read(BASE, 4))
        request, access = expect_read(raw)
        assert isinstance(outcome(device), DmaFault)
        session._timeout = TIMEOUT
        answer(raw, request, messages.DmaAccess(access.address, 4, b"late").pack())
        # The next request is not confused by it.
        job(device, raw, lambda peer: peer.dma_read(BASE, 4))
        request, _ = expect_read(raw)
        answer(raw, request, messages.DmaAccess(access.address, 4, b"good").pack())
        assert outcome(device) == b"good"
        raw.connection.close()


def test_a_client_that_vanishes_instead_of_answering(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock)
        dma_map(raw, BASE, SIZE)
        job(device, raw, lambda peer: peer.dma_write(BASE, b"1234"))
        raw.receive().close()
        started = time.monotonic()
        raw.connection.close()
    assert isinstance(outcome(device), DmaFault)
    assert time.monotonic() - started < TIMEOUT / 2
    assert device.detached.is_set()


def test_a_stopped_server_does_not_wait_for_an_answer(device: FakeDevice) -> None:
    started = time.monotonic()
    with served(device, linger=True) as sock:
        raw = RawClient(sock)
        dma_map(raw, BASE, SIZE)
        job(device, raw, lambda peer: peer.dma_write(BASE, b"1234"))
        raw.receive().close()
    assert isinstance(outcome(device), DmaFault)
    assert time.monotonic() - started < TIMEOUT / 2


def test_the_peer_of_a_client_that_has_gone(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock)
        dma_map(raw, BASE, SIZE)
        peer = device.peer
        assert peer is not None
        raw.connection.close()
    assert not peer.trigger(IrqKind.MSI, 0)
    assert peer.armed(IrqKind.MSI) == 0
    with pytest.raises(DmaFault):
        peer.dma_read(BASE, 4)


class Impatient(FakeDevice):
    def write(self, region: int, offset: int, data: bytes) -> None:
        assert self.peer is not None
        self.peer.dma_write(BASE, data)


def test_dma_before_the_answer_to_a_write_is_a_mistake_of_the_device() -> None:
    device = Impatient()

    def session() -> None:
        with served(device) as sock:
            raw = RawClient(sock)
            dma_map(raw, BASE, SIZE)
            raw.send(
                WireCommand.REGION_WRITE, messages.RegionAccess(0, BAR_TRAPPED, 1, b"!").pack()
            )
            with pytest.raises(wire.Disconnected):
                raw.receive()
            raw.connection.close()

    with pytest.raises(RuntimeError, match="answered"):
        session()
    device.close()


# -- memory that is not there -------------------------------------------------------------------


def test_a_file_without_a_write_operation(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """hugetlbfs: pwrite(2) is EINVAL, and a mapping that lost its pages must not be SIGBUS."""

    def pwrite(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "pwrite", pwrite)
    file = SharedFile((0, 0, os.O_RDWR), memory)
    try:
        file.write(4093, b"across")
        file.write(SIZE - 3, b"end")
        assert os.pread(memory, 6, 4093) == file.read(4093, 6) == b"across"
        assert file.read(SIZE - 3, 3) == b"end"
        monkeypatch.setattr(file, "holds", lambda *_: True)  # as between the check and the copy
        for size in (4096, 0):
            os.ftruncate(memory, size)
            with pytest.raises(DmaFault, match="cannot be written: Bad address"):
                file.write(4096, b"late")
    finally:
        file.close()


def test_a_full_file_system(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    file = SharedFile((0, 0, os.O_RDWR), memory)
    with pytest.raises(DmaFault, match="cannot be written: No space left"):
        file.write(0, b"data")
    file.close()
