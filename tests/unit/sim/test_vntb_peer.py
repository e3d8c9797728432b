"""The endpoint's ntb_transport while the host writes to its ring."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rcdrv.sim.epf_vntb import VntbLayout
from rcdrv.sim.epf_vntb.netdev import Netdev
from rcdrv.sim.epf_vntb.tap import TapNetdev
from rcdrv.sim.epf_vntb.transport import HEADER, SimQueuePair

SIZE = 0x10_0000
DONE = 1


class Ring:
    """The memory of a window; ``between`` is called after every access."""

    def __init__(self) -> None:
        self.bytes = bytearray(SIZE)
        self.plain = memoryview(self.bytes)
        self.between: Callable[[], None] = lambda: None

    def read32(self, offset: int) -> int:
        value: int = struct.unpack_from("<I", self.bytes, offset)[0]
        self.between()
        return value

    def write32(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.bytes, offset, value)
        self.between()


class Taker(Netdev):
    """Keeps the frames, each as it stands when the network stack takes it."""

    def __init__(self, bridge: Any, ring: Ring) -> None:
        super().__init__(bridge)
        self.frames: list[bytes] = []
        bring_up(self, ring)

    def rx_handler(self, pair: SimQueuePair, packet: bytes | memoryview) -> bytes:
        self.frames.append(bytes(packet))
        return b""


def bring_up(peer: Netdev, ring: Ring) -> None:
    """Link its queue pair up, with this memory in its window."""
    memory: Any = ring  # as far as it is used
    (pair,) = peer.open_pairs
    pair.set_up(SIZE, memory)
    pair.up = True


class Host:
    """Writes a packet in the order of ntb_memcpy_tx() and ntb_tx_copy_callback(): flags last."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._steps: list[tuple[int, bytes]] = []

    def put(self, number: int, payload: bytes, frame: int) -> None:
        start = number % (SIZE // frame) * frame
        header = start + frame - HEADER.size
        self._steps = [
            (start, payload),
            (header, struct.pack("<II", number, len(payload))),
            (header + 8, struct.pack("<I", DONE)),
        ]

    def step(self, most: int = 3) -> None:
        for at, data in self._steps[:most]:
            self._ring.bytes[at : at + len(data)] = data
        del self._steps[:most]


def make_bridge(mw_write: Callable[[int, int, bytes], None]) -> SimpleNamespace:
    return SimpleNamespace(
        config=VntbLayout(mw1=SIZE),
        faults={},
        clock=lambda: 0.0,
        mw_write=mw_write,
    )


@pytest.mark.parametrize("reads", range(4))
@pytest.mark.parametrize("steps", [1, 3])
def test_a_packet_that_comes_in_the_middle_of_a_look_is_taken_once(reads: int, steps: int) -> None:
    """DESC_DONE_FLAG is tested before the rest of the header is read (ntb_process_rxc)."""
    ring = Ring()
    told: list[tuple[int, bytes]] = []
    bridge = make_bridge(lambda _index, offset, data: told.append((offset, bytes(data))))
    peer, host = Taker(bridge, ring), Host(ring)
    sent = [bytes([number]) * 64 for number in range(3)]
    for number, payload in enumerate(sent):
        host.put(number, payload, 0x10000)
        left = reads

        def between() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                host.step(steps)

        ring.between = between
        peer.run()
        ring.between = lambda: None
        host.step()
        peer.run()
        peer.run()
    assert peer.frames == sent
    assert [int.from_bytes(data, "little") for _, data in told] == [0, 1, 2]


def test_a_slot_is_given_back_after_its_packet_was_taken() -> None:
    """ntb_complete_rxc() runs after ntb_memcpy_rx(): until then the host must not write there."""
    ring = Ring()
    taken_before: list[int] = []
    bridge = make_bridge(lambda *_: taken_before.append(len(peer.frames)))
    peer, host = Taker(bridge, ring), Host(ring)
    host.put(0, bytes(64), 0x10000)
    host.step()
    peer.run()
    assert taken_before == [1]


def test_a_packet_that_is_too_long_stops_nothing() -> None:
    """rx_err_oflow: the slot is given back, and rx_pkts stays (ntb_process_rxc)."""
    ring = Ring()
    bridge = make_bridge(lambda *_: None)
    peer = Taker(bridge, ring)
    HEADER.pack_into(ring.bytes, 0x10000 - HEADER.size, 0, 0x10000, DONE)
    HEADER.pack_into(ring.bytes, 0x20000 - HEADER.size, 0, 64, DONE)
    peer.run()
    assert peer.frames == [bytes(64)]


class Sender(TapNetdev):
    """Its interface is a list of frames."""

    def __init__(self, bridge: Any, frames: list[bytes]) -> None:
        Netdev.__init__(self, bridge)
        self._buffer = memoryview(bytearray(0x11000))
        self._tap: Any = SimpleNamespace(queues=[SimpleNamespace(read_into=self._read)])
        self._frames = frames
        bring_up(self, Ring())

    def _read(self, room: memoryview) -> int:
        frame = self._frames.pop(0)[: len(room)] if self._frames else b""
        room[: len(frame)] = frame
        return len(frame)


@pytest.mark.parametrize("reaches", [None, SIZE, SIZE - 8])
def test_frames_are_put_into_host_memory_with_or_without_a_view(reaches: int | None) -> None:
    """A frame that is too long is dropped. The host hears of the first, as it is idle, and then
    of the others."""
    host = bytearray(SIZE)
    heard: list[int] = []

    def write(_index: int, offset: int, data: bytes | memoryview) -> None:
        assert reaches != SIZE
        host[offset : offset + len(data)] = data

    bridge = make_bridge(write)
    bridge.mw_view = lambda _index: None if reaches is None else memoryview(host)[:reaches]
    frames = [b"1" * 60, b"2" * 0x10000, b"3" * 0xFFF4, b"4" * 61]
    peer = Sender(bridge, frames)
    bridge.peer_db_set = lambda bits: heard.append(peer.open_pairs[0].tx_packets)
    peer.run()
    headers = [HEADER.unpack_from(host, 0x10000 * (n + 1) - HEADER.size) for n in range(4)]
    assert headers == [(0, 60, DONE), (1, 0xFFF4, DONE), (2, 61, DONE), (0, 0, 0)]
    assert [host[0x10000 * n] for n in range(3)] == [*b"134"]
    assert host[0x20000 - HEADER.size - 1] == ord("3")
    assert heard == [1, 3]
