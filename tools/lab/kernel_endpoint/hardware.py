"""Hardware of the endpoint controller, as its driver in the endpoint's guest sees it.

The driver is ``driver/rcdrv-epc.c``, with the same registers. The root complex's side of the
controller is :class:`~tools.lab.kernel_endpoint.function.Function`.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rcdrv.device import CONFIG_REGION, Area, IrqKind, RegionFlag, sealed_memory
from rcdrv.errors import HostError
from rcdrv.mmio import MappedWindow
from rcdrv.sim import config_space
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.config_space import SimConfigSpace
from rcdrv.sim.description import (
    BarLayout,
    BarType,
    Dma,
    DoorbellBackend,
    Intx,
    Layout,
    MaskedVector,
    Trap,
)
from rcdrv.vfio_user.served import DmaFault, Peer, ServedDevice, ServedRegion
from tools.lab.kernel_endpoint.function import Function, Seen
from tools.lab.kernel_endpoint.shadow import Shadow

REGISTERS_SIZE = 0x10000
MAGIC = 0x32435045
COMMAND, RESULT, ARGUMENT, FEATURES, EVENTS = 0x08, 0x0C, 0x10, 0x400, 0x428
INBOUND_USED, OUTBOUND_USED = 0x42C, 0x430
PAGE_SIZE = 1 << 20
"""Size of the BAR with the doorbell register. In BARs of up to this size, the register is where the
layout has it."""
WINDOW_LIMIT = 64 << 20
"""Limit of the layout's outbound space in bytes."""
REGISTER_BAR, PAGE_BAR, MEMORY_BAR, TRAPPED_BAR = 0, 1, 2, 4
DOORBELL_VECTOR, EVENT_VECTOR = 0, 1
LINK_DOWN, LINK_UP, MASTER = 1, 2, 4

_BAR_TYPES = (BarType.PROGRAMMABLE, BarType.FIXED, BarType.RESIZABLE, BarType.RESERVED)
_DISABLED = 4
_DMA = {Dma.NONE: 0, Dma.SLAVE: 1, Dma.MEMCPY: 2}


@dataclass(frozen=True)
class Part:
    """Part of a BAR's target: endpoint memory, the doorbell register, or nothing."""

    size: int
    memory: int = -1
    """Offset in the guest's memory; -1 if the part is not memory."""
    doorbell: int = -1
    """Offset of the doorbell register in the part; -1 if it has none."""


@dataclass
class Outbound:
    """A mapping of an outbound window."""

    offset: int
    address: int
    size: int
    before: bytes = b""
    """Contents of the memory window when it last equalled the root complex's memory."""


class Hardware(ServedDevice):
    """The controller that ``layout`` describes.

    :param listen: shows and hides the root complex's socket
    """

    def __init__(self, layout: Layout, log: AccessLog, listen: Callable[[bool], None]) -> None:
        self.layout = layout
        self.function = Function(self, log)
        self._log = log
        self._listen = listen
        self._peer: Peer | None = None
        self._window_size = min(layout.outbound_size, WINDOW_LIMIT)
        self._window_fd = sealed_memory("rcdrv-outbound", self._window_size)
        self._window_map = mmap.mmap(self._window_fd, self._window_size)
        self._window = memoryview(self._window_map)
        self._memory_fd = -1
        self._memory: memoryview | None = None
        self._words: MappedWindow | None = None
        self.shadows: dict[int, Shadow] = {}
        """Mappable copies of the memory BARs of pci-epf-test."""
        self._commands: tuple[Callable[[Sequence[int]], int], ...] = (
            *(self._header, self._set_bar, self._clear_bar, self._map, self._unmap),
            *(self._set_msi, self._set_msix, self._get_msi, self._get_msix, self._raise),
            *(self._start, self._stop, self._place, self._copy),
        )
        self._registers = self._description()
        self._power_on()

    def _power_on(self) -> None:
        size = self._window_size
        window = BarLayout(BarType.FIXED, 1 << (size - 1).bit_length(), True, True)
        self.config = SimConfigSpace(
            Layout(
                vendor=0x1234,
                device=0xE9C0,
                intx_pin=0,
                msix=2,
                msix_bar=REGISTER_BAR,
                msix_table=0x8000,
                msix_pba=0xC000,
                bars=(
                    BarLayout(BarType.FIXED, REGISTERS_SIZE),
                    BarLayout(BarType.FIXED, PAGE_SIZE),
                    *(window, None, window, None),
                ),
            )
        )
        self._arguments = [0] * 256
        self._result = 0
        self._events = 0
        self.started = False
        self.bars: dict[int, tuple[BarLayout, tuple[Part, ...]]] = {}
        self._doorbell = -1
        self._outbound: dict[tuple[int, int], Outbound] = {}
        self._seen = Seen()

    # -- the description ----------------------------------------------------------------------

    @property
    def doorbell_kind(self) -> int:
        backend = self.layout.doorbell.backend
        if backend is DoorbellBackend.NONE:
            return 0
        # x86 has no MSI domain for platform devices, so the function uses the embedded doorbell
        # also for a part with an ITS.
        return 2 if backend is DoorbellBackend.EXPOSED else 1

    def _description(self) -> bytes:
        layout = self.layout
        doorbell = layout.doorbell
        exposed = self.doorbell_kind == 2
        flags = (
            layout.dynamic_inbound,
            layout.subrange,
            layout.msi > 0,
            layout.msix > 0,
            layout.announce_intx,
            True,  # the driver is notified of changes of the link
            layout.unaligned_access,
            layout.function
            == "epf_vntb",  # long-lived mappings, so each access must reach the host
        )
        place = doorbell.offset if exposed else layout.doorbell_address
        words = [
            sum(flag << bit for bit, flag in enumerate(flags)),
            *(layout.align, layout.outbound_align, layout.inbound_windows, _DMA[layout.dma]),
            *(self.doorbell_kind, doorbell.bar, doorbell.offset, place % PAGE_SIZE & ~3),
            *(0 if doorbell.backend is DoorbellBackend.MSI else doorbell.data, 0),
        ]
        words += [0] * ((0x40 >> 2) - len(words))
        for bar in layout.bars:
            kind = _DISABLED if bar is None else _BAR_TYPES.index(bar.type)
            words += [kind | (bar.wide << 8 if bar else 0), bar.size & 0xFFFF_FFFF if bar else 0]
        head = struct.pack("<I", MAGIC).ljust(FEATURES, b"\0")
        return (head + struct.pack(f"<{len(words)}I", *words)).ljust(REGISTERS_SIZE, b"\0")

    # -- a vfio-user device -------------------------------------------------------------------

    def regions(self) -> Sequence[ServedRegion]:
        access = RegionFlag.READ | RegionFlag.WRITE
        size = 1 << (self._window_size - 1).bit_length()
        regions = [ServedRegion()] * 9
        regions[REGISTER_BAR] = ServedRegion(REGISTERS_SIZE, access)
        regions[PAGE_BAR] = ServedRegion(PAGE_SIZE, access)
        regions[MEMORY_BAR] = ServedRegion(
            size, access | RegionFlag.MMAP, (Area(0, self._window_size),), self._window_fd
        )
        regions[TRAPPED_BAR] = ServedRegion(size, access)
        regions[CONFIG_REGION] = ServedRegion(config_space.SIZE, access)
        return regions

    def irq_counts(self) -> Sequence[int]:
        return (0, 0, 2, 0, 0)

    def can_reset(self) -> bool:
        return True

    def attach(self, peer: Peer) -> None:
        self._peer = peer
        self._power_on()

    def detach(self) -> None:
        self._peer = None
        self._set_started(False)

    def reset(self) -> None:
        self._set_started(False)
        self._power_on()

    def read(self, region: int, offset: int, size: int) -> bytes:
        if region == CONFIG_REGION:
            return self.config.read(offset, size)
        if region == REGISTER_BAR:
            if offset == RESULT:
                return struct.pack("<i", self._result)[:size]
            if offset == EVENTS:
                events, self._events = self._events, 0
                return struct.pack("<I", events)[:size]
            if offset == INBOUND_USED:
                parts = sum(len(parts) for _, parts in self.bars.values())
                return struct.pack("<I", parts)[:size]
            if offset == OUTBOUND_USED:
                return struct.pack("<I", len(self._outbound))[:size]
            return self._registers[offset : offset + size]
        if region == MEMORY_BAR:
            return bytes(self._window[offset : offset + size]).ljust(size, b"\xff")
        if region == TRAPPED_BAR and (mapping := self._outbound_at(offset)):
            data = self.function.dma_read(mapping.address + offset - mapping.offset, size)
            return data if data is not None else b"\xff" * size
        return b"\0" * size if region == PAGE_BAR else b"\xff" * size

    def write(self, region: int, offset: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        if region == CONFIG_REGION:
            if self.config.write(offset, data):
                self.reset()
        elif region == REGISTER_BAR and offset == COMMAND:
            self._result = self._command(value)
        elif region == REGISTER_BAR and ARGUMENT <= offset < FEATURES and not offset % 4:
            self._arguments[(offset - ARGUMENT) // 4] = value
        elif region == MEMORY_BAR and offset + len(data) <= self._window_size:
            self._window[offset : offset + len(data)] = data
        elif region == TRAPPED_BAR and (mapping := self._outbound_at(offset)):
            self.function.dma_write(mapping.address + offset - mapping.offset, data)
        elif region == PAGE_BAR and offset == self._doorbell % PAGE_SIZE:
            self.ring()

    def _outbound_at(self, offset: int) -> Outbound | None:
        for (bar, start), mapping in self._outbound.items():
            if bar == TRAPPED_BAR and start <= offset < start + mapping.size:
                return mapping
        return None

    # -- what the root complex does -------------------------------------------------------------

    def ring(self) -> None:
        """Raise the doorbell's interrupt in the endpoint's kernel."""
        self._log.event("doorbell")
        if self._peer is not None:
            self._peer.trigger(IrqKind.MSIX, DOORBELL_VECTOR)

    def notify(self, events: int) -> None:
        """Notify the controller's driver of events of the link."""
        self._log.event("link", events=events)
        self._events |= events
        if self._peer is not None:
            self._peer.trigger(IrqKind.MSIX, EVENT_VECTOR)

    def pieces(self, bar: int, offset: int, size: int) -> Iterator[tuple[Part, int, int]]:
        """Yield (part, offset in it, size) for an access to a BAR."""
        known = self.bars.get(bar)
        for part in known[1] if known else ():
            if offset < part.size and size:
                length = min(size, part.size - offset)
                yield part, offset, length
                size -= length
                offset = 0
            else:
                offset -= part.size if size else 0
        if size:
            yield Part(size), 0, size

    def memory_file(self) -> int:
        """Return the descriptor of the guest's memory."""
        return self._memory_fd

    def read_memory(self, offset: int, size: int) -> bytes:
        """Read guest memory; an aligned access of 1, 2, 4 or 8 bytes is one load."""
        assert self._memory is not None
        assert self._words is not None
        if size in (1, 2, 4, 8) and not offset % size:
            return self._words.read(8 * size, offset).to_bytes(size, "little")
        return bytes(self._memory[offset : offset + size])

    def write_memory(self, offset: int, data: bytes) -> None:
        """Write guest memory; an aligned access of 1, 2, 4 or 8 bytes is one store."""
        assert self._memory is not None
        assert self._words is not None
        size = len(data)
        if size in (1, 2, 4, 8) and not offset % size:
            self._words.write(8 * size, offset, int.from_bytes(data, "little"))
        else:
            self._memory[offset : offset + size] = data

    # -- the driver's commands ------------------------------------------------------------------

    def _command(self, number: int) -> int:
        if not 1 <= number <= len(self._commands):
            return -errno.EOPNOTSUPP
        return self._commands[number - 1](self._arguments)

    def _header(self, given: Sequence[int]) -> int:
        self._seen = replace(
            self._seen,
            vendor=given[0] & 0xFFFF,
            device=given[0] >> 16,
            class_code=given[1] >> 16,
            intx_pin=given[2] >> 8 & 0xFF,
        )
        self._log.event("header", ids=f"{given[0]:#x}", class_code=f"{given[1]:#x}")
        return 0

    def _set_bar(self, given: Sequence[int]) -> int:
        bar, flags, size, count = given[0], given[1], _wide(given, 2), given[4]
        own = self.layout.bars[bar] if bar < 6 else None
        if own is None or count > 32:
            return -errno.EINVAL
        parts = tuple(
            self._part(_wide(given, at), _wide(given, at + 2)) for at in range(5, 5 + 4 * count, 4)
        )
        seen = replace(own, size=size, wide=bool(flags & 4), prefetchable=bool(flags & 8))
        if shadow := self._shadow(bar, size):
            self._push(bar, shadow)
        self.bars = {**self.bars, bar: (seen, parts)}
        if shadow:
            shadow.show(self.read_bar(bar, 0, size))
        self._log.event("set_bar", bar=bar, size=size, parts=[str(part) for part in parts])
        return 0

    def _shadow(self, bar: int, size: int) -> Shadow | None:
        """Return the shadow of a BAR; None if accesses have side effects or must be logged."""
        layout = self.layout
        if layout.function != "epf_test" or bar in (layout.register_bar, self._seen.msix_bar):
            return None
        traps = layout.trap is Trap.ALL or (layout.trap is Trap.AUTO and self._log.enabled)
        known = self.shadows.get(bar)
        if traps or size % mmap.PAGESIZE:
            if known:  # of a larger BAR, before this function was bound anew
                self.shadows.pop(bar).close()
            return None
        if known is None or known.size != size:
            if known:
                known.close()
            self.shadows[bar] = Shadow(size)
        return self.shadows[bar]

    def areas(self, bar: int) -> tuple[Area, ...]:
        """Return the mappable parts of a BAR's shadow: all but the page of a possible doorbell."""
        size = self.shadows[bar].size
        if self.doorbell_kind != 1:
            return (Area(0, size),)
        start = self.layout.doorbell_address % size // mmap.PAGESIZE * mmap.PAGESIZE
        end = start + mmap.PAGESIZE
        parts = ((0, start), (end, size))
        return tuple(Area(first, last - first) for first, last in parts if first < last)

    def is_shadowed(self, bar: int) -> bool:
        """Return whether accesses use the shadow: not while a part of the BAR is a doorbell."""
        return bar in self.shadows and all(part.doorbell < 0 for part in self.bars[bar][1])

    def push(self) -> None:
        """Copy writes of the root complex's mappings to the endpoint."""
        for bar, shadow in self.shadows.items():
            self._push(bar, shadow)

    def _push(self, bar: int, shadow: Shadow) -> None:
        def write(offset: int, data: bytes) -> None:
            done = 0
            for part, inner, length in self.pieces(bar, offset, len(data)):
                if part.memory >= 0:
                    self.write_memory(part.memory + inner, data[done : done + length])
                done += length

        shadow.push(write)

    def pull(self) -> None:
        """Copy writes of the endpoint to the root complex's mappings."""
        for bar, shadow in self.shadows.items():
            if bar in self.bars:
                shadow.pull(self.read_bar(bar, 0, shadow.size))

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Read the endpoint's memory behind a BAR."""
        return b"".join(
            self.read_memory(part.memory + inner, length)
            if part.memory >= 0
            else (b"\0" if part.doorbell >= 0 else b"\xff") * length
            for part, inner, length in self.pieces(bar, offset, size)
        )

    def _part(self, address: int, size: int) -> Part:
        if 0 <= self._doorbell - address < size:
            return Part(size, doorbell=self._doorbell - address)
        try:
            place = self._peer.dma_file(address, size) if self._peer else None
        except DmaFault:
            place = None
        if place is None or place[0] < 0:
            return Part(size)
        self._map_memory(place[0])
        return Part(size, memory=place[1])

    def _map_memory(self, fd: int) -> None:
        if self._memory is not None:
            return
        self._memory_fd = os.dup(fd)
        whole = mmap.mmap(self._memory_fd, 0)
        self._memory = memoryview(whole)
        self._words = MappedWindow(whole, name="guest memory")

    def _clear_bar(self, given: Sequence[int]) -> int:
        self.bars = {bar: known for bar, known in self.bars.items() if bar != given[0]}
        self._log.event("clear_bar", bar=given[0])
        return 0

    def _map(self, given: Sequence[int]) -> int:
        bar, offset, address, size = given[0], _wide(given, 1), _wide(given, 3), _wide(given, 5)
        if offset + size > self._window_size:
            return -errno.EINVAL
        mapping = Outbound(offset, address, size)
        if bar == MEMORY_BAR:
            mapping.before = self.function.dma_map(address, size)
            self._window[offset : offset + size] = mapping.before
        self._outbound[bar, offset] = mapping
        return 0

    def _unmap(self, given: Sequence[int]) -> int:
        mapping = self._outbound.pop((given[0], _wide(given, 1)), None)
        if mapping is None:
            return -errno.EINVAL
        if given[0] == MEMORY_BAR:
            self._write_back(mapping)
        return 0

    def _write_back(self, mapping: Outbound) -> None:
        """Copy changes of the memory window to the root complex's memory."""
        after = bytes(self._window[mapping.offset : mapping.offset + mapping.size])
        for start in range(0, mapping.size, mmap.PAGESIZE):
            old = mapping.before[start : start + mmap.PAGESIZE]
            new = after[start : start + mmap.PAGESIZE]
            if old != new:
                changed = [
                    index
                    for index, pair in enumerate(zip(old, new, strict=True))
                    if pair[0] != pair[1]
                ]
                first, end = changed[0], changed[-1] + 1
                self.function.dma_write(mapping.address + start + first, new[first:end])
        mapping.before = after

    def _set_msi(self, given: Sequence[int]) -> int:
        self._seen = replace(self._seen, msi=given[0])
        return 0

    def _set_msix(self, given: Sequence[int]) -> int:
        count, bar, offset = given[:3]
        pba = offset + 16 * count
        self._seen = replace(self._seen, msix=count, msix_bar=bar, msix_table=offset, msix_pba=pba)
        return 0

    def _get_msi(self, _given: Sequence[int]) -> int:
        return self.function.vectors(IrqKind.MSI) or -errno.EINVAL

    def _get_msix(self, _given: Sequence[int]) -> int:
        return self.function.vectors(IrqKind.MSIX) or -errno.EINVAL

    def _raise(self, given: Sequence[int]) -> int:
        kind = IrqKind(given[0]) if given[0] < 3 else IrqKind.ERR
        if kind is IrqKind.ERR or (kind is IrqKind.INTX and self.layout.intx is Intx.NONE):
            return -errno.EINVAL
        if kind is IrqKind.MSIX and self._is_masked(given[1] - 1):
            return -errno.EPERM
        # Earlier writes must arrive before the interrupt.
        for (bar, _), mapping in self._outbound.items():
            if bar == MEMORY_BAR:
                self._write_back(mapping)
        self.function.raise_irq(kind, given[1])
        return 0

    def _is_masked(self, vector: int) -> bool:
        """Return whether the MSI-X table masks a vector, as dw_pcie_ep_raise_msix_irq() checks."""
        seen = self._seen
        if self.layout.msix_masked is MaskedVector.SENT or not 0 <= vector < seen.msix:
            return False
        return bool(self.read_bar(seen.msix_bar, seen.msix_table + 16 * vector + 12, 4)[0] & 1)

    def _start(self, _given: Sequence[int]) -> int:
        try:
            self._set_started(True)
        except (HostError, OSError) as error:
            print(f"rcdrv: {error}", file=sys.stderr, flush=True)
            return -errno.EIO
        self.notify(LINK_UP)
        return 0

    def _stop(self, _given: Sequence[int]) -> int:
        self._set_started(False)
        return 0

    def _set_started(self, started: bool) -> None:
        if started == self.started:
            return
        self._log.event("start" if started else "stop")
        for bar, shadow in self.shadows.items():
            self._push(bar, shadow)
            ones = not started or bar not in self.bars
            shadow.show(b"\xff" * shadow.size if ones else self.read_bar(bar, 0, shadow.size))
        self.function.power(self._seen if started else None)
        self._listen(started)
        self.started = started

    def _place(self, given: Sequence[int]) -> int:
        self._doorbell = _wide(given, 0)
        return 0

    def _copy(self, given: Sequence[int]) -> int:
        out, local, remote, size = given[0], _wide(given, 1), _wide(given, 3), given[5]
        part = self._part(local, size)
        if part.memory < 0:
            return -errno.EFAULT
        if out:
            self.function.dma_write(remote, self.read_memory(part.memory, size))
        else:
            data = self.function.dma_read(remote, size)
            self.write_memory(part.memory, data if data is not None else b"\xff" * size)
        return 0

    def close(self) -> None:
        """Free the outbound window and the shadows."""
        for shadow in self.shadows.values():
            shadow.close()
        self._window.release()
        self._window_map.close()
        os.close(self._window_fd)


def _wide(words: Sequence[int], at: int) -> int:
    return words[at] | words[at + 1] << 32
