"""What the driver believes of the registers, where it is no longer so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rcdrv.api import Endpoint
from rcdrv.device import CONFIG_REGION
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.registers import Command, Reg
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.verdict import Reason, Verdict
from tests.unit.epf_test import virtual
from tests.unit.sim.host import epf_test

SMALL = "generic,bar1.size=16K,bar2.size=16K"


@contextmanager
def opened(device: Direct, timeout: float = 1.0, irq: str = "auto") -> Iterator[Endpoint]:
    with Endpoint(
        Function(device.attach(), clock=device.clock),
        timeout=timeout,
        irq=irq,  # type: ignore[arg-type]
    ) as endpoint:
        yield endpoint


@pytest.mark.parametrize(
    ("fault", "reason"), [(",fault=disable-fail", Reason.DISABLE_FAILED), ("", None)]
)
def test_a_doorbell_that_came_late_is_never_written_over(fault: str, reason: Reason | None) -> None:
    """ENABLE was taken and not answered in time: later DB_BAR names a BAR.

    Without the fault, DISABLE is answered late too, but it frees the doorbell.
    """
    spec = f"{SMALL},fault=slow=1500{fault}"
    with virtual.endpoint(spec) as device, opened(device) as endpoint:
        assert endpoint.ring().reason is Reason.SILENT
        endpoint.function.pause(2.0)
        shown = endpoint.driver.read(Reg.DB_BAR)
        assert shown == 1
        assert not endpoint.disable_doorbell()
        assert endpoint.test("*.BAR1.BAR_TEST").reason is reason


def test_an_enable_of_an_earlier_run_is_awaited() -> None:
    """Its process died with ENABLE_DOORBELL in COMMAND, which the endpoint takes only now."""
    with virtual.endpoint(SMALL) as device:
        device.attach()
        device.write(CONFIG_REGION, 4, b"\6\0")
        device.write(0, Reg.COMMAND, int(Command.ENABLE_DOORBELL).to_bytes(4, "little"))
        with opened(device) as endpoint:
            assert endpoint.test("*.BAR1.BAR_TEST").reason is not Reason.DATA_MISMATCH
            assert endpoint.test("*.BAR1.BAR_TEST").verdict is Verdict.PASS


@pytest.mark.parametrize("irq", ["auto", "poll"])
def test_a_case_after_a_rebind_passes(irq: str) -> None:
    """epf_test_bind() gives registers of zeros: IRQ_TYPE 0 would raise INTx."""
    with virtual.endpoint(SMALL) as device, opened(device, irq=irq) as endpoint:
        names = ("MSI_TEST", "*.memcpy.READ_TEST", "*.dma.READ_TEST", "DOORBELL_TEST")
        assert endpoint.test(*names).passed
        epf_test(device.endpoint).unbind()
        epf_test(device.endpoint).bind()
        for name in names:
            assert endpoint.test(name).passed, name


def test_a_poke_of_a_register_is_noticed() -> None:
    with virtual.endpoint(SMALL) as device, opened(device) as endpoint:
        assert endpoint.test("*.memcpy.READ_TEST").passed
        endpoint.poke(endpoint.driver.reg_bar, Reg.IRQ_TYPE, 7)
        assert endpoint.test("*.memcpy.READ_TEST").passed


def test_a_doorbell_that_disable_does_not_free_is_told() -> None:
    """The second run must not blame the endpoint's kernel configuration."""
    with virtual.endpoint(f"{SMALL},fault=disable-fail") as device:
        with opened(device) as endpoint:
            assert endpoint.ring().left_enabled
        with opened(device) as endpoint:
            again = endpoint.ring()
            assert again.reason is Reason.DISABLE_FAILED
            assert again.left_enabled


def test_a_second_doorbell_is_refused() -> None:
    """It would disable the first one, which then writes into memory of the BAR."""
    with virtual.endpoint(SMALL) as device, opened(device) as endpoint:
        with endpoint.doorbell() as doorbell:
            with pytest.raises(UsageError, match="holds the doorbell"):
                endpoint.ring()
            assert doorbell.judge(doorbell.ring()) is None
        assert endpoint.ring().passed


def test_a_vector_of_another_kind_is_no_error_of_the_program() -> None:
    with (
        virtual.endpoint(SMALL) as device,
        opened(device) as endpoint,
        endpoint.doorbell() as doorbell,
    ):
        endpoint.driver.use_irq(IrqChoice.POLL)
        assert doorbell.judge(doorbell.ring()) is None
