"""Options of a campaign, facts about a fuzzed device before the first step, and a step's result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.registers import Caps, Reg
from rcdrv.epf_test.transfer import crc32
from rcdrv.fuzz.device.steps import Step

LARGEST_SIZE = 4 << 20
"""Limit of the endpoint's kzalloc() in bytes, with pages of 4 KiB."""


STEPS = 30
"""Maximum number of steps in a sequence."""


@dataclass(frozen=True)
class Options:
    steps: int = STEPS
    destructive: Collection[str] = ()
    reg_bar: int | None = None
    timeout: float = 1.0
    """Bound of every wait in seconds."""
    irq: IrqChoice = IrqChoice.AUTO
    """The only interrupt kind to use; AUTO for all."""
    trace: Callable[[str], None] | None = None

    def words(self) -> list[str]:
        """Return the options as command-line words."""
        words = [f"--destructive={name}" for name in self.destructive]
        if self.reg_bar is not None:
            words.append(f"--reg-bar={self.reg_bar}")
        if self.timeout != Options.timeout:
            words.append(f"--timeout={self.timeout:g}")
        if self.irq is not IrqChoice.AUTO:
            words.append(f"--irq={self.irq.value}")
        return words


class Wrong(Exception):
    """Result of a step that the protocol does not allow."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """Identity of the fault, which shrinking preserves."""


@dataclass(frozen=True)
class Facts:
    bars: Mapping[int, int]
    """Size in bytes of each memory BAR, by number."""
    reg_bar: int
    reserved: frozenset[int]
    """BARs that must not be written."""
    caps: Caps
    vectors: Mapping[IrqChoice, int]
    """Number of interrupts of each kind; POLL always has one."""
    default_irq: IrqChoice
    can_reset: bool
    keeps_state: bool
    """Whether a reset keeps doorbell and mappings: a function level reset, or none."""
    align: int
    """Alignment of SRC and DST in bytes."""

    @property
    def writable(self) -> list[int]:
        """BARs of pure memory."""
        return [bar for bar in self.bars if bar not in {self.reg_bar, *self.reserved}]

    def in_window(self, step: Step) -> bool:
        """Return whether an access is possible: inside its BAR and aligned to its width."""
        size = step.width // 8
        bar = self.bars.get(step.bar, 0)
        return step.width in (8, 16, 32, 64) and (
            not step.offset % size and step.offset + size <= bar
        )


@dataclass
class Seen:
    registers: Mapping[Reg, int] = field(default_factory=dict)
    """All registers afterwards; empty if the step does not concern them."""
    answered: bool = False
    """Whether STATUS had IRQ_RAISED and a bit of the command."""
    command_left: bool = False
    vectors: dict[int, int] = field(default_factory=dict)
    """Received interrupts, {vector from 0: count}."""
    armed: int = 0
    """Armed vectors."""
    parameters: Mapping[Reg, int] = field(default_factory=dict)
    """Registers written by the step, without FLAGS, IRQ_TYPE and IRQ_NUMBER."""
    sent: bytes = b""
    """Contents of the source buffer."""
    received: bytes = b""
    """Contents of the target buffer afterwards."""
    value: int | None = None
    """Value read by an access."""
    outcome: str = ""
    """``pass``, or the driver's verdict (``fail wrong-bar``); ``refused`` for an access."""

    def check_data(self, step: Step) -> None:
        """Raise :class:`Wrong` if a successful transfer moved wrong data."""
        inside = slice(step.shift, step.shift + step.size)
        received = self.received[inside]
        if step.verb == "copy" and received != self.sent[inside]:
            raise Wrong("data", f"{step.size} bytes were copied, and are not the same")
        if step.verb == "read":
            checksum = crc32(received)
            if self.registers[Reg.CHECKSUM] != checksum:
                raise Wrong("data", f"the data has the CRC {checksum:#x}, which CHECKSUM is not")
        if step.verb != "write" and any(self.received[: step.shift] + self.received[inside.stop :]):
            raise Wrong("data", "something was written outside of the buffer")
