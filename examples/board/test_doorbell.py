"""The doorbell rings, every time, and is where the board has it."""

import board
import pytest

import rcdrv

pytestmark = pytest.mark.rcdrv_needs("doorbell")


def test_a_hundred_rings_are_a_hundred_interrupts(endpoint: rcdrv.Endpoint) -> None:
    result = endpoint.ring(100, bar=board.DOORBELL_BAR).check()
    assert result.stray_interrupts == 0
    assert max(result.latencies_ns) < board.SLOWEST_RING * 1e9


def test_it_can_be_enabled_again_and_again(endpoint: rcdrv.Endpoint) -> None:
    endpoint.ring(cycles=10).check()


def test_it_rings_between_other_accesses(
    endpoint: rcdrv.Endpoint, doorbell: rcdrv.Doorbell
) -> None:
    for _ in range(5):
        answer = doorbell.ring()
        assert doorbell.judge(answer) is None
        assert endpoint.registers()["COMMAND"] == 0


@pytest.mark.rcdrv_needs("msix")
def test_it_answers_by_msix_too(endpoint: rcdrv.Endpoint) -> None:
    endpoint.driver.use_irq(rcdrv.IrqChoice.MSIX)
    endpoint.ring(10).check()
