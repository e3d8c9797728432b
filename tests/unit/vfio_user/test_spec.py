"""Rules of the specification that both sides were once found to break, by its sections.

QEMU's docs/interop/vfio-user.rst. The tests of its other rules stand beside those of the parts.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from rcdrv.device import IrqKind, SetIrqs
from rcdrv.errors import HostError
from rcdrv.vfio_user import messages, version
from rcdrv.vfio_user.client import Client
from rcdrv.vfio_user.version import Capabilities
from rcdrv.vfio_user.wire import Message, WireCommand

from .fake import BAR_TRAPPED, PAGE, FakeDevice, RawClient, Script, served

TRIGGER = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER


class Server:
    """A server that agrees to some capabilities, and keeps what it is asked to do."""

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self.asked: list[tuple[int, bytes, int]] = []
        """Command, body, number of descriptors."""

    def act(self, script: Script, message: Message) -> bool:
        if message.command == WireCommand.VERSION:
            script.reply(message, version.Version(0, 0, self.capabilities).pack())
            return True
        if message.command in (WireCommand.DEVICE_GET_INFO, WireCommand.DEVICE_GET_IRQ_INFO):
            return False
        self.asked.append((message.command, message.body, len(message.fds)))
        reply = b""
        if message.command in (WireCommand.REGION_READ, WireCommand.REGION_WRITE):
            reply = message.body[:16]
            if message.command == WireCommand.REGION_READ:
                reply += bytes(struct.unpack_from("=I", message.body, 12)[0])
        script.reply(message, reply)
        return True


@contextlib.contextmanager
def client_of(capabilities: Capabilities) -> Iterator[tuple[Client, Server]]:
    server = Server(capabilities)
    script = Script(server.act)
    try:
        with contextlib.closing(Client(script.sock, "fake")) as client:
            yield client, server
    finally:
        script.close()


@contextlib.contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


# -- VFIO_USER_VERSION, "Version Data Format": max_msg_fds is what the *sender* can receive --------


def test_a_client_sends_no_descriptor_to_a_server_that_takes_none() -> None:
    with client_of(Capabilities(max_msg_fds=0)) as (client, server), eventfds(1) as fds:
        with pytest.raises(HostError, match="takes no eventfds"):
            client.set_irqs(IrqKind.MSI, TRIGGER, 0, 1, fds)
        with mmap.mmap(-1, PAGE) as memory:
            client.dma_map(0, memory, PAGE, fds[0])
        assert [(command, count) for command, _, count in server.asked] == [
            (WireCommand.DMA_MAP, 0)
        ]


@pytest.mark.parametrize(("most", "sent"), [(1, [1] * 20), (8, [8, 8, 4]), (16, [16, 4])])
def test_a_client_sends_as_many_descriptors_as_the_server_takes(most: int, sent: list[int]) -> None:
    with client_of(Capabilities(max_msg_fds=most)) as (client, server), eventfds(20) as fds:
        client.set_irqs(IrqKind.MSI, TRIGGER, 0, 20, fds)
        assert [count for _, _, count in server.asked] == sent


def test_no_more_than_the_kernel_carries() -> None:
    """SCM_MAX_FD of Linux's include/net/scm.h is 253: sendmsg(2) refuses more."""
    with client_of(Capabilities(max_msg_fds=10**9)) as (client, server), eventfds(300) as fds:
        client.set_irqs(IrqKind.MSIX, TRIGGER, 0, 300, fds)
        starts = [struct.unpack_from("=IIIII", body)[3:] for _, body, _ in server.asked]
        assert starts == [(0, 253), (253, 47)]


# -- VFIO_USER_VERSION: max_data_xfer_size, max_dma_maps, pgsizes of the other side ----------------


def test_a_client_asks_for_no_more_data_than_the_server_sends() -> None:
    with client_of(Capabilities(max_data_xfer_size=60)) as (client, server):
        client.read(BAR_TRAPPED, 0, 120)
        client.write(BAR_TRAPPED, 0, bytes(120))
        sizes = [struct.unpack_from("=I", body, 12)[0] for _, body, _ in server.asked]
        assert sizes == [56, 56, 8] * 2  # whole registers of 64 bits


def test_a_client_makes_no_more_mappings_than_the_server_takes() -> None:
    with client_of(Capabilities(max_dma_maps=1)) as (client, _), mmap.mmap(-1, PAGE) as memory:
        client.dma_map(0, memory, PAGE, -1)
        with pytest.raises(HostError, match="takes only 1 DMA mappings"):
            client.dma_map(PAGE, memory, PAGE, -1)
        client.dma_unmap(0, PAGE)
        client.dma_map(PAGE, memory, PAGE, -1)


# -- VFIO_USER_VERSION, "Versioning and Feature Support": a subset of what was proposed ------------


@pytest.mark.parametrize(
    "proposed",
    [
        {},
        {"max_msg_fds": 4},
        {"max_dma_maps": 1, "pgsizes": 4096},
        {"write_multiple": True, "max_data_xfer_size": 4096},
        {"migration": {"pgsize": 4096}, "twin_socket": {"supported": True}},
    ],
)
def test_a_server_offers_a_subset_of_what_was_proposed(
    device: FakeDevice, proposed: dict[str, object]
) -> None:
    import json

    with served(device) as sock:
        raw = RawClient(sock, negotiate=False)
        text = json.dumps({"capabilities": proposed}).encode() + b"\0"
        body = raw.ask(WireCommand.VERSION, struct.pack("=HH", 0, 0) + text).body
        offered = json.loads(body[4:-1])["capabilities"]
        ours = {"max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes", "write_multiple"}
        assert set(offered) == set(proposed) & ours
        raw.connection.close()


# -- VFIO_USER_DEVICE_GET_INFO, _GET_REGION_INFO, _GET_IRQ_INFO, _SET_IRQS: argsz ------------------


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (WireCommand.DEVICE_GET_INFO, messages.DeviceInfo().pack()),
        (WireCommand.DEVICE_GET_REGION_INFO, messages.RegionInfoRequest(0, 4096).pack()),
        (WireCommand.DEVICE_GET_IRQ_INFO, messages.IrqInfo(IrqKind.MSI).pack()),
        (
            WireCommand.DEVICE_SET_IRQS,
            messages.IrqSet(SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER, IrqKind.MSI, 0, 0).pack(),
        ),
    ],
)
def test_argsz_has_room_for_the_structure(raw: RawClient, command: int, body: bytes) -> None:
    """The first field of each; a server refuses one that is too small, and keeps serving."""
    assert raw.error(command, body) == 0
    for argsz in (0, 8, 15):
        assert raw.error(command, struct.pack("=I", argsz) + body[4:]) == errno.EINVAL
    assert raw.error(command, body) == 0


# -- VFIO_USER_DMA_UNMAP: the very numbers of a mapping --------------------------------------------


def test_a_client_unmaps_what_it_has_mapped() -> None:
    with client_of(Capabilities()) as (client, server), mmap.mmap(-1, 4 * PAGE) as memory:
        places = ((0x10000, 4 * PAGE), (0x20000, PAGE), (0x30000, 2 * PAGE))
        for iova, size in places:
            client.dma_map(iova, memory, size, -1)
        server.asked.clear()
        for iova, size in places:
            client.dma_unmap(iova, size)
        unmapped = [messages.DmaUnmap.unpack(body) for _, body, _ in server.asked]
        assert unmapped == [messages.DmaUnmap(0, iova, size) for iova, size in places]


def test_a_server_takes_qemus_unmap_of_many_mappings(raw: RawClient) -> None:
    """A deviation, on purpose: docs/vfio-user.md. With a vIOMMU, QEMU maps 1 MiB as 256 pages and
    unmaps it by one message (vfio_user_dma_unmap() of its hw/vfio-user/container.c). A range that
    cuts a mapping is refused, as the specification has it, and so is one that has none."""

    def ask(command: int, address: int, size: int) -> int:
        if command == WireCommand.DMA_MAP:
            return raw.error(command, messages.DmaMap(3, 0, address, size).pack())
        return raw.error(command, messages.DmaUnmap(0, address, size).pack())

    for page in range(256):
        assert ask(WireCommand.DMA_MAP, page * PAGE, PAGE) == 0
    assert ask(WireCommand.DMA_MAP, 256 * PAGE, 2 * PAGE) == 0
    assert ask(WireCommand.DMA_UNMAP, 0, 257 * PAGE) == errno.EINVAL
    assert ask(WireCommand.DMA_UNMAP, 0, 256 * PAGE) == 0
    assert ask(WireCommand.DMA_UNMAP, 0, 256 * PAGE) == errno.ENOENT
    assert ask(WireCommand.DMA_UNMAP, 256 * PAGE, 2 * PAGE) == 0
