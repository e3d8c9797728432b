"""Interrupts that must not arrive."""

from __future__ import annotations

from rcdrv.epf_test.driver import EpfTest, IrqChoice
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.irqs import raise_vector
from rcdrv.epf_test.more.case import MoreCase, Progress, case, skip
from rcdrv.epf_test.registers import Command
from rcdrv.pci import Command as ConfigCommand
from rcdrv.verdict import NotPassed, Reason


def intx_disable(driver: EpfTest, _progress: Progress) -> str:
    """Raise INTx while COMMAND has INTX_DISABLE, and again without.

    Under kernel VFIO the bit is virtual: the kernel masks the interrupt with it.
    """
    config = driver.function.config
    driver.use_irq(IrqChoice.INTX)
    try:
        raise_vector(driver, IrqChoice.INTX, 0)
    except NotPassed as why:
        raise skip(why.reason, "no INTx arrives at all, which LEGACY_IRQ_TEST judges") from None
    config.command |= ConfigCommand.INTX_DISABLE
    try:
        answer = driver.command(Command.RAISE_INTX_IRQ)
    finally:
        with driver.function.cancel.deferred():
            config.command &= ~ConfigCommand.INTX_DISABLE
    if not answer.good:
        raise explain(driver, answer, "RAISE_INTX_IRQ with INTX_DISABLE")
    if answer.interrupted:
        raise NotPassed(
            Reason.BAD_CONFIG,
            "an INTx interrupt arrived although COMMAND has INTX_DISABLE",
            hint="the controller sends Assert_INTx whatever COMMAND says",
        )
    driver.drop_interrupts()
    raise_vector(driver, IrqChoice.INTX, 0)
    return "none while disabled, one before and one after"


CASES: tuple[MoreCase, ...] = (
    case(
        "irq",
        "INTX_DISABLE",
        intx_disable,
        "INTX_DISABLE keeps INTx from arriving",
        risk="raises INTx, as LEGACY_IRQ_TEST does",
        needs="INTx that arrives",
    ),
)
