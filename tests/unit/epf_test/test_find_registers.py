"""Which BAR the driver takes for the test registers when nobody says so."""

from __future__ import annotations

import pytest

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Reg
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.sim.access_log import AccessLog
from tests.unit.epf_test.virtual import endpoint, run

UNKNOWN_PART = "imx8m,vendor=0x1af4,device=0x1100,register_bar=2"


def test_a_command_that_is_stuck_does_not_hide_them() -> None:
    """Else BAR0, which is memory, would be written to as if it were the registers."""
    with endpoint(f"{UNKNOWN_PART},reset=none,fault=stuck-command") as device:
        run(device, "memcpy")
        with Function(device.attach(), clock=device.clock) as function:
            assert EpfTest(function).reg_bar == 2


def reg_bar(spec: str) -> int:
    with endpoint(spec) as device, Function(device.attach(), clock=device.clock) as function:
        return EpfTest(function).reg_bar


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("am654", 2),
        ("am654,vendor=0x1234", 2),
        # The ID that everybody configures by hand says BAR0, which is am654's controller's own.
        ("am654,vendor=0x104c,device=0xb500", 2),
        # An older kernel, which announces nothing: the ID is all that there is.
        ("am654,caps=0", 2),
        ("generic,caps=0", 0),
        ("am654,fault=all-ones", 2),
        ("rk3588", 0),
    ],
)
def test_the_id_is_a_default_and_no_gate(spec: str, expected: int) -> None:
    assert reg_bar(spec) == expected


def test_nothing_is_written_where_the_registers_are_not() -> None:
    written: list[int] = []

    class Writes(AccessLog):
        def access(self, op: str, region: int, offset: int, data: bytes) -> None:
            if op == "write" and region < 6:
                written.append(region)

    with endpoint("am654,vendor=0x104c,device=0xb500", Writes()) as device:
        assert run(device, "MSI_TEST") == {"pci_ep_basic.MSI_TEST": ("pass", None)}
    assert set(written) == {2}


def test_where_two_look_like_registers_the_id_decides() -> None:
    with endpoint("generic,caps=0") as device:
        copy = device.endpoint.controller.window(3)
        copy.write32(Reg.CAPS, 0x7)
        with Function(device.attach(), clock=device.clock) as function:
            assert EpfTest(function).reg_bar == 3
        device.endpoint.controller.window(4).write32(Reg.CAPS, 0x7)
        with Function(device.attach(), clock=device.clock) as function:
            assert EpfTest(function).reg_bar == 0


def test_what_an_earlier_run_left_does_not_send_it_looking_elsewhere() -> None:
    """Where nothing may be looked at, as in a reserved BAR."""
    read: set[int] = set()

    class Reads(AccessLog):
        def access(self, op: str, region: int, offset: int, data: bytes) -> None:
            if op == "read" and region < 6:
                read.add(region)

    with endpoint("tegra194", Reads()) as device:
        device.endpoint.controller.window(0).write32(Reg.IRQ_TYPE, 0xFFFFFFFF)
        with Function(device.attach(), clock=device.clock) as function:
            assert EpfTest(function).reg_bar == 0
    assert read == {0}


def test_a_vntb_is_not_written_to_as_if_it_had_them() -> None:
    """Its memory windows may show any of the endpoint's memory, and its BAR0 other registers."""
    spec = "rcar-s4-vntb-polled"
    with endpoint(spec) as device, Function(device.attach(), clock=device.clock) as function:
        with pytest.raises(UsageError, match="pci-epf-vntb") as refused:
            EpfTest(function)
        assert "rcdrv ntb" in refused.value.hint
        assert EpfTest(function, reg_bar=0).reg_bar == 0


def test_a_named_bar_of_data_is_refused_where_another_has_the_registers() -> None:
    """It was said to announce no doorbells, and tests wrote patterns over the registers."""
    written: list[int] = []

    class Writes(AccessLog):
        def access(self, op: str, region: int, offset: int, data: bytes) -> None:
            if op == "write" and region < 6:
                written.append(region)

    with (
        endpoint("rk3588", Writes()) as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        with pytest.raises(UsageError, match=r"BAR1 does not look like .* BAR0 does \(CAPS 0x"):
            EpfTest(function, reg_bar=1)
        assert EpfTest(function, reg_bar=0).reg_bar == 0
    assert not written


@pytest.mark.parametrize("changed", ["caps=0", "caps=0x37040000", "fault=all-ones"])
def test_a_named_bar_is_believed_where_no_other_has_them(changed: str) -> None:
    spec = f"rk3588,{changed}"
    for named in (0, 1):
        with endpoint(spec) as device, Function(device.attach(), clock=device.clock) as function:
            assert EpfTest(function, reg_bar=named).reg_bar == named


def test_addresses_that_a_test_has_left_are_no_registers() -> None:
    """more_bar.ADDRESS_TEST writes to each word its offset: 0x30, where CAPS would be."""
    with (
        endpoint("am654,caps=0") as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        window = function.bar(3)
        for offset in range(0, 0x40, 4):
            window.write32(offset, offset)
        assert EpfTest(function, reg_bar=2).reg_bar == 2
