"""Verdicts for unexpected answers, with the likeliest cause."""

from __future__ import annotations

from rcdrv.epf_test.answer import Answer
from rcdrv.epf_test.block import ALL_ONES
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import IrqType, Reg, decode
from rcdrv.verdict import NotPassed, Reason

_LOOK_AT_EP = "on the endpoint: is pci-epf-test bound and started, and what does its dmesg say?"
_LOOK_AT_VERSION = (
    "does the endpoint run another version of pci-epf-test, or another endpoint function?"
)


def explain(driver: EpfTest, answer: Answer, what: str) -> NotPassed:
    """Return the verdict for an unexpected answer.

    :param what: the command or ring, for the message
    """
    from rcdrv.epf_test.causes import Symptom, hint

    status = f"STATUS {int(answer.status):#010x} {decode(Reg.STATUS, int(answer.status))}"
    if int(answer.status) == ALL_ONES:
        return NotPassed(
            Reason.ALL_ONES,
            f"{what}: the test registers read all ones, though the device is there",
            hint="the endpoint's inbound mapping of the register BAR may be gone",
        )
    if answer.command_left and answer.answered:
        return NotPassed(
            Reason.STUCK_COMMAND,
            f"{what}: answered ({status}), but COMMAND is not cleared",
            hint="pci-epf-test clears COMMAND first of all: what runs on the endpoint?",
        )
    if answer.contradicts:
        return NotPassed(
            Reason.WRONG_STATUS,
            f"{what}: {status} says both success and failure",
            hint=_LOOK_AT_VERSION,
        )
    if answer.irq_lost:
        return NotPassed(
            Reason.IRQ_LOST,
            f"{what}: answered ({status}), but no {driver.irq_name} interrupt arrived",
            hint=_irq_hint(driver),
        )
    if not answer.answered and not answer.interrupted and not answer.status:
        return NotPassed(
            Reason.SILENT,
            f"{what}: no answer in time"
            + ("; it was not even taken" if answer.command_left else ""),
            hint=hint(Symptom.NOT_TAKEN, driver.part) if answer.command_left else _LOOK_AT_EP,
        )
    return NotPassed(
        Reason.WRONG_STATUS,
        f"{what}: {'an interrupt came, but ' if answer.interrupted else ''}"
        f"{status} does not have the answer",
        hint=_LOOK_AT_VERSION,
    )


def _irq_hint(driver: EpfTest) -> str:
    if driver.irq_type is IrqType.INTX:
        return "many controllers cannot raise INTx; rings and transfers do without it: `irq=msi`"
    msix = driver.function.config.msix() if driver.irq_type is IrqType.MSIX else None
    advice = (
        "does the endpoint's dmesg show 'Invalid MSI'? Is bus mastering on, and does the"
        " path to the host pass memory writes? `irq=poll` works without interrupts"
    )
    if msix is not None and driver.part.misplaces(msix.place):
        advice += f". If `irq=msi` works: {driver.part.msix_note(msix.place)}"
    return advice
