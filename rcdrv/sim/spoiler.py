"""Faults of the memory behind BARs: data lines, address lines, byte enables, order."""

from __future__ import annotations

from collections.abc import Mapping

from rcdrv.sim.faults import Faults
from rcdrv.sim.memory import BarMemory


class Spoiler:
    """Accesses to a BAR's memory, changed by the active faults."""

    def __init__(self, faults: Faults) -> None:
        names = (
            "data-line",
            "address-line",
            "byte-enables",
            "write-order",
            "bar-crosstalk",
            "wide-torn",
        )
        self.active = any(name in faults for name in names)
        self._faults = faults
        # The BARs of the last two 32-bit writes.
        self._written = (-1, -1)
        self._late: tuple[BarMemory, int, bytes] | None = None

    def reached(
        self, bar: int, end: int, memory: Mapping[int, BarMemory], register_bar: int
    ) -> int:
        """Return the BAR that a 32-bit write to ``bar`` up to ``end`` reaches."""
        if bar == register_bar:
            self._written = (-1, -1)
            return bar
        before, other = self._written
        self._written = other, bar
        crosses = -1 != before != other != bar and end <= memory[other].size
        return other if crosses and "bar-crosstalk" in self._faults else bar

    def read(self, memory: BarMemory, offset: int, size: int) -> bytes:
        late = self._late
        overtakes = late is not None and (memory, offset, size) == (*late[:2], 4)
        if not overtakes:
            self._arrive()
        data = b"".join(memory.read(at, count) for at, count in self._pieces(memory, offset, size))
        if "wide-torn" in self._faults and size == 8:
            data = data[:4] * 2
        self._arrive()
        return data

    def write(self, memory: BarMemory, offset: int, data: bytes) -> None:
        self._arrive()
        if "write-order" in self._faults and len(data) == 4:
            self._late = memory, offset, data
            return
        if "wide-torn" in self._faults and len(data) == 8:
            data = data[:4]
        if "byte-enables" in self._faults and len(data) < 4:
            word = bytearray(4)
            word[offset % 4 : offset % 4 + len(data)] = data
            offset, data = offset // 4 * 4, bytes(word)
        if "data-line" in self._faults:
            byte, bit = divmod(self._faults.get("data-line", 0) % 32, 8)
            kept = bytearray(data)
            for at in range((byte - offset) % 4, len(kept), 4):
                kept[at] &= ~(1 << bit) & 0xFF
            data = bytes(kept)
        done = 0
        for at, count in self._pieces(memory, offset, len(data)):
            memory.write(at, data[done : done + count])
            done += count

    def _arrive(self) -> None:
        """Complete the delayed write."""
        late, self._late = self._late, None
        if late is not None:
            memory, offset, data = late
            memory.write(offset, data)

    def _pieces(self, memory: BarMemory, offset: int, size: int) -> list[tuple[int, int]]:
        """Return (offset in memory, length) of the places that an access reaches."""
        half = memory.size // 2
        if "address-line" not in self._faults:
            return [(offset, size)]
        if offset >= half:
            return [(offset - half, size)]
        below = min(size, half - offset)
        return [(offset, below)] + ([(0, size - below)] if size > below else [])
