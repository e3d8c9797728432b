"""Facts about a fuzzed device before the first step, and the result of a step."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from rcdrv.epf_test.driver import IrqChoice
from rcdrv.epf_test.registers import Caps, Reg
from rcdrv.fuzz.device.steps import Step

LARGEST_SIZE = 4 << 20
"""Bytes; what the endpoint's kzalloc() still gives, with pages of 4 KiB."""


class Wrong(Exception):
    """A step had a result that the protocol does not allow."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """The same for whatever shows the same; shrinking keeps it."""


@dataclass(frozen=True)
class Facts:
    """Facts about the endpoint before the first step."""

    bars: Mapping[int, int]
    """Bytes of each memory BAR, by number."""
    reg_bar: int
    reserved: frozenset[int]
    """BARs in which nothing is written."""
    caps: Caps
    vectors: Mapping[IrqChoice, int]
    """How many interrupts of each kind there are, to be asked for by number; POLL is always in
    it, with one."""
    default_irq: IrqChoice
    can_reset: bool
    keeps_state: bool
    """A reset leaves doorbell and mappings alone: it is a function level reset, or none."""
    align: int
    """What SRC and DST have to be a multiple of."""

    @property
    def writable(self) -> list[int]:
        """BARs with nothing but memory in them."""
        return [bar for bar in self.bars if bar not in {self.reg_bar, *self.reserved}]

    def in_window(self, step: Step) -> bool:
        """Whether there is such an access: inside its BAR, a multiple of its own width."""
        size = step.width // 8
        bar = self.bars.get(step.bar, 0)
        return step.width in (8, 16, 32, 64) and (
            not step.offset % size and step.offset + size <= bar
        )


@dataclass
class Seen:
    """Result of a step, as the session saw it."""

    registers: Mapping[Reg, int] = field(default_factory=dict)
    """All of them afterwards; empty after a step that does not concern them."""
    answered: bool = False
    """STATUS had IRQ_RAISED and a bit that belongs to the command."""
    command_left: bool = False
    vectors: dict[int, int] = field(default_factory=dict)
    """Interrupts that came, {vector from 0: how often}."""
    armed: int = 0
    """Vectors that were ready for them."""
    parameters: Mapping[Reg, int] = field(default_factory=dict)
    """What the step wrote into registers besides FLAGS, IRQ_TYPE and IRQ_NUMBER."""
    sent: bytes = b""
    """What the source buffer had, and ``received`` all of the target buffer afterwards."""
    received: bytes = b""
    value: int | None = None
    """Value that an access read."""
    outcome: str = ""
    """``pass``, or how rcdrv's driver ended: ``fail wrong-bar``; of an access ``refused``."""

    def check_data(self, step: Step) -> None:
        """Raise :class:`Wrong` if a transfer that succeeded has moved other data."""
        inside = slice(step.shift, step.shift + step.size)
        received = self.received[inside]
        if step.verb == "copy" and received != self.sent[inside]:
            raise Wrong("data", f"{step.size} bytes were copied, and are not the same")
        if step.verb == "read":
            # crc32_le(~0, data), which has no inversion at the end
            checksum = zlib.crc32(received) ^ 0xFFFFFFFF
            if self.registers[Reg.CHECKSUM] != checksum:
                raise Wrong("data", f"the data has the CRC {checksum:#x}, which CHECKSUM is not")
        if step.verb != "write" and any(self.received[: step.shift] + self.received[inside.stop :]):
            raise Wrong("data", "something was written outside of the buffer")
