"""Watches what reaches a software endpoint for what could harm a real one's kernel.

Looks at the accesses alone, and knows nothing of the fuzzer's own rules.
"""

from __future__ import annotations

from collections import Counter

from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.description import BarType, Layout
from rcdrv.sim.functions import doorbell_place

COMMAND, SIZE, IRQ_TYPE, IRQ_NUMBER = 0x04, 0x1C, 0x24, 0x28
CAPS, DB_BAR, DB_OFFSET = 0x30, 0x34, 0x38
TRANSFERS, DISABLE, SUBRANGES = 0x38, 0x80, 0x300
NO_BAR = 0xFFFFFFFF


class HarmWatch(AccessLog):
    """Counts it by the names of ``--destructive``; what has no name is ``never``."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout
        self.harm: Counter[str] = Counter()
        self.noticed: set[str] = set()
        """``harm``, ``oops`` and ``stray``: what the endpoint itself took badly."""
        self.writes = 0
        self.renew()

    def renew(self) -> None:
        """Another endpoint, new, in place of the one of before."""
        self._registers: dict[int, int] = {}
        self._doorbell: tuple[int, int] | None = None

    def access(self, op: str, region: int, offset: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        self.writes += op == "write" and region < 6
        if region == self._layout.register_bar:
            if op == "write":
                self._register(offset, len(data), value)
        elif region < 6:
            self._memory(op, region, offset, len(data))

    def _register(self, offset: int, size: int, value: int) -> None:
        if offset + size <= 4:
            return  # MAGIC
        if offset % 4 or size != 4 or offset == CAPS or offset > DB_BAR:
            self.harm["never"] += 1
        if offset == DB_BAR:
            self.harm["write-db-bar"] += 1
        self._registers[offset] = value
        if offset == COMMAND and value:
            self._command(value)

    def _command(self, command: int) -> None:
        registers = self._registers
        if command & DISABLE and self._doorbell is None:
            said = registers.get(DB_BAR, 0)
            if said != NO_BAR:
                self.harm["disable-without-enable"] += 1
        if command & SUBRANGES and registers.get(SIZE, 0) >= 1 << 31:
            self.harm["subrange-index"] += 1
        if command & TRANSFERS and registers.get(SIZE, 0) > 4 << 20:
            self.harm["large-size"] += 1
        self._check_irq()

    def _check_irq(self) -> None:
        if self._registers.get(IRQ_TYPE) in (1, 2) and not self._registers.get(IRQ_NUMBER):
            self.harm["irq-zero"] += 1

    def _memory(self, op: str, bar: int, offset: int, size: int) -> None:
        layout = self._layout.bar(bar)
        rings = op == "write" and self._doorbell == (bar, offset) and size == 4
        if rings:
            self._check_irq()
        elif self._doorbell is not None and self._doorbell[0] == bar:
            self.harm["doorbell-bar"] += 1
        elif layout.type is BarType.RESERVED:
            self.harm["never"] += 1

    def event(self, event: str, **details: object) -> None:
        """What the endpoint itself did: only what the accesses cannot show is taken from here."""
        if event == "answer":
            self._answer(details)
        elif event == "dma-fault":
            self.harm["iommu-fault"] += 1
        elif event in ("harm", "oops", "stray"):
            self.noticed.add(event)

    def _answer(self, details: dict[str, object]) -> None:
        status = details["status"]
        assert isinstance(status, int)
        place = doorbell_place(self._layout)
        if status & 1 << 10:
            self._doorbell = place
        elif status & 1 << 12:
            self._doorbell = None
            self._registers[DB_BAR] = NO_BAR
