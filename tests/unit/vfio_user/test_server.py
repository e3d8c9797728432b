"""Every message to the server, right and wrong, byte by byte where the client would not."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

import pytest

from rcdrv.device import CONFIG_REGION, Area, IrqKind, RegionFlag, SetIrqs
from rcdrv.vfio_user import messages, version, wire
from rcdrv.vfio_user.irqs import EventFd
from rcdrv.vfio_user.served import ServedRegion
from rcdrv.vfio_user.server import Server
from rcdrv.vfio_user.wire import WireCommand
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
    RawClient,
    Thread,
    connected,
    served,
)

NONE_TRIGGER = SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER
BOOL_TRIGGER = SetIrqs.DATA_BOOL | SetIrqs.ACTION_TRIGGER
EVENTFD_TRIGGER = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER


def fired(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


# -- VERSION ------------------------------------------------------------------------------------


def test_version(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock, negotiate=False)
        assert not device.attached.is_set()
        reply = version.Version.unpack(raw.ask(WireCommand.VERSION, version.Version().pack()).body)
        assert device.attached.is_set()
        assert (reply.major, reply.minor) == (0, 0)
        assert reply.capabilities == version.Capabilities(16, 65536, 65535, 4096, True)
        raw.connection.close()


def test_version_offers_only_what_the_client_knows(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock, negotiate=False)
        body = raw.ask(WireCommand.VERSION, struct.pack("=HH", 0, 7)).body
        assert body[4:] == b'{"capabilities": {}}\0'
        assert version.Version.unpack(body).minor == 0
        # So the client goes by the defaults: 1 MiB in a message.
        request = messages.RegionAccess(0, BAR_TRAPPED, 1 << 20)
        assert len(raw.ask(WireCommand.REGION_READ, request.pack()).body) == 16 + (1 << 20)
        write = messages.RegionAccess(0, BAR_TRAPPED, 1 << 20, b"x" * (1 << 20))
        assert raw.error(WireCommand.REGION_WRITE, write.pack()) == 0
        raw.connection.close()


@pytest.mark.parametrize(
    ("proposed", "agreed"), [(4096, 4096), (1 << 21, 1 << 21), (3 << 11, 4096)]
)
def test_the_page_sizes_are_some_of_the_clients(
    device: FakeDevice, proposed: int, agreed: int
) -> None:
    with served(device) as sock:
        raw = RawClient(sock, negotiate=False)
        proposal = version.Version(0, 0, version.Capabilities(pgsizes=proposed))
        reply = version.Version.unpack(raw.ask(WireCommand.VERSION, proposal.pack()).body)
        assert reply.capabilities.pgsizes == agreed
        raw.connection.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack("=HH", 1, 0),
        struct.pack("=HH", 0, 0) + b"{",
        struct.pack("=HH", 0, 0) + b"x\0",
        struct.pack("=HH", 0, 0) + b'{"capabilities": {"max_data_xfer_size": 0}}\0',
        struct.pack("=HH", 0, 0) + b'{"capabilities": {"pgsizes": 2048}}\0',
        struct.pack("=HH", 0, 0) + b" " * 20000 + b"\0",
    ],
)
def test_version_that_is_refused(device: FakeDevice, body: bytes) -> None:
    with served(device) as sock:
        raw = RawClient(sock, negotiate=False)
        assert raw.error(WireCommand.VERSION, body) == errno.EINVAL
        assert not device.attached.is_set()
        # The stream is intact, so a better proposal is welcome.
        assert raw.error(WireCommand.VERSION, version.Version().pack()) == 0
        raw.connection.close()


def test_no_descriptors_for_a_client_that_takes_none(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock, negotiate=False)
        proposal = version.Version(0, 0, version.Capabilities(max_msg_fds=0))
        raw.ask(WireCommand.VERSION, proposal.pack()).close()
        for bar in (BAR_MAPPED, BAR_SPARSE):
            request = messages.RegionInfoRequest(bar, 4096).pack()
            with raw.ask(WireCommand.DEVICE_GET_REGION_INFO, request) as reply:
                assert not reply.fds
                info = messages.WireRegionInfo.unpack(reply.body)
                assert (info.flags, info.areas) == (RW, None)
        raw.connection.close()


def test_nothing_is_served_before_version(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock, negotiate=False)
        assert raw.error(WireCommand.DEVICE_GET_INFO, messages.DeviceInfo().pack()) == errno.EINVAL
        raw.connection.close()


def test_version_only_once(raw: RawClient) -> None:
    assert raw.error(WireCommand.VERSION, version.Version().pack()) == errno.EINVAL


def test_a_client_that_never_says_its_version_is_dropped(device: FakeDevice) -> None:
    with served(device, timeout=0.05) as sock:
        raw = RawClient(sock, negotiate=False)
        with pytest.raises(wire.Disconnected):
            raw.connection.receive(Deadline(TIMEOUT))
        raw.connection.close()


# -- what the device is -------------------------------------------------------------------------


@pytest.mark.parametrize("resettable", [True, False])
def test_device_info(device: FakeDevice, raw: RawClient, resettable: bool) -> None:
    device.resettable = resettable
    reply = raw.ask(WireCommand.DEVICE_GET_INFO, messages.DeviceInfo().pack())
    assert messages.DeviceInfo.unpack(reply.body) == messages.DeviceInfo(2 | resettable, 9, 5)
    assert len(reply.body) == 16


def test_device_info_in_too_little_room(raw: RawClient) -> None:
    assert raw.error(WireCommand.DEVICE_GET_INFO, struct.pack("=IIII", 15, 0, 0, 0)) == errno.EINVAL
    assert raw.error(WireCommand.DEVICE_GET_INFO) == errno.EINVAL


def test_region_info_of_a_sparse_region(device: FakeDevice, raw: RawClient) -> None:
    # QEMU asks with room for the bare structure first.
    with raw.ask(
        WireCommand.DEVICE_GET_REGION_INFO, messages.RegionInfoRequest(BAR_SPARSE).pack()
    ) as reply:
        info = messages.WireRegionInfo.unpack(reply.body)
        assert info.argsz > messages.REGION_INFO_SIZE == len(reply.body)
        assert not reply.fds
    request = messages.RegionInfoRequest(BAR_SPARSE, info.argsz).pack()
    with raw.ask(WireCommand.DEVICE_GET_REGION_INFO, request) as reply:
        info = messages.WireRegionInfo.unpack(reply.body)
        assert info.argsz == len(reply.body)
        assert info.flags == RW | RegionFlag.MMAP | RegionFlag.CAPS
        assert (info.size, info.offset) == (4 * PAGE, 0)
        assert info.areas == (Area(PAGE, PAGE), Area(3 * PAGE, PAGE))
        [fd] = reply.fds
        assert os.path.samestat(os.fstat(fd), os.fstat(device.shared))


def test_region_info_of_a_region_that_is_mapped_whole(raw: RawClient) -> None:
    with raw.ask(
        WireCommand.DEVICE_GET_REGION_INFO, messages.RegionInfoRequest(BAR_MAPPED).pack()
    ) as reply:
        info = messages.WireRegionInfo.unpack(reply.body)
        assert (info.flags, info.areas, len(reply.fds)) == (RW | RegionFlag.MMAP, None, 1)


def test_region_info_of_other_regions(raw: RawClient) -> None:
    for index, size, flags in (
        (BAR_TRAPPED, 1 << 20, RW),
        (1, 0, 0),
        (BAR_READ_ONLY, 100, RegionFlag.READ),
        (CONFIG_REGION, 256, RW),
    ):
        with raw.ask(
            WireCommand.DEVICE_GET_REGION_INFO, messages.RegionInfoRequest(index).pack()
        ) as reply:
            info = messages.WireRegionInfo.unpack(reply.body)
            assert (info.index, info.size, info.flags, reply.fds) == (index, size, flags, [])
    for index in (9, 0xFFFFFFFF):
        body = messages.RegionInfoRequest(index).pack()
        assert raw.error(WireCommand.DEVICE_GET_REGION_INFO, body) == errno.EINVAL


def test_irq_info(raw: RawClient) -> None:
    for kind, count in zip(IrqKind, (1, 32, 2048, 1, 1), strict=True):
        reply = raw.ask(WireCommand.DEVICE_GET_IRQ_INFO, messages.IrqInfo(kind).pack())
        flags = 7 if kind is IrqKind.INTX else 1
        assert messages.IrqInfo.unpack(reply.body) == messages.IrqInfo(kind, flags, count)
    assert raw.error(WireCommand.DEVICE_GET_IRQ_INFO, messages.IrqInfo(5).pack()) == errno.EINVAL


def test_reset(device: FakeDevice, raw: RawClient) -> None:
    assert raw.error(WireCommand.DEVICE_RESET) == 0
    assert device.take() == [("reset",)]
    assert raw.error(WireCommand.DEVICE_RESET, b"?") == errno.EINVAL
    device.resettable = False
    assert raw.error(WireCommand.DEVICE_RESET) == errno.EINVAL
    assert device.take() == []


@pytest.mark.parametrize(
    "command",
    [
        0,
        14,
        999,
        WireCommand.DEVICE_GET_REGION_IO_FDS,
        WireCommand.DEVICE_FEATURE,
        WireCommand.MIG_DATA_READ,
        WireCommand.DMA_READ,
        WireCommand.DMA_WRITE,
    ],
)
def test_commands_that_are_not_served(raw: RawClient, command: int) -> None:
    assert raw.error(command, bytes(16)) == errno.ENOTSUP


def test_a_message_that_is_neither_command_nor_reply(raw: RawClient) -> None:
    raw.send(WireCommand.DEVICE_GET_INFO, messages.DeviceInfo().pack(), flags=2)
    reply = raw.receive()
    assert (reply.flags & wire.ERROR, reply.error) == (wire.ERROR, errno.EINVAL)


def test_requests_that_arrive_at_once_are_all_answered(raw: RawClient) -> None:
    """One read takes two bare headers; nothing is left in the socket for the second."""
    sock, size = raw.connection._sock, wire.HEADER.size
    requests = (wire.HEADER.pack(n, WireCommand.DEVICE_RESET, size, 0, 0) for n in (1, 2, 3))
    sock.send(b"".join(requests))
    assert [raw.receive().id for _ in range(3)] == [1, 2, 3]


def test_a_reply_that_nobody_waits_for_is_ignored(raw: RawClient) -> None:
    raw.send(WireCommand.DMA_READ, bytes(20), flags=wire.TYPE_REPLY)
    assert raw.error(WireCommand.DEVICE_RESET) == 0


def test_descriptors_with_a_command_that_takes_none(device: FakeDevice, raw: RawClient) -> None:
    body = messages.RegionAccess(0, 0, 4, b"abcd").pack()
    assert raw.error(WireCommand.REGION_WRITE, body, fds=[device.shared]) == errno.EINVAL
    assert device.take() == []


def test_more_descriptors_than_were_agreed_on(device: FakeDevice, raw: RawClient) -> None:
    body = messages.IrqSet(EVENTFD_TRIGGER, IrqKind.MSI, 0, 17).pack()
    assert raw.error(WireCommand.DEVICE_SET_IRQS, body, fds=[device.shared] * 17) == errno.EMFILE
    assert raw.error(WireCommand.DEVICE_RESET) == 0


def test_a_broken_stream_drops_the_client(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock)
        sock.send(wire.HEADER.pack(1, WireCommand.DEVICE_RESET, 15, 0, 0))
        with pytest.raises(wire.Disconnected):
            raw.connection.receive(Deadline(TIMEOUT))
        assert device.detached.wait(TIMEOUT)
        raw.connection.close()


# -- regions ------------------------------------------------------------------------------------


def test_region_read(device: FakeDevice, raw: RawClient) -> None:
    device.memory[BAR_TRAPPED][8:12] = b"\x01\x02\x03\x04"
    reply = raw.ask(WireCommand.REGION_READ, messages.RegionAccess(8, BAR_TRAPPED, 4).pack())
    expected = messages.RegionAccess(8, BAR_TRAPPED, 4, b"\x01\x02\x03\x04")
    assert messages.RegionAccess.unpack(reply.body, with_data=True) == expected
    assert device.take() == [("read", BAR_TRAPPED, 8, 4)]


def test_region_write(device: FakeDevice, raw: RawClient) -> None:
    body = messages.RegionAccess(12, BAR_TRAPPED, 4, b"abcd").pack()
    reply = raw.ask(WireCommand.REGION_WRITE, body)
    done = messages.RegionAccess.unpack(reply.body, with_data=False)
    assert done == messages.RegionAccess(12, BAR_TRAPPED, 4)
    assert device.take() == [("write", BAR_TRAPPED, 12, b"abcd")]


def test_region_write_without_reply(device: FakeDevice, raw: RawClient) -> None:
    good = messages.RegionAccess(0, BAR_TRAPPED, 4, b"abcd").pack()
    raw.send(WireCommand.REGION_WRITE, good, flags=wire.NO_REPLY)
    bad = messages.RegionAccess(1 << 30, BAR_TRAPPED, 4, b"abcd").pack()
    raw.send(WireCommand.REGION_WRITE, bad, flags=wire.NO_REPLY)
    # ask() checks that the next message is the answer to its own command.
    assert raw.error(WireCommand.DEVICE_RESET) == 0
    assert device.take() == [("write", BAR_TRAPPED, 0, b"abcd"), ("reset",)]


def test_region_write_multi(device: FakeDevice, raw: RawClient) -> None:
    writes = (
        messages.RegionAccess(0, BAR_TRAPPED, 4, b"abcd"),
        messages.RegionAccess(8, BAR_TRAPPED, 8, b"12345678"),
        messages.RegionAccess(4, CONFIG_REGION, 1, b"!"),
    )
    reply = raw.ask(WireCommand.REGION_WRITE_MULTI, messages.WriteMulti(writes).pack())
    assert messages.unpack_multi_reply(reply.body) == 3
    assert device.take() == [("write", w.region, w.offset, w.data) for w in writes]


def test_region_write_multi_does_all_or_nothing(device: FakeDevice, raw: RawClient) -> None:
    writes = (
        messages.RegionAccess(0, BAR_TRAPPED, 4, b"abcd"),
        messages.RegionAccess(256, CONFIG_REGION, 1, b"!"),
    )
    body = messages.WriteMulti(writes).pack()
    assert raw.error(WireCommand.REGION_WRITE_MULTI, body) == errno.EINVAL
    assert device.take() == []


LAST = (1 << 64) - 1


@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (BAR_TRAPPED, 1 << 20, 1),
        (BAR_TRAPPED, (1 << 20) - 3, 4),
        (BAR_TRAPPED, LAST, 4),
        (BAR_TRAPPED, LAST - 3, 4),
        (BAR_TRAPPED, 0, 65537),
        (BAR_READ_ONLY, 97, 4),
        (CONFIG_REGION, 256, 4),
        (1, 0, 1),
        (9, 0, 4),
        (0xFFFFFFFF, 0, 4),
    ],
)
def test_accesses_outside(
    device: FakeDevice, raw: RawClient, region: int, offset: int, count: int
) -> None:
    read = messages.RegionAccess(offset, region, count).pack()
    write = messages.RegionAccess(offset, region, count, bytes(count)).pack()
    assert raw.error(WireCommand.REGION_READ, read) == errno.EINVAL
    assert raw.error(WireCommand.REGION_WRITE, write) == errno.EINVAL
    assert device.take() == []


def test_accesses_at_the_edges(device: FakeDevice, raw: RawClient) -> None:
    for region, offset, count in (
        (BAR_TRAPPED, (1 << 20) - 65536, 65536),
        (BAR_READ_ONLY, 99, 1),
        (BAR_SPARSE, PAGE, 4),  # mapped regions can be read by messages too
    ):
        body = messages.RegionAccess(offset, region, count).pack()
        assert len(raw.ask(WireCommand.REGION_READ, body).body) == 16 + count
        assert device.take() == [("read", region, offset, count)]


def test_accesses_of_nothing_do_not_reach_the_device(device: FakeDevice, raw: RawClient) -> None:
    for command in (WireCommand.REGION_READ, WireCommand.REGION_WRITE):
        assert len(raw.ask(command, messages.RegionAccess(0, BAR_TRAPPED, 0).pack()).body) == 16
    assert device.take() == []


def test_writing_what_is_read_only(device: FakeDevice, raw: RawClient) -> None:
    body = messages.RegionAccess(0, BAR_READ_ONLY, 4, b"abcd").pack()
    assert raw.error(WireCommand.REGION_WRITE, body) == errno.EINVAL
    assert device.take() == []


@pytest.mark.parametrize("length", [0, 3, 5])
def test_a_write_whose_data_is_not_as_long_as_it_says(
    device: FakeDevice, raw: RawClient, length: int
) -> None:
    body = messages.RegionAccess(0, BAR_TRAPPED, 4, bytes(length)).pack()
    assert raw.error(WireCommand.REGION_WRITE, body) == errno.EINVAL
    assert device.take() == []


# -- interrupts ---------------------------------------------------------------------------------


def set_irqs(
    raw: RawClient,
    flags: int,
    kind: int,
    start: int,
    count: int,
    fds: list[int] | None = None,
    data: bytes = b"",
) -> int:
    body = messages.IrqSet(flags, kind, start, count, data).pack()
    return raw.error(WireCommand.DEVICE_SET_IRQS, body, fds=fds or [])


def test_32_msi_vectors_come_as_two_messages(
    device: FakeDevice, raw: RawClient, eventfds: list[int]
) -> None:
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSI, 0, 16, eventfds[:16]) == 0
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSI, 16, 16, eventfds[16:32]) == 0
    assert device.take() == [("irqs", IrqKind.MSI, 16), ("irqs", IrqKind.MSI, 32)]
    peer = device.peer
    assert peer is not None
    assert all(peer.trigger(IrqKind.MSI, vector) for vector in range(32))
    assert not peer.trigger(IrqKind.MSI, 32)
    assert not peer.trigger(IrqKind.MSI, -1)
    assert not peer.trigger(IrqKind.MSIX, 0)
    assert [fired(fd) for fd in eventfds[:32]] == [1] * 32


def test_msix_grows_and_shrinks(device: FakeDevice, raw: RawClient, eventfds: list[int]) -> None:
    for vector in range(5):
        assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSIX, vector, 1, [eventfds[vector]]) == 0
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSIX, 2047, 1, [eventfds[5]]) == 0
    peer = device.peer
    assert peer is not None
    assert peer.armed(IrqKind.MSIX) == 2048
    assert not peer.trigger(IrqKind.MSIX, 1000)
    # No descriptors with DATA_EVENTFD: these vectors are taken away.
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSIX, 5, 2043) == 0
    assert peer.armed(IrqKind.MSIX) == 5
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSIX, 1, 1) == 0
    assert not peer.trigger(IrqKind.MSIX, 1)
    assert peer.trigger(IrqKind.MSIX, 4)
    assert set_irqs(raw, NONE_TRIGGER, IrqKind.MSIX, 0, 0) == 0
    assert peer.armed(IrqKind.MSIX) == 0
    assert not peer.trigger(IrqKind.MSIX, 4)


def test_a_vector_can_get_another_eventfd(
    device: FakeDevice, raw: RawClient, eventfds: list[int]
) -> None:
    for fd in eventfds[:2]:
        assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSI, 0, 1, [fd]) == 0
    assert device.peer is not None
    assert device.peer.trigger(IrqKind.MSI, 0)
    assert [fired(fd) for fd in eventfds[:2]] == [0, 1]


def test_a_full_counter_does_not_block_the_server(
    device: FakeDevice, raw: RawClient, eventfds: list[int]
) -> None:
    fd = os.eventfd((1 << 32) - 1, os.EFD_CLOEXEC)  # blocking
    try:
        os.eventfd_write(fd, (1 << 64) - 2 - ((1 << 32) - 1))
        assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSI, 0, 1, [fd]) == 0
        assert set_irqs(raw, NONE_TRIGGER, IrqKind.MSI, 0, 1) == 0
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", [IrqKind.MSI, IrqKind.MSIX, IrqKind.ERR, IrqKind.REQ])
def test_loopback(raw: RawClient, eventfds: list[int], kind: IrqKind) -> None:
    assert set_irqs(raw, EVENTFD_TRIGGER, kind, 0, 1, eventfds[:1]) == 0
    assert set_irqs(raw, NONE_TRIGGER, kind, 0, 1) == 0
    assert set_irqs(raw, BOOL_TRIGGER, kind, 0, 1, data=b"\1") == 0
    assert set_irqs(raw, BOOL_TRIGGER, kind, 0, 1, data=b"\0") == 0
    assert fired(eventfds[0]) == 2


def test_loopback_of_a_vector_that_is_not_armed(raw: RawClient) -> None:
    assert set_irqs(raw, NONE_TRIGGER, IrqKind.MSI, 0, 32) == 0


def test_intx_masks_itself(device: FakeDevice, raw: RawClient, eventfds: list[int]) -> None:
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.INTX, 0, 1, eventfds[:1]) == 0
    peer = device.peer
    assert peer is not None
    assert peer.trigger(IrqKind.INTX, 0)
    assert not peer.trigger(IrqKind.INTX, 0)
    assert fired(eventfds[0]) == 1
    assert set_irqs(raw, SetIrqs.DATA_NONE | SetIrqs.ACTION_UNMASK, IrqKind.INTX, 0, 1) == 0
    assert peer.trigger(IrqKind.INTX, 0)
    changes = [("masked", True), ("masked", False), ("masked", True)]
    assert device.take() == [("irqs", IrqKind.INTX, 1), *changes]


@pytest.mark.parametrize("data", [SetIrqs.DATA_NONE, SetIrqs.DATA_BOOL])
def test_intx_masked_by_the_client(
    device: FakeDevice, raw: RawClient, eventfds: list[int], data: SetIrqs
) -> None:
    values = b"\1" if data == SetIrqs.DATA_BOOL else b""
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.INTX, 0, 1, eventfds[:1]) == 0
    assert set_irqs(raw, data | SetIrqs.ACTION_MASK, IrqKind.INTX, 0, 1, data=values) == 0
    assert device.peer is not None
    assert not device.peer.trigger(IrqKind.INTX, 0)
    assert set_irqs(raw, data | SetIrqs.ACTION_UNMASK, IrqKind.INTX, 0, 1, data=values) == 0
    assert device.peer.trigger(IrqKind.INTX, 0)


def test_intx_unmasked_through_an_eventfd(
    device: FakeDevice, raw: RawClient, eventfds: list[int]
) -> None:
    irq, unmask = eventfds[:2]
    peer = device.peer
    assert peer is not None
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.INTX, 0, 1, [irq]) == 0
    flags = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_UNMASK
    assert set_irqs(raw, flags, IrqKind.INTX, 0, 1, [unmask]) == 0
    for _ in range(3):
        assert peer.trigger(IrqKind.INTX, 0)
        os.eventfd_write(unmask, 1)
        assert device.unmasked.wait(TIMEOUT)
    assert fired(irq) == 3
    assert set_irqs(raw, flags, IrqKind.INTX, 0, 1) == 0


def test_disabling_intx_forgets_its_mask(
    device: FakeDevice, raw: RawClient, eventfds: list[int]
) -> None:
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.INTX, 0, 1, eventfds[:1]) == 0
    assert device.peer is not None
    assert device.peer.trigger(IrqKind.INTX, 0)
    assert set_irqs(raw, NONE_TRIGGER, IrqKind.INTX, 0, 0) == 0
    assert device.take()[-2:] == [("masked", False), ("irqs", IrqKind.INTX, 0)]
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.INTX, 0, 1, eventfds[:1]) == 0
    assert device.peer.trigger(IrqKind.INTX, 0)


def test_one_kind_at_a_time(raw: RawClient, eventfds: list[int]) -> None:
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSI, 0, 1, eventfds[:1]) == 0
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSIX, 0, 1, eventfds[:1]) == errno.EINVAL
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.ERR, 0, 1, eventfds[:1]) == 0
    assert set_irqs(raw, NONE_TRIGGER, IrqKind.MSI, 0, 0) == 0
    assert set_irqs(raw, EVENTFD_TRIGGER, IrqKind.MSIX, 0, 1, eventfds[:1]) == 0


@pytest.mark.parametrize(
    ("flags", "kind", "start", "count", "data"),
    [
        (0, IrqKind.MSI, 0, 1, b""),
        (SetIrqs.DATA_NONE, IrqKind.MSI, 0, 1, b""),
        (SetIrqs.ACTION_TRIGGER, IrqKind.MSI, 0, 1, b""),
        (NONE_TRIGGER | SetIrqs.DATA_BOOL, IrqKind.MSI, 0, 1, b""),
        (NONE_TRIGGER | SetIrqs.ACTION_MASK, IrqKind.MSI, 0, 1, b""),
        (NONE_TRIGGER | 64, IrqKind.MSI, 0, 1, b""),
        (NONE_TRIGGER | 1 << 31, IrqKind.MSI, 0, 1, b""),
        (NONE_TRIGGER, 5, 0, 1, b""),
        (NONE_TRIGGER, 0xFFFFFFFF, 0, 1, b""),
        (NONE_TRIGGER, IrqKind.MSI, 32, 1, b""),
        (NONE_TRIGGER, IrqKind.MSI, 0, 33, b""),
        (NONE_TRIGGER, IrqKind.MSI, 31, 2, b""),
        (NONE_TRIGGER, IrqKind.MSI, 0xFFFFFFFF, 0xFFFFFFFF, b""),
        (NONE_TRIGGER, IrqKind.MSI, 1, 0, b""),
        (NONE_TRIGGER, IrqKind.MSI, 0, 1, b"\1"),
        (BOOL_TRIGGER, IrqKind.MSI, 0, 2, b"\1"),
        (BOOL_TRIGGER, IrqKind.MSI, 0, 1, b"\1\1"),
        (BOOL_TRIGGER, IrqKind.MSI, 0, 0, b""),
        (EVENTFD_TRIGGER, IrqKind.MSI, 0, 0, b""),
        (EVENTFD_TRIGGER, IrqKind.INTX, 0, 2, b""),
        (SetIrqs.DATA_NONE | SetIrqs.ACTION_MASK, IrqKind.INTX, 0, 0, b""),
    ],
)
def test_set_irqs_that_is_refused(
    device: FakeDevice, raw: RawClient, flags: int, kind: int, start: int, count: int, data: bytes
) -> None:
    assert set_irqs(raw, flags, kind, start, count, data=data) == errno.EINVAL
    assert device.take() == []


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (SetIrqs.DATA_NONE | SetIrqs.ACTION_MASK, IrqKind.MSI),
        (SetIrqs.DATA_NONE | SetIrqs.ACTION_UNMASK, IrqKind.MSIX),
        (SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_MASK, IrqKind.INTX),
        (SetIrqs.DATA_NONE | SetIrqs.ACTION_MASK, IrqKind.ERR),
    ],
)
def test_masks_that_vfio_does_not_have(raw: RawClient, flags: int, kind: IrqKind) -> None:
    assert set_irqs(raw, flags, kind, 0, 1) == errno.ENOTSUP


def test_set_irqs_with_the_wrong_descriptors(
    device: FakeDevice, raw: RawClient, eventfds: list[int]
) -> None:
    kind = IrqKind.MSI
    assert set_irqs(raw, EVENTFD_TRIGGER, kind, 0, 3, eventfds[:2]) == errno.EINVAL
    assert set_irqs(raw, NONE_TRIGGER, kind, 0, 1, eventfds[:1]) == errno.EINVAL
    # A write to a pipe could block, and to a file it would destroy something.
    assert set_irqs(raw, EVENTFD_TRIGGER, kind, 0, 1, [device.shared]) == errno.EINVAL
    assert device.take() == []


# -- DMA ----------------------------------------------------------------------------------------


def memfd(size: int, content: bytes = b"") -> int:
    fd = os.memfd_create("client-memory", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    return fd


def dma_map(
    raw: RawClient,
    address: int,
    size: int,
    flags: int = 3,
    offset: int = 0,
    fds: tuple[int, ...] = (),
) -> int:
    body = messages.DmaMap(flags, offset, address, size).pack()
    return raw.error(WireCommand.DMA_MAP, body, fds=list(fds))


def dma_unmap(raw: RawClient, address: int, size: int, flags: int = 0) -> int:
    return raw.error(WireCommand.DMA_UNMAP, messages.DmaUnmap(flags, address, size).pack())


def test_dma_map_and_unmap(raw: RawClient) -> None:
    assert dma_map(raw, 0x10000, 0x4000) == 0
    body = messages.DmaUnmap(0, 0x10000, 0x4000).pack()
    assert raw.ask(WireCommand.DMA_UNMAP, body).body == body
    assert dma_unmap(raw, 0x10000, 0x4000) == errno.ENOENT


@pytest.mark.parametrize(
    ("address", "size"), [(0x10000, 4096), (0xF000, 8192), (0x13000, 8192), (0, 1 << 32)]
)
def test_dma_map_over_another(raw: RawClient, address: int, size: int) -> None:
    assert dma_map(raw, 0x10000, 0x4000) == 0
    assert dma_map(raw, address, size) == errno.EEXIST
    assert dma_map(raw, 0xF000, 0x1000) == 0
    assert dma_map(raw, 0x14000, 0x1000) == 0


@pytest.mark.parametrize(
    ("address", "size", "flags"),
    [
        (0, 0, 3),
        (0, 100, 3),
        (100, 4096, 3),
        (LAST & ~4095, 8192, 3),
        (8192, LAST & ~4095, 3),
        (0, 4096, 0),
        (0, 4096, 4),
        (0, 4096, 0xFFFFFFFF),
    ],
)
def test_dma_map_that_is_refused(raw: RawClient, address: int, size: int, flags: int) -> None:
    assert dma_map(raw, address, size, flags) == errno.EINVAL


def test_dma_map_up_to_the_last_byte(raw: RawClient) -> None:
    assert dma_map(raw, LAST & ~4095, 4096) == 0


def test_dma_map_with_the_wrong_file(raw: RawClient, eventfds: list[int]) -> None:
    fd = memfd(4096)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        assert dma_map(raw, 0, 8192, fds=(fd,)) == errno.EINVAL
        assert dma_map(raw, 0, 4096, offset=4096, fds=(fd,)) == errno.EINVAL
        assert dma_map(raw, 0, 4096, offset=LAST, fds=(fd,)) == errno.EINVAL
        assert dma_map(raw, 0, 4096, fds=(fd, fd)) == errno.EINVAL
        assert dma_map(raw, 0, 4096, fds=(eventfds[0],)) == errno.EINVAL
        assert dma_map(raw, 0, 4096, fds=(read_only,)) == errno.EACCES
        assert dma_map(raw, 0, 4096, flags=1, fds=(read_only,)) == 0
        assert dma_map(raw, 4096, 4096, fds=(fd,)) == 0
    finally:
        os.close(read_only)
        os.close(fd)


def test_dma_unmap_of_ranges(raw: RawClient) -> None:
    for address in (0x10000, 0x11000, 0x14000):
        assert dma_map(raw, address, 4096) == 0
    assert dma_map(raw, 0x20000, 0x4000) == 0
    assert dma_unmap(raw, 0x21000, 0x1000) == errno.EINVAL
    assert dma_unmap(raw, 0x1F000, 0x2000) == errno.EINVAL
    assert dma_unmap(raw, 0x12000, 0x2000) == errno.ENOENT
    assert dma_unmap(raw, 0x10000, 0) == errno.EINVAL
    assert dma_unmap(raw, LAST & ~4095, 8192) == errno.EINVAL
    assert dma_unmap(raw, 0x10000, 0x10000) == 0
    assert dma_map(raw, 0x10000, 0x10000) == 0


def test_dma_unmap_all(raw: RawClient) -> None:
    assert dma_map(raw, 0x10000, 4096) == 0
    assert dma_unmap(raw, 0x10000, 4096, messages.UNMAP_ALL) == errno.EINVAL
    assert dma_unmap(raw, 0, 0, messages.UNMAP_ALL) == 0
    assert dma_unmap(raw, 0x10000, 4096) == errno.ENOENT
    assert dma_unmap(raw, 0, 0, messages.UNMAP_ALL) == 0


def test_dma_unmap_has_no_dirty_bitmap(raw: RawClient) -> None:
    assert dma_map(raw, 0x10000, 4096) == 0
    assert dma_unmap(raw, 0x10000, 4096, messages.UNMAP_GET_DIRTY_BITMAP) == errno.ENOTSUP
    assert dma_unmap(raw, 0x10000, 4096, 8) == errno.EINVAL
    assert dma_unmap(raw, 0x10000, 4096) == 0


# -- the loop -----------------------------------------------------------------------------------


def test_a_device_needs_its_regions_and_kinds(device: FakeDevice) -> None:
    device.layout.clear()
    with pytest.raises(ValueError, match="regions"):
        Server(device)


def test_stop_ends_a_session(device: FakeDevice) -> None:
    with served(device, linger=True) as sock:
        RawClient(sock)
    assert device.detached.is_set()


def test_events_are_run_on_time(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    lateness: list[float] = []
    sleeps: list[float | None] = []
    sleep = select.select

    def noted(*arguments: Any) -> Any:
        sleeps.append(arguments[3])
        return sleep(*arguments)

    monkeypatch.setattr(select, "select", noted)

    def run() -> None:
        assert device.due is not None
        lateness.append(time.monotonic() - device.due)
        device.due = time.monotonic() + 0.0003 if len(lateness) < 100 else None
        if device.due is None:
            device.job_done.set()

    device.run = run  # type: ignore[method-assign]
    with served(device) as sock:
        raw = RawClient(sock)
        device.due = time.monotonic() + 0.001
        raw.ask(WireCommand.DEVICE_RESET).close()
        assert device.job_done.wait(TIMEOUT)
        raw.connection.close()
    assert min(lateness) >= 0
    # How late they are depends on the machine; that they are not put off to whole milliseconds, as
    # epoll_wait() does, does not.
    assert any(seconds is not None and 0 < seconds < 0.0003 for seconds in sleeps)


def test_a_busy_client_does_not_starve_events(device: FakeDevice) -> None:
    with served(device) as sock:
        raw = RawClient(sock)
        device.soon(lambda _peer: time.monotonic())
        body = messages.RegionAccess(0, BAR_TRAPPED, 4, b"abcd").pack()
        for _ in range(100):
            raw.send(WireCommand.REGION_WRITE, body, flags=wire.NO_REPLY)
        raw.ask(WireCommand.DEVICE_RESET).close()
        assert device.job_done.is_set()
        raw.connection.close()


def test_mapped_regions_are_shared(device: FakeDevice, raw: RawClient) -> None:
    with raw.ask(
        WireCommand.DEVICE_GET_REGION_INFO, messages.RegionInfoRequest(BAR_MAPPED).pack()
    ) as reply:
        memory = mmap.mmap(reply.fds[0], PAGE)
    with memory:
        memory[0:4] = b"seen"
        assert os.pread(device.shared, 4, 0) == b"seen"


def test_an_eventfd_that_is_filled_after_the_look_at_it() -> None:
    """Its write blocks, until a signal comes: rcdrv.sim.serve has one come each second."""

    class Writable:
        def poll(self, _timeout: int) -> list[tuple[int, int]]:
            return [(0, 0)]

    fd = os.eventfd(0, os.EFD_CLOEXEC)  # blocking
    eventfd = EventFd(fd)
    for _ in range(2):
        os.write(fd, ((1 << 63) - 1).to_bytes(8, sys.byteorder))
    eventfd._writable = Writable()  # type: ignore[assignment]
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        eventfd.fire()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        eventfd.close()


def test_descriptors_that_cannot_be_sent(device: FakeDevice, raw: RawClient) -> None:
    """sendmsg() fails before anything is sent: EBADF here, else ETOOMANYREFS."""
    device.layout[BAR_MAPPED] = ServedRegion(PAGE, RW, (Area(0, PAGE),), 1 << 20)
    body = messages.RegionInfoRequest(BAR_MAPPED, 4096).pack()
    assert raw.error(WireCommand.DEVICE_GET_REGION_INFO, body) == errno.EBADF
    assert raw.error(WireCommand.DEVICE_RESET) == 0


class Exhausted(FakeDevice):
    """A device for which nothing is left on this host."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def read(self, region: int, offset: int, size: int) -> bytes:
        raise self.error

    def run(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_nothing_left_on_the_host(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(Exhausted(error)) as device, served(device) as sock:
        raw = RawClient(sock)
        read = messages.RegionAccess(0, BAR_TRAPPED, 4).pack()
        expected = getattr(error, "errno", errno.ENOMEM)
        assert raw.error(WireCommand.REGION_READ, read) == expected
        device.due = time.monotonic()
        # The server may look at the device, and drop the client, before this wakes it.
        with contextlib.suppress(wire.Disconnected):
            write = messages.RegionAccess(0, BAR_TRAPPED, 1, b"!").pack()
            raw.send(WireCommand.REGION_WRITE, write)
        assert device.detached.wait(TIMEOUT)
        raw.connection.close()
    assert "the client is dropped: " in capsys.readouterr().err


def test_another_thread_wakes_the_server(device: FakeDevice) -> None:
    wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    ours, theirs = socket.socketpair()
    server = Server(device, TIMEOUT, wake)
    thread = Thread(lambda: server.serve_connected(theirs))
    with ours:
        raw = RawClient(ours)
        for _ in range(2):
            device.job_done.clear()
            device.soon(lambda peer: peer.armed(IrqKind.MSI))
            device.due = time.monotonic()
            os.eventfd_write(wake, 1)
            assert device.job_done.wait(TIMEOUT)
        assert device.results == [0, 0]
        raw.connection.close()
    thread.finish()
    server.close()
    os.close(wake)


def test_a_region_may_begin_anywhere_in_its_file(device: FakeDevice) -> None:
    os.pwrite(device.shared, b"here", 3 * PAGE)
    device.layout[BAR_MAPPED] = ServedRegion(PAGE, RW, (Area(0, PAGE),), device.shared, 3 * PAGE)
    with (
        connected(device) as client,
        contextlib.closing(client.map(BAR_MAPPED, Area(0, PAGE))) as m,
    ):
        assert m[:4] == b"here"
