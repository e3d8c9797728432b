"""The second suite: no false verdict, and each fault is caught by its cases and by no others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdrv.api import DESTRUCTIVE_NAMES
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more import DESTRUCTIVE_MORE, MORE
from rcdrv.epf_test.more import reset as more_reset
from rcdrv.epf_test.more.link import load
from rcdrv.epf_test.more.state import Snapshot
from rcdrv.epf_test.registers import Command, Reg
from rcdrv.epf_test.suite import DESTRUCTIVE, cases, run_cases
from rcdrv.errors import HostError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.host.reset_method import reset_by
from rcdrv.mmio import Window
from rcdrv.results.observer import Observer
from rcdrv.results.result import CaseResult, Run
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import load_layout, preset_names
from rcdrv.sysfs import Paths
from rcdrv.verdict import Reason
from tools.more import rows

from .virtual import endpoint

PRESETS = [name for name in preset_names() if load_layout(name).function == "epf_test"]
EVERY = (*MORE, *(case for cases in DESTRUCTIVE_MORE.values() for case in cases))


def run(spec: str) -> list[CaseResult]:
    with (
        endpoint(spec) as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        results = run_cases(EpfTest(function), EVERY, Run("test"), Observer()).results
    assert not device.left_behind()
    return results


def failed(spec: str) -> dict[str, str]:
    """{test, without fixture and variant: reason} of what neither passed nor was skipped."""
    return {
        result.name.test.removesuffix("_TEST"): result.reason.value
        for result in run(spec)
        if result.reason is not None and result.verdict.value not in ("pass", "skip")
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_healthy_endpoint_passes(preset: str) -> None:
    assert failed(preset) == {}
    passed = {result.name.test for result in run(preset) if result.verdict.value == "pass"}
    assert {"WALKING_ONES_TEST", "READ_SIZES_TEST", "READ_ONLY_TEST", "RETENTION_TEST"} <= passed


def test_nothing_of_generic_is_skipped_but_what_nobody_knows() -> None:
    skipped = {str(r.name) for r in run("generic") if r.verdict.value == "skip"}
    assert skipped == {"more_bar.PRESENT_TEST", "more_destructive.BUS_RESET_TEST"}


def test_the_names_of_destructive_cases_are_complete() -> None:
    assert sorted({*DESTRUCTIVE, *DESTRUCTIVE_MORE}) == list(DESTRUCTIVE_NAMES)


def test_names_are_unique_and_none_is_the_kselftests() -> None:
    names = [str(case.name) for case in (*cases(), *EVERY)]
    assert len(set(names)) == len(names)
    assert not {str(case.name) for case in MORE} & set(map(str, DESTRUCTIVE_MORE))


MISMATCH, CONFIG, LOST = "data-mismatch", "bad-config", "lost-by-reset"
CAUGHT: dict[str, dict[str, str]] = {
    "data-line": {"WALKING_ONES": MISMATCH, "ADDRESS": MISMATCH, "WIDTH": MISMATCH},
    "address-line": {"WALKING_ONES": MISMATCH, "ADDRESS": MISMATCH},
    "byte-enables": {"WIDTH": MISMATCH},
    "wide-torn": {"WIDTH": MISMATCH},
    "write-order": {"ORDER": MISMATCH},
    "bar-crosstalk": {"TOGETHER": MISMATCH},
    "bar-forgets": {"RETENTION": MISMATCH},
    "cap-loop": {"CAPABILITIES": CONFIG},
    "rebar-empty": {"CAPABILITIES": CONFIG},
    "id-writable": {"READ_ONLY": CONFIG},
    "bar-mask": {"BAR_SIZE": CONFIG},
    "msix-outside": {"MSIX_PLACE": CONFIG},
    "master-ignored": {"BUS_MASTER": CONFIG},
    "intx-disable-ignored": {"INTX_DISABLE": CONFIG},
    "msix-mask-ignored": {"MSIX_MASK": CONFIG},
    "msix-pending-stuck": {"MSIX_MASK": "irq-lost"},
    "link-slows": {"LOAD": "bad-link"},
    "link-errors": {"LOAD": "bad-link"},
    "ring-overrun": {"BURST": "silent"},
    "ring-vector": {"VECTORS": "wrong-vector"},
    "ring-while-busy": {"DURING_TRANSFER": "silent"},
    "disable-races": {"IN_FLIGHT": "disable-failed"},
    "doorbell-leaks": {"CYCLES": "enable-failed"},
    "writes-beside": {"READ_SIZES": MISMATCH, "COPY_SIZES": MISMATCH},
    "crosses-4k": {
        "READ_SIZES": MISMATCH,
        "WRITE_SIZES": "transfer-failed",
        "COPY_SIZES": MISMATCH,
    },
    "high-address-cut": {"HIGH_ADDRESS": MISMATCH},
    "reset-loses": {"RESET": LOST},
    "reset-loses=msi": {"RESET": LOST},
    "reset-wears": {"RESETS": LOST},
    "d3-resets": {"D3HOT": LOST},
    "d3-loses": {"D3HOT": LOST},
    "d3-loses=msi": {"D3HOT": LOST},
}


@pytest.mark.parametrize("fault", CAUGHT)
def test_a_fault_is_caught_by_its_cases_alone(fault: str) -> None:
    assert failed(f"generic,fault={fault}") == CAUGHT[fault]


def test_every_fault_for_this_suite_is_here() -> None:
    assert {name for name, fault in FAULTS.items() if fault.more} <= set(CAUGHT)


def test_a_bar_that_the_part_has_and_the_host_does_not_find() -> None:
    assert failed("rk3588,fault=bar-empty=5") == {"PRESENT": "bar-disabled"}


def test_ats_that_does_not_work() -> None:
    assert failed("rk3588,ats=true") == {"ATS": CONFIG}


def test_the_docs_say_of_every_case_what_it_proves() -> None:
    docs = Path(__file__).parents[3] / "docs"
    assert "\n".join(rows()) in (docs / "commands/test.md").read_text()
    faults = (docs / "faults.md").read_text()
    for name in (name for name, fault in FAULTS.items() if fault.more):
        row = next(line for line in faults.splitlines() if line.startswith(f"| `{name}`"))
        cell = row.split("|")[3]
        for test, reason in CAUGHT[name].items():
            assert test in cell
            assert f"`{reason}`" in cell


def test_every_harmless_case_is_offered_by_the_command_line() -> None:
    from rcdrv.cli import whole_parser
    from rcdrv.manual.grammar import command_tree

    tree = command_tree(whole_parser())
    test = next(command for command in tree.children if command.path[-1] == "test")
    words = next(one.words for one in test.arguments if one.words)
    assert {str(case.name) for case in MORE} <= set(words)


@pytest.mark.parametrize(
    ("spec", "said"),
    [("generic", "pending"), ("rk3588", "dropped"), ("j721e", "sent although masked")],
)
def test_a_masked_vector_by_controller(spec: str, said: str) -> None:
    """By the book; dw_pcie_ep_raise_msix_irq(); cdns_pcie_ep_send_msix_irq()."""
    with endpoint(spec) as device:
        result = one_case(device, "MSIX_MASK_TEST")
    assert result.verdict.value == "pass", result
    assert result.message.startswith(said)


def test_what_the_function_logs_is_named_with_the_case_that_passes() -> None:
    with endpoint("generic,fault=link-errors") as device:
        result = one_case(device, "READ_SIZES_TEST")
    assert result.verdict.value == "pass"
    assert result.diagnostics == ("AER: the endpoint logged Bad TLP",)


def test_a_burst_that_is_acknowledged_for_ever_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    drop = EpfTest.drop_interrupts

    def storm(driver: EpfTest) -> None:
        drop(driver)
        driver._unmatched += driver.doorbell_held

    monkeypatch.setattr(EpfTest, "drop_interrupts", storm)
    with endpoint("generic") as device:
        result = one_case(device, "BURST_TEST")
    assert (result.verdict.value, result.reason) == ("fail", Reason.IRQ_TWICE)


def test_load_reads_no_bar_that_shows_a_doorbell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until DISABLE_DOORBELL, pci_epf_test_enable_doorbell()'s BAR maps the MSI page."""
    read: list[str] = []
    block = Window.read_block

    def noted(window: Window, offset: int, size: int) -> bytes:
        read.append(window.name)
        return block(window, offset, size)

    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function)
        driver.command(Command.ENABLE_DOORBELL)
        monkeypatch.setattr(Window, "read_block", noted)
        load(driver, lambda _done, _total: None)
        bar = driver.read(Reg.DB_BAR)
        driver.command(Command.DISABLE_DOORBELL)
    assert read
    assert f"BAR{bar}" not in read


# -- resets and D3hot ------------------------------------------------------------------------------


def one_case(device: Direct, name: str) -> CaseResult:
    (case,) = [one for one in EVERY if one.name.test == name]
    with Function(device.attach(), clock=device.clock) as function:
        (result,) = run_cases(EpfTest(function), [case], Run("test"), Observer()).results
    return result


def test_what_a_host_wrote_is_put_back_after_d3hot_without_no_soft_reset() -> None:
    """pci_restore_state(), as vfio_pci_set_power_state() does where No_Soft_Reset is 0."""
    with endpoint("generic,fault=d3-resets") as device:
        device.endpoint.controller.config._power_on[0x44] = 0
        result = one_case(device, "D3HOT_TEST")
        assert result.verdict.value == "pass"
        assert result.message.endswith("config space was restored by the host")


def test_a_lost_address_is_named_and_rescan_cures_it() -> None:
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        function.config.window.write32(0x18, 0xFE00_0000)
        snapshot = Snapshot(EpfTest(function))
        function.config.window.write32(0x18, 0)
        lost = snapshot.lost()
        assert lost is not None
        assert "BAR2's address 0xfe000000 became 0x0" in lost.message
        assert "rescan cures" in lost.hint
        snapshot.put_back()
        assert snapshot.lost() is None


def test_what_is_gone_for_good_is_not_cured_by_rescan() -> None:
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        snapshot = Snapshot(EpfTest(function))
        device.endpoint.controller.lose("bars")
        lost = snapshot.lost()
        assert lost is not None
        assert "BAR2's size" in lost.message
        assert "rescan alone does not cure" in lost.hint


@pytest.mark.parametrize(("fault", "verdict"), [("", "pass"), (",fault=reset-loses", "fail")])
def test_a_bus_reset_where_the_host_has_one(
    fault: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    @contextlib.contextmanager
    def reset_by(address: str, method: str) -> Iterator[str]:
        asked.append((address, method))
        yield ""

    monkeypatch.setattr(more_reset, "reset_by", reset_by)
    with endpoint(f"generic{fault}") as device:
        device.address = "0000:01:00.0"
        result = one_case(device, "BUS_RESET_TEST")
    assert result.verdict.value == verdict, result
    assert asked == [("0000:01:00.0", "bus")]


def test_a_bus_reset_that_the_kernel_takes_for_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """pci_bridge_wait_for_secondary_bus() answers -ENOTTY behind QEMU's port, whose link is up."""
    monkeypatch.setattr(more_reset, "reset_by", lambda *_: contextlib.nullcontext(""))
    with endpoint("generic") as device:
        device.address = "0000:01:00.0"

        def reset() -> None:  # the kernel restores config space in any case
            raise HostError("the reset failed")

        monkeypatch.setattr(device, "reset", reset)
        result = one_case(device, "BUS_RESET_TEST")
    assert result.verdict.value == "skip"
    assert result.message.startswith("all is there after")


def test_the_way_of_resetting_is_the_old_one_afterwards(tmp_path: Path) -> None:
    function = tmp_path / "bus/pci/devices/0000:01:00.0"
    function.mkdir(parents=True)
    file = function / "reset_method"
    with reset_by("0000:01:00.0", "bus", Paths(sys=tmp_path)) as why:
        assert why.endswith("No such file or directory")
    for before in ("flr bus\n", "\n"):
        file.write_text(before)
        with reset_by("0000:01:00.0", "bus", Paths(sys=tmp_path)) as why:
            assert why == ""
            assert file.read_text() == "bus"
        assert file.read_text() == before


def test_nothing_can_be_lost_where_nothing_works() -> None:
    with endpoint("generic,fault=silent") as device:
        assert one_case(device, "RESET_TEST").verdict.value == "skip"
