"""Answer to one command or ring, and the ways to learn of it."""

from __future__ import annotations

from enum import Enum

from rcdrv.epf_test.registers import Status
from rcdrv.record import fresh, mutable_record


class IrqChoice(Enum):
    """Way to learn of an answer."""

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
    """From the write to the answer, as this program saw it; None without an answer."""
    vectors: dict[int, int] = fresh(factory=dict)
    """Interrupts that came with it: {vector, from 0: count}."""
    interrupted: bool = False
    """An interrupt came, with the answer or without."""
    irq_lost: bool = False
    """STATUS has the answer, the interrupt did not come."""
    command_left: bool = False
    """COMMAND was still set afterwards; the endpoint clears it first."""
    contradicts: bool = False
    """STATUS has both the success and the failure bit of the command."""

    @property
    def good(self) -> bool:
        """Whether it was answered and taken properly; STATUS may still report a failure."""
        return self.answered and not self.command_left and not self.contradicts
