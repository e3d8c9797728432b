"""Interrupt tests: have the endpoint raise each vector, and check which one fires."""

from __future__ import annotations

from rcdrv.epf_test.answer import Answer, IrqChoice
from rcdrv.epf_test.bars import Progress, no_progress
from rcdrv.epf_test.driver import SETTLE, EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.registers import Command
from rcdrv.verdict import NotPassed, Reason, skip

COMMANDS = {
    IrqChoice.INTX: Command.RAISE_INTX_IRQ,
    IrqChoice.MSI: Command.RAISE_MSI_IRQ,
    IrqChoice.MSIX: Command.RAISE_MSIX_IRQ,
    # IRQ_TYPE decides what is raised. MSI is not enabled here, so only STATUS has the answer.
    IrqChoice.POLL: Command.RAISE_MSI_IRQ,
}


def intx_test(driver: EpfTest, _progress: object = None) -> str:
    """Raise INTx, also if CAPS does not announce it.

    :raises NotPassed: INTx did not fire
    """
    driver.use_irq(IrqChoice.INTX)
    raise_vector(driver, IrqChoice.INTX, 0)
    return "INTx fired"


def vector_test(
    choice: IrqChoice,
    count: int,
    driver: EpfTest,
    progress: Progress = no_progress,
) -> str:
    """Raise vectors 1 to ``count`` of MSI or MSI-X, and check that exactly that vector fires.

    :raises NotPassed: the wrong vector or none fired; or a skip if the function or the host has
        fewer than ``count``, after those were tested: the kselftest skips there too
    """
    name = "MSI-X" if choice is IrqChoice.MSIX else "MSI"
    driver.use_irq(choice)
    ready = driver.arm(count)
    driver.drop_interrupts()
    driver.count_strays()
    for vector in range(ready):
        raise_vector(driver, choice, vector)
        progress(vector + 1, ready)
    driver.function.pause(SETTLE)
    driver.drop_interrupts()
    if driver.stray:
        raise NotPassed(Reason.IRQ_TWICE, f"{driver.stray} interrupts too many for {ready} vectors")
    if ready < count:
        raise skip(
            Reason.NO_VECTORS,
            f"{name}{ready + 1} is disabled; all {ready} before it passed",
        )
    return f"{ready} vectors"


def one_vector(choice: IrqChoice, number: int, driver: EpfTest) -> None:
    """Raise one vector, numbered from 1.

    :raises NotPassed: the vector did not fire, or ``no-vectors``
    """
    driver.use_irq(choice)
    ready = driver.arm(number)
    if ready < number:
        raise NotPassed(Reason.NO_VECTORS, f"only {ready} vectors are there, not {number}")
    raise_vector(driver, choice, number - 1)


def raise_vector(driver: EpfTest, choice: IrqChoice, vector: int) -> Answer:
    """Have the endpoint raise one interrupt; ``vector`` is numbered from 0.

    :raises NotPassed: the vector did not fire, or not alone
    """
    command = COMMANDS[choice]
    answer = driver.command(command, vector=vector)
    what = f"{command.name} {vector + 1}" if choice is not IrqChoice.INTX else str(command.name)
    if not answer.good or answer.irq_lost:
        raise explain(driver, answer, what)
    if choice not in (IrqChoice.MSI, IrqChoice.MSIX):
        return answer
    if set(answer.vectors) != {vector}:
        raise NotPassed(Reason.WRONG_VECTOR, f"{what}: vector {answer.fired} fired instead")
    if answer.vectors[vector] > 1:
        raise NotPassed(Reason.IRQ_TWICE, f"{what}: it fired {answer.vectors[vector]} times")
    return answer
