"""What is said of a failure: the right cause first, and a cure that does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcdrv.epf_test.causes import CAUSES, Symptom, causes
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.outcome import ring_document, worst
from rcdrv.epf_test.registers import Command, Reg
from rcdrv.epf_test.ring import RingPlan, RingReport, RingRun
from rcdrv.epf_test.transfer import Direction, Placement, transfer_test
from rcdrv.errors import RcdrvError
from rcdrv.function import Function
from rcdrv.parts import KNOWN_PARTS, UNKNOWN_PART
from rcdrv.verdict import NotPassed, Reason
from tests.unit.epf_test.virtual import endpoint
from tests.unit.sim.host import epf_test

DOCS = Path(__file__).parents[3] / "docs"


def test_every_line_to_look_for_is_on_the_page_of_verdicts() -> None:
    page = (DOCS / "reference" / "verdicts.md").read_text().replace("\n", " ")
    assert [cause.dmesg for cause in CAUSES if cause.dmesg not in page] == []


@pytest.mark.parametrize(
    ("part", "symptom", "first"),
    [
        ((0x104C, 0xB00C), Symptom.REFUSED, "neither an MSI domain"),
        ((0x1D87, 0x3588), Symptom.REFUSED, "CONFIG_PCI_ENDPOINT_MSI_DOORBELL"),
        # linkup_notifier in rockchip_pcie_epc_features_rk3588
        ((0x1D87, 0x3588), Symptom.NOT_TAKEN, "link-up"),
        ((0x1912, 0x0031), Symptom.NOT_TAKEN, "not bound"),
    ],
)
def test_the_likeliest_cause_for_the_part_comes_first(
    part: tuple[int, int], symptom: Symptom, first: str
) -> None:
    assert first in causes(symptom, KNOWN_PARTS[part])[0].text


@pytest.mark.parametrize("symptom", Symptom)
def test_an_unknown_part_has_every_cause(symptom: Symptom) -> None:
    assert set(causes(symptom, UNKNOWN_PART)) == {
        cause for cause in CAUSES if symptom in cause.symptoms
    }


def enable(spec: str, *, rebind: bool = False) -> NotPassed:
    with endpoint(spec) as device, Function(device.attach(), clock=device.clock) as function:
        if rebind:
            earlier = EpfTest(function)
            earlier.command(Command.ENABLE_DOORBELL)
            earlier.disarm()
            epf_test(device.endpoint).unbind()
            epf_test(device.endpoint).bind()
        with pytest.raises(NotPassed) as caught, Doorbell(EpfTest(function)):
            pass
        assert caught.value.reason is Reason.ENABLE_FAILED
        return caught.value


def test_a_rebind_with_a_doorbell_on_is_named() -> None:
    """pci_epf_test_unbind() frees no doorbell: -EBUSY with a DB_BAR of 0."""
    assert "unbound while a doorbell was enabled" in enable("rk3588", rebind=True).hint


def test_what_db_bar_tells_of_a_failed_enable() -> None:
    """pci_epf_test_doorbell_cleanup() writes NO_BAR; without an allocation nothing is written."""
    refused = enable("am654")
    assert "got none" in refused.message
    assert "Failed to allocate doorbell" in refused.hint
    unmapped = enable("imx8m,doorbell.address=0x33b810a0,bar2.type=fixed,bar2.size=256")
    assert "could not map it" in unmapped.message
    assert "Failed to program IB window" in unmapped.hint


@pytest.mark.parametrize("symptom", Symptom)
def test_no_hint_names_an_option(symptom: Symptom) -> None:
    assert not [cause for cause in causes(symptom, UNKNOWN_PART) if "--" in cause.text]


def test_an_enable_that_was_not_taken_is_taken_back() -> None:
    """Else pci_epf_test_cmd_handler() enables it as soon as it runs again, for nobody."""
    with (
        endpoint("rk3588,fault=silent") as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        driver = EpfTest(function)
        doorbell = Doorbell(driver)
        with pytest.raises(NotPassed) as caught, doorbell:
            pass
        assert caught.value.reason is Reason.SILENT
        assert driver.read(Reg.COMMAND) == 0
        assert not doorbell.left_enabled


def test_a_late_answer_is_waited_for() -> None:
    """Slow, and not silent; what comes next finds an endpoint that takes commands."""
    with (
        endpoint("rk3588,fault=slow=9000") as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        driver = EpfTest(function)
        with pytest.raises(NotPassed) as caught:
            transfer_test(Direction.READ, False, lambda _: [Placement(1024000)], driver)
        assert "came after 9.0 s" in caught.value.message
        assert driver.command(Command.RAISE_MSI_IRQ, timeout=10).answered


@pytest.mark.parametrize("after", range(8, 80))
def test_an_answer_that_cannot_be_read_is_no_stray_interrupt(after: int) -> None:
    """The registers' BAR goes away at any access; seen when pci-epf-test is stopped midway."""
    report, error = RingReport(), None
    spec = f"rk3588,fault=all-ones={after}"
    with endpoint(spec) as device, Function(device.attach(), clock=device.clock) as function:
        try:
            RingRun(EpfTest(function), RingPlan(cycles=9), report).run()
        except RcdrvError as caught:
            error = caught
    finding = worst(report, error)
    assert isinstance(finding, NotPassed)
    assert finding.reason is Reason.ALL_ONES
    assert report.stray == 0


def test_what_ended_it_outranks_stray_interrupts() -> None:
    report = RingReport(stray=1)
    finding = worst(report, NotPassed(Reason.ALL_ONES, "they read all ones"))
    assert ring_document(None, report, finding)["reason"] == "all-ones"
