"""Which BAR the driver takes for the test registers when nobody says so."""

from __future__ import annotations

from rcdrv.epf_test.driver import EpfTest
from rcdrv.function import Function
from tests.unit.epf_test.virtual import endpoint, run

UNKNOWN_PART = "imx8m,vendor=0x1af4,device=0x1100,register_bar=2"


def test_a_command_that_is_stuck_does_not_hide_them() -> None:
    """Else BAR0, which is memory, would be written to as if it were the registers."""
    with endpoint(f"{UNKNOWN_PART},reset=none,fault=stuck-command") as device:
        run(device, "memcpy")
        with Function(device.attach(), clock=device.clock) as function:
            assert EpfTest(function).reg_bar == 2
