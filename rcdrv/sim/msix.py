"""MSI-X table and pending bits, which the host accesses in a BAR (PCIe 6.1.4)."""

from __future__ import annotations

from collections.abc import Iterator

from rcdrv.sim.description import MSIX_ENTRY_SIZE, Layout, MaskedVector
from rcdrv.sim.faults import Faults
from rcdrv.sim.memory import BarMemory

_CONTROL = 12
"""Offset of Vector Control in an entry; its bit 0 masks the vector."""


class MsixTable:
    """The vectors of ``layout`` in the memory of their BAR."""

    def __init__(self, layout: Layout, memory: BarMemory, faults: Faults) -> None:
        self._layout = layout
        self._memory = memory
        self._faults = faults

    def arm(self, count: int) -> None:
        """Arm vectors as the host's kernel does: it writes unmasked entries; none is pending."""
        for vector in range(min(count, self._layout.msix)):
            if self._is_masked(vector):
                at = self._control(vector)
                self._memory.write(at, bytes([self._memory.read(at, 1)[0] & 0xFE]))
            self._pend(vector, False)

    def holds_back(self, vector: int) -> bool:
        """Return whether an interrupt must not be sent now, and note it if it is pending."""
        how = self._layout.msix_masked
        if how is MaskedVector.SENT or "msix-mask-ignored" in self._faults:
            return False
        if not 0 <= vector < self._layout.msix or not self._is_masked(vector):
            return False
        if how is MaskedVector.PENDING:
            self._pend(vector, True)
        return True

    def written(self, offset: int, size: int) -> Iterator[int]:
        """Handle a write by the host to the BAR; yield the vectors to send now."""
        if "msix-pending-stuck" in self._faults:
            return
        table = self._layout.msix_table
        first = max(0, (offset - table) // MSIX_ENTRY_SIZE)
        last = min(self._layout.msix - 1, (offset + size - 1 - table) // MSIX_ENTRY_SIZE)
        for vector in range(first, last + 1):
            if not self._is_masked(vector) and self._pend(vector, False):
                yield vector

    def _control(self, vector: int) -> int:
        return self._layout.msix_table + MSIX_ENTRY_SIZE * vector + _CONTROL

    def _is_masked(self, vector: int) -> bool:
        return bool(self._memory.read(self._control(vector), 1)[0] & 1)

    def _pend(self, vector: int, pending: bool) -> bool:
        """Set or clear a pending bit; return whether it was set."""
        at, bit = self._layout.msix_pba + vector // 8, 1 << vector % 8
        byte = self._memory.read(at, 1)[0]
        if pending != bool(byte & bit):
            self._memory.write(at, bytes([byte ^ bit]))
        return bool(byte & bit)
