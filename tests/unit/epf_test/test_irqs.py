"""RAISE commands whose answer only the vector tells, as STATUS still holds the last one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.irqs import raise_vector
from rcdrv.epf_test.registers import Reg
from rcdrv.function import Function
from rcdrv.sim.epf_test.function import SimEpfTest
from rcdrv.verdict import NotPassed, Reason
from tests.unit.epf_test.virtual import endpoint


@pytest.fixture
def driver() -> Iterator[EpfTest]:
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function, irq=IrqChoice.MSI)
        driver.arm(4)
        for vector in (0, 1):  # from the second on STATUS is not cleared
            raise_vector(driver, IrqChoice.MSI, vector)
        yield driver


def test_an_old_answer_is_not_taken_for_a_new_one(
    driver: EpfTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pci_epf_test_cmd_handler() does not run: COMMAND and STATUS stay as they are."""
    monkeypatch.setattr(SimEpfTest, "_takes", lambda _self, _command: False)
    with pytest.raises(NotPassed) as failed:
        raise_vector(driver, IrqChoice.MSI, 2)
    assert failed.value.reason is Reason.SILENT
    assert driver.not_taken
    assert driver.read(Reg.COMMAND) == 0  # withdrawn
    monkeypatch.undo()
    assert raise_vector(driver, IrqChoice.MSI, 2).vectors == {2: 1}


def test_a_lost_interrupt_of_a_command_that_was_taken(
    driver: EpfTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pci_epf_test_raise_irq() sets IRQ_RAISED also if the interrupt cannot be raised."""

    def none(seconds: float, _looks: int) -> dict[int, int]:
        driver.function.pause(seconds)
        driver._interrupts.take()  # type: ignore[union-attr]
        return {}

    monkeypatch.setattr(driver, "_next_interrupts", none)
    with pytest.raises(NotPassed) as failed:
        raise_vector(driver, IrqChoice.MSI, 2)
    assert failed.value.reason is Reason.IRQ_LOST


def test_another_interrupt_than_the_one_asked_for(
    driver: EpfTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = driver._next_interrupts
    monkeypatch.setattr(
        driver,
        "_next_interrupts",
        lambda *how: {vector + 1: count for vector, count in take(*how).items()},
    )
    with pytest.raises(NotPassed) as failed:
        raise_vector(driver, IrqChoice.MSI, 2)
    assert failed.value.reason is Reason.WRONG_VECTOR
