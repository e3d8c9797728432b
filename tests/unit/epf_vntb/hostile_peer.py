"""A peer of ntb_transport that writes anything into the host's memory, against the host's pumps.

``python3 -m tests.unit.epf_vntb.hostile_peer 1000000`` makes that many mutations of frames and
indexes, of up to three queue pairs that share a window. After each, the host takes and sends what
there is, and everything is checked that it read, wrote and handed over.
"""

from __future__ import annotations

import mmap
import random
import struct
import sys

from rcdrv.epf_vntb.pump import Counts, Pump
from rcdrv.epf_vntb.rings import Ring, Rings
from rcdrv.mmio import MappedWindow

HEADER, FRAME, ENTRIES = 12, 96, 15
SHARE = FRAME * ENTRIES + 4
DONE, LINK_DOWN = 1, 2
LARGEST, SMALLEST = FRAME - HEADER, 14
EDGES = (
    0,
    1,
    13,
    14,
    15,
    LARGEST,
    LARGEST + 1,
    FRAME,
    SHARE,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
)
GUARD = 64
"""Bytes behind the shares, which are no ring's."""


class Watched(MappedWindow):
    """The window: a write outside of the slot that is to be filled, and of the index, is a find."""

    def __init__(self, shares: int, *, plain: bool) -> None:
        self.memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        super().__init__(self.memory, SHARE * shares, plain=plain)
        self.host: Host | None = None
        """Whose turn it is."""
        self.rang = 0

    def write32(self, offset: int, value: int) -> None:
        self._allow(offset, 4)
        assert self.host is not None
        if offset == self.host.base + ENTRIES * FRAME:
            assert value < ENTRIES
        super().write32(offset, value)

    def write_block(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._allow(offset, len(data))
        super().write_block(offset, data)

    def _allow(self, offset: int, size: int) -> None:
        host = self.host
        assert host is not None
        assert not host.freed, "the endpoint's memory was touched after its link went down"
        if (offset, size) == (host.base + ENTRIES * FRAME, 4):
            return
        start = host.base + FRAME * host.rings.tx_index
        assert start <= offset <= start + FRAME - size, (offset, size)


class Memory:
    """What the queue pairs of a window have in common, on both sides.

    :param plain: the window is ordinary memory, which the interface fills itself
    """

    def __init__(self, shares: int = 1, *, plain: bool = False) -> None:
        self.bytes = bytearray(SHARE * shares + GUARD)
        self.window = Watched(shares, plain=plain)
        self.hosts = [Host(self, share) for share in range(shares)]


class Interface:
    """The host's network stack."""

    def __init__(self, memory: bytearray) -> None:
        self._memory = memory
        self.host: Host | None = None
        self.outgoing: list[bytes] = []
        self.taken: list[bytes] = []

    def read_into(self, buffer: memoryview) -> int:
        if not self.outgoing:
            return 0
        frame = self.outgoing.pop()[: len(buffer)]
        buffer[: len(frame)] = frame
        return len(frame)

    def write(self, frame: memoryview) -> bool:
        host = self.host
        assert host is not None
        assert SMALLEST <= len(frame) <= LARGEST
        start = host.base + FRAME * host.rings.rx_index
        assert frame == self._memory[start : start + len(frame)]
        self.taken.append(bytes(frame))
        return True


class Host:
    """The pump of a queue pair, between a window that is watched and memory that the peer writes.

    :param share: number of the queue pair's share
    """

    def __init__(self, memory: Memory, share: int = 0) -> None:
        self.base = SHARE * share
        self.memory = memory.bytes
        self.window = memory.window
        self.freed = False
        self.interface = Interface(self.memory)
        ring = Ring(self.base, FRAME * ENTRIES, FRAME, ENTRIES)
        self.rings = Rings(self.window, ring, memoryview(self.memory)[:-GUARD], ring)
        self.window.host = self.interface.host = self
        self.counts = Counts()
        self.pump = Pump(self.rings, self.interface, self._ring, self.counts)

    @classmethod
    def alone(cls, *, plain: bool = False) -> Host:
        """Return the only one of its window."""
        (host,) = Memory(plain=plain).hosts
        return host

    def _ring(self) -> None:
        self.rings.flush()
        self.window.rang += 1

    def set(self, slot: int, number: int, length: int, flags: int) -> None:
        """Write a header, as the peer does."""
        at = self.base + FRAME * (slot + 1) - HEADER
        struct.pack_into("<III", self.memory, at, number, length, flags)

    def tell(self, reader: int) -> None:
        """Write the peer's index."""
        struct.pack_into("<I", self.memory, self.base + FRAME * ENTRIES, reader)

    def turn(self) -> None:
        """Let the host take and send, and check that it ends and leaves the rest alone."""
        self.window.host = self
        end = self.base + SHARE
        around = self.memory[: self.base], self.memory[end:]
        before = self.counts.dropped + self.counts.received_packets
        taken = self.pump.receive()
        assert taken <= ENTRIES
        assert self.counts.dropped + self.counts.received_packets == before + taken
        if self.pump.link_down:
            self.freed = True
            return
        old, slot = self.window.memory[:], self.rings.tx_index
        sent = self.counts.sent_packets
        self.pump.send()
        assert (self.memory[: self.base], self.memory[end:]) == around
        assert self.memory[-GUARD:] == bytes(GUARD)
        # The slots that were filled may differ, and the next one, but for its flags.
        filled = {(slot + n) % ENTRIES for n in range(self.counts.sent_packets - sent)}
        now, next_slot = self.window.memory[:], self.rings.tx_index
        assert (now[: self.base], now[end:]) == (old[: self.base], old[end:])
        now, old = now[self.base : end], old[self.base : end]
        for start in range(0, len(now), FRAME):
            if start // FRAME not in filled:
                first = start + (LARGEST + 1 if start == FRAME * next_slot else 0)
                assert now[first : start + FRAME] == old[first : start + FRAME], start


def run(mutations: int, seed: int) -> Counts:
    """Mutate; then behave, and see that the host still takes and sends.

    :returns: what all hosts counted
    """
    chance = random.Random(seed)
    total = Counts()
    done = 0
    windows = 0
    while done < mutations:
        windows += 1
        hosts = Memory(1 + windows % 3, plain=windows % 2 == 0).hosts
        for _ in range(min(1000, mutations - done)):
            done += 1
            mutate(chance.choice(hosts), chance)
            for host in hosts:
                host.interface.outgoing = [
                    bytes(chance.choice((14, 60, LARGEST - 1, LARGEST, LARGEST + 1, 2000)))
                    for _ in range(chance.randrange(4))
                ]
                if not host.pump.link_down:
                    host.turn()
            if all(host.pump.link_down for host in hosts):
                break
        for host in hosts:
            behave(host)
            for name, value in vars(host.counts).items():
                setattr(total, name, getattr(total, name) + value)
    return total


def mutate(host: Host, chance: random.Random) -> None:
    """Change a header, an index, or bytes anywhere in the shares."""
    rings = host.rings
    what = chance.randrange(8)
    if what == 0:
        host.tell(chance.choice((*EDGES, ENTRIES - 1, ENTRIES, chance.randrange(ENTRIES))))
        return
    if what == 1:
        at = chance.randrange(len(host.memory) - GUARD - 16)
        host.memory[at : at + 16] = chance.randbytes(16)
        return
    slot = rings.rx_index if what < 7 else chance.randrange(ENTRIES)
    number = chance.choice((rings.expected, rings.expected, chance.getrandbits(32), *EDGES))
    length = chance.choice((SMALLEST, LARGEST, chance.getrandbits(32), *EDGES))
    flags = chance.getrandbits(32) & ~LINK_DOWN | DONE
    if not chance.randrange(2000):
        flags |= LINK_DOWN
    host.set(slot, number & 0xFFFF_FFFF, length, flags)


def behave(host: Host) -> None:
    """A peer that is right again, and has taken its nonsense back, is understood."""
    if host.pump.link_down:
        host.rings.restart()
        host.freed = host.pump.link_down = False
    for slot in range(ENTRIES):
        host.set(slot, 0, 0, 0)
    host.interface.taken.clear()
    expected: list[bytes] = []
    for _ in range(2 * ENTRIES):
        expected.append(struct.pack("<I", len(expected)) + bytes(SMALLEST))
        start = host.base + FRAME * host.rings.rx_index
        host.memory[start : start + len(expected[-1])] = expected[-1]
        host.set(host.rings.rx_index, host.rings.expected, len(expected[-1]), DONE)
        host.tell((host.rings.tx_index - 1) % ENTRIES)
        host.interface.outgoing = [bytes(60)]
        sent = host.counts.sent_packets
        host.turn()
        assert host.counts.sent_packets == sent + 1
    assert host.interface.taken == expected


if __name__ == "__main__":
    print(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
