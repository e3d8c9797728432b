"""Answer to one command or ring, and the ways to wait for it."""

from __future__ import annotations

from enum import Enum

from rcdrv.epf_test.registers import Status
from rcdrv.record import fresh, mutable_record


class IrqChoice(Enum):
    """Interrupt kind that announces an answer, or polling."""

    AUTO = "auto"
    MSI = "msi"
    MSIX = "msix"
    INTX = "intx"
    POLL = "poll"


@mutable_record
class Answer:
    """Outcome of one command or ring."""

    status: Status
    """STATUS when the wait ended."""
    answered: bool
    """STATUS has IRQ_RAISED and one of the bits that answer the request."""
    latency_ns: int | None = None
    """Time from the write to the answer as this program sees it; None without an answer."""
    vectors: dict[int, int] = fresh(factory=dict)
    """Interrupts that arrived with the answer: {vector from 0: count}."""
    interrupted: bool = False
    """An interrupt arrived, with or without an answer."""
    irq_lost: bool = False
    """STATUS has the answer, but the interrupt did not arrive."""
    command_left: bool = False
    """COMMAND was not cleared; the endpoint clears it before it answers."""
    contradicts: bool = False
    """STATUS has both the success and the failure bit of the command."""

    @property
    def fired(self) -> str:
        """The vectors that fired, as IRQ_NUMBER counts them: ``1, 3``."""
        return ", ".join(str(vector + 1) for vector in sorted(self.vectors))

    @property
    def good(self) -> bool:
        """Whether the answer follows the protocol; STATUS may still report a failure."""
        return self.answered and not self.command_left and not self.contradicts
