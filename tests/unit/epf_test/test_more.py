"""The second suite: no false verdict, and each fault is caught by its cases and by no others."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from rcdrv.api import DESTRUCTIVE_NAMES
from rcdrv.epf_test.answer import Answer, IrqChoice
from rcdrv.epf_test.bars import check_writable
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more import DESTRUCTIVE_MORE, MORE, several
from rcdrv.epf_test.more import doorbell as more_doorbell
from rcdrv.epf_test.more import link as more_link
from rcdrv.epf_test.more import reset as more_reset
from rcdrv.epf_test.more.link import load
from rcdrv.epf_test.more.several import Meeting, meet
from rcdrv.epf_test.more.state import Snapshot, working
from rcdrv.epf_test.more.transfers import Scattered
from rcdrv.epf_test.registers import NO_BAR, Command, Reg, Status
from rcdrv.epf_test.suite import DESTRUCTIVE, cases, run_cases
from rcdrv.errors import HostError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.host import port
from rcdrv.host.kernel import reset_by
from rcdrv.mmio import Window
from rcdrv.pci import CapId
from rcdrv.results.observer import Observer
from rcdrv.results.result import CaseResult, Run
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import load_layout, preset_names
from rcdrv.sysfs import Paths
from rcdrv.verdict import NotPassed, Reason
from rcdrv.vfio_user.wire import ProtocolError
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
    assert skipped == {
        "more_bar.PRESENT_TEST",
        "more_destructive.BUS_RESET_TEST",
        "more_destructive.RETRAIN_TEST",
        "more_transfer.SEVERAL_TEST",
    }


@pytest.mark.parametrize("irq", [IrqChoice.POLL, IrqChoice.AUTO])
def test_a_host_without_interrupts(irq: IrqChoice, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm64 guest of QEMU: SET_IRQS refuses MSI and MSI-X (iommu_dma_prepare_msi())."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise HostError("1 MSI vector cannot be provided by this host")

    monkeypatch.setattr(Function, "interrupts", refuse)
    names = ("more_bar", "more_irq") if irq is IrqChoice.AUTO else ("more_irq", "more_doorbell")
    chosen = [case for case in MORE if case.name.fixture in names and not case.name.variant]
    with endpoint("rk3588") as device, Function(device.attach(), clock=device.clock) as function:
        results = run_cases(EpfTest(function, irq=irq), chosen, Run("test"), Observer()).results
    assert len(results) > 4
    assert {result.verdict.value for result in results} == {"pass", "skip"}, results
    masked = next(result for result in results if result.name.test == "MSIX_MASK_TEST")
    assert masked.message == "1 MSI vector cannot be provided by this host"


def test_a_servers_lie_is_no_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip is left to the case that judges it, and none judges the protocol of vfio-user."""

    def lie(*_: object, **__: object) -> NoReturn:
        raise ProtocolError("99 MSI vectors")

    monkeypatch.setattr("rcdrv.epf_test.more.transfers.transfer_test", lie)
    with endpoint("generic") as device:
        assert one_case(device, "SCATTERED_TEST").verdict.value not in ("pass", "skip")


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
    "one-translation": {"SCATTERED": MISMATCH},
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


@pytest.mark.parametrize(
    ("spec", "name"), [("rk3588", "MSIX_MASK_TEST"), ("generic", "BUS_MASTER_TEST")]
)
def test_an_interrupt_that_must_not_come_is_not_lost(spec: str, name: str) -> None:
    """The next one may be late on a busy host, so it is awaited as long as the first one."""
    (case,) = [one for one in EVERY if one.name.test == name]
    with endpoint(spec) as device, Function(device.attach(), clock=device.clock) as function:
        driver, begun = EpfTest(function), device.clock.time
        (result,) = run_cases(driver, [case], Run("test"), Observer()).results
        assert result.verdict.value == "pass", result
        assert device.clock.time - begun < 1
        assert not driver._has_lost


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


def test_long_bursts_are_for_quick_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a guest of QEMU, with KVM or without, each store to a doorbell may be a message."""
    burst = Doorbell.burst
    with endpoint("generic") as device:

        def slowly(doorbell: Doorbell, count: int) -> None:
            burst(doorbell, count)
            device.clock.time += 1e-4 * count

        monkeypatch.setattr(Doorbell, "burst", slowly)
        monkeypatch.setattr(more_doorbell, "_is_mapped", lambda *_: True)
        result = one_case(device, "BURST_TEST")
    assert result.verdict.value == "pass", result
    assert result.message.endswith("1000/1000, 10000/10000, 100000 would take 12 s")


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
        load.body(driver, lambda _done, _total: None)
        bar = driver.read(Reg.DB_BAR)
        driver.command(Command.DISABLE_DOORBELL)
    assert read
    assert f"BAR{bar}" not in read


def test_memory_that_the_endpoint_was_not_given_is_looked_at() -> None:
    """Pages beside those of a scattered buffer: where a translation that is too long would go."""
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        buffer = Scattered(EpfTest(function), 3 * mmap.PAGESIZE + 1, 1)
        assert function.dma_buffers == 4
        buffer._guards[2][17] = 1
        with pytest.raises(NotPassed, match="not given"), buffer:
            pass
        assert function.dma_buffers == 0


@pytest.mark.parametrize(("at", "size"), [(0, 1), (4095, 2), (1, 3 * 4096), (4096, 4096)])
def test_scattered_pages_are_one_piece_of_memory(at: int, size: int) -> None:
    with (
        endpoint("generic") as device,
        Function(device.attach(), clock=device.clock) as function,
        Scattered(EpfTest(function), 4 * 4096, 1) as buffer,
    ):
        data = bytes(range(1, 256)) * 50
        buffer.memory[at : at + size] = data[:size]
        whole = b"".join(bytes(page.memory) for page in function._dma.buffers.values())
        assert whole == buffer.memory[:] == bytes(at) + data[:size] + bytes(4 * 4096 - at - size)
        assert device.dma_read(buffer.iova + at, size) == data[:size]


def test_pages_that_cannot_be_mapped_leave_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        dma_map, driver = device.dma_map, EpfTest(function)

        def refuse(iova: int, memory: mmap.mmap, size: int, fd: int) -> None:
            if function.dma_buffers == 3:
                raise HostError("RLIMIT_MEMLOCK")
            dma_map(iova, memory, size, fd)

        monkeypatch.setattr(device, "dma_map", refuse)
        with pytest.raises(HostError):
            Scattered(driver, 5 * mmap.PAGESIZE, 1)
        assert function.dma_buffers == 0


# -- several endpoints -----------------------------------------------------------------------------


class Neighbour(Meeting):
    """Another endpoint whose write comes to this one's buffer, at one of the meetings."""

    def __init__(self, device: Direct, when: int) -> None:
        super().__init__(2)
        self._device, self._when = device, when

    def come(self, number: int, which: int, function: Function) -> int:
        self._seen[1] = which
        if which == self._when:
            last = max(self._device._memory)
            self._device.dma_write(last + 0x4321, b"theirs")
        return super().come(number, which, function)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (0, ""),
        (1, "READ"),  # before the transfers: their data is there, unless it was written over
        (2, "READs: the endpoint wrote outside of the buffer"),
        (6, "COPYs: the endpoint wrote outside of the buffer"),
    ],
)
def test_what_another_endpoint_writes_here_is_found(when: int, said: str) -> None:
    with endpoint("generic") as device:
        meeting = Neighbour(device, when)
        with Function(device.attach(), clock=device.clock) as function:
            (case,) = meet([several.alone], meeting, 0)
            (result,) = run_cases(EpfTest(function), [case], Run("test"), Observer()).results
        assert meeting._seen[0] & several._LEFT  # nobody waits for it any more
    if when > 1:
        assert result.reason is Reason.DATA_MISMATCH
        assert said in result.message
        assert "requester ID" in result.hint
    else:
        assert result.verdict.value == "pass", result
        assert result.message.endswith("while 1 more transferred")


class Leaver(Meeting):
    """Another endpoint that ends before one of the meetings, in peace or not."""

    def __init__(self, last: int) -> None:
        super().__init__(2)
        self._last = last

    def come(self, number: int, which: int, function: Function) -> int:
        self._seen[1] = min(which, self._last)
        if which >= self._last:
            self.leave(1)
        return super().come(number, which, function)


@pytest.mark.parametrize("last", [0, 1, 2, 5, 6])
def test_what_an_endpoint_that_ended_in_the_middle_proves(last: int) -> None:
    """One that left after the last meeting did all that it had to."""
    meeting = Leaver(last)
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        chosen = meet([several.alone], meeting, 0)
        (result,) = run_cases(EpfTest(function), chosen, Run("test"), Observer()).results
        assert device.clock.time < 1010  # it starts at 1000
    if last == 6:
        assert result.verdict.value == "pass", result
        assert result.message.endswith("while 1 more transferred")
    else:
        assert result.verdict.value == "skip", result
        assert "no other endpoint is left" in result.message


def test_nobody_waits_for_ever_for_another_endpoint() -> None:
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function)
        # One that does not come; one that takes turns with the only other.
        for meeting, longest, said in (
            (Meeting(3, [1]), 120, "in time"),
            (Meeting(2, [0]), 0, "takes turns"),
        ):
            begun = device.clock.time
            chosen = meet([several.alone], meeting, 0)
            (result,) = run_cases(driver, chosen, Run("test"), Observer()).results
            assert result.verdict.value == "skip", result
            assert said in result.message
            assert longest <= device.clock.time - begun < longest + 5


# -- resets and D3hot ------------------------------------------------------------------------------


def one_case(device: Direct, name: str) -> CaseResult:
    (case,) = [one for one in EVERY if one.name.test == name]
    with Function(device.attach(), clock=device.clock) as function:
        (result,) = run_cases(EpfTest(function), [case], Run("test"), Observer()).results
    return result


@pytest.mark.parametrize("fault", ["disable-fail", "disable-silent"])
def test_nothing_is_reset_while_a_doorbell_cannot_be_disabled(fault: str) -> None:
    """pci_epf_test_unbind() and pci_epf_test_epc_deinit() leave its handler behind."""
    names = {"D3HOT_TEST", "RESET_TEST", "RESETS_TEST"}
    chosen = [case for case in EVERY if case.name.test in names]
    with (
        endpoint(f"generic,fault={fault}") as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        driver = EpfTest(function)
        driver.command(Command.ENABLE_DOORBELL)
        results = run_cases(driver, chosen, Run("test"), Observer()).results
        assert function.resets == device.endpoint._resets == 0
    assert {(one.verdict.value, one.reason) for one in results} == {("fail", Reason.DISABLE_FAILED)}
    assert all("reboot the endpoint" in one.hint for one in results)


@pytest.mark.parametrize(("doorbell", "resets"), [(False, 1), (True, 0)])
def test_no_reset_to_the_rescue_while_a_doorbell_is_enabled(doorbell: bool, resets: int) -> None:
    (case,) = [one for one in MORE if one.name.test == "VECTORS_TEST"]
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function)
        if doorbell:
            driver.command(Command.ENABLE_DOORBELL)
        device.endpoint.function._silent = True  # type: ignore[attr-defined]
        (result,) = run_cases(driver, [case], Run("test"), Observer()).results
        assert result.reason in (Reason.SILENT, Reason.STUCK_COMMAND)
        assert function.resets == resets


def test_a_doorbell_that_can_be_disabled_is_no_reason_not_to_reset() -> None:
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function)
        driver.command(Command.ENABLE_DOORBELL)
        working(driver, lambda _done, _total: None)
        assert not device.endpoint.doorbell_enabled


def test_no_pattern_is_written_where_disable_left_the_doorbells_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pci_epf_test_disable_doorbell() frees the doorbell, and then pci_epc_set_bar() fails."""
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function)

        def refuse(*_args: object) -> None:
            raise OSError(errno.EINVAL, "no")

        with monkeypatch.context() as patched:
            patched.setattr(device.endpoint.controller, "map_memory", refuse)
            with (
                pytest.raises(NotPassed, match="does not show memory again"),
                Doorbell(driver) as bell,
            ):
                pass
        assert bell.said is not None
        with pytest.raises(NotPassed, match="still shows the doorbell's page"):
            check_writable(driver, bell.said.bar)
        with Doorbell(driver):
            pass
        check_writable(driver, bell.said.bar)  # which showed memory again


@pytest.mark.parametrize("earlier", [False, True])
def test_no_pattern_is_written_where_disable_left_the_page_of_a_doorbell_not_entered(
    earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, of a doorbell of an earlier run, or of an ENABLE whose answer is lost."""
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function)
        command = driver.command

        def refuse(*_args: object) -> None:
            raise OSError(errno.EINVAL, "no")

        def lose(asked: Command) -> Answer:
            answer = command(asked)
            if asked is Command.ENABLE_DOORBELL:
                answer.answered, answer.status = False, Status(0)
            return answer

        if earlier:
            command(Command.ENABLE_DOORBELL)
            monkeypatch.setattr(device.endpoint.controller, "map_registers", refuse)
        else:
            monkeypatch.setattr(driver, "command", lose)
        monkeypatch.setattr(device.endpoint.controller, "map_memory", refuse)
        with pytest.raises(NotPassed), Doorbell(driver):
            pass
        assert driver.read(Reg.DB_BAR) == NO_BAR
        with pytest.raises(NotPassed, match="still shows the doorbell's page"):
            check_writable(driver, 1)


def test_a_resizable_bar_capability_at_the_end_of_config_space_has_no_entries() -> None:
    """Its header is in the last word, so that its first entry would be past the end."""
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        space = device.endpoint.controller.config._data
        space[0x100:0x104] = (0x0001 | 1 << 16 | 0xFFC << 20).to_bytes(4, "little")
        space[0xFFC:0x1000] = (0x0015 | 1 << 16).to_bytes(4, "little")
        assert Snapshot(EpfTest(function)).lost() is None


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


# -- the link, trained by the port -----------------------------------------------------------------


class Bridge:
    """The port above a function, as files of a made-up host."""

    AT = 0x40

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = root / "devices/pci0000:00/0000:00:01.0"
        function = self.folder / "0000:01:00.0"
        function.mkdir(parents=True)
        links = root / "bus/pci/devices"
        links.mkdir(parents=True)
        (links / function.name).symlink_to(function)
        space = bytearray(256)
        space[0x06], space[0x34] = 0x10, self.AT
        space[self.AT : self.AT + 2] = bytes([CapId.EXP, 0])
        struct.pack_into("<H", space, self.AT + 2, 4 << 4)  # a root port
        struct.pack_into("<I", space, self.AT + 0x0C, 1 << 20)  # that reports an active link
        struct.pack_into("<HH", space, self.AT + 0x10, 0x0040, 1 << 13)
        self.config = self.folder / "config"
        self.config.write_bytes(space)
        self.paths = Paths(sys=root)
        self.trainings = 0
        self.train: Callable[[], object] = lambda: None
        write = os.pwrite

        def trains(file: int, data: bytes, offset: int) -> int:
            if offset == self.AT + 0x12:  # its bits are cleared by a written 1
                self.set(0x12, self.get(0x12) & ~int.from_bytes(data, "little"))
                return len(data)
            done = write(file, data, offset)
            if offset == self.AT + 0x10 and data[0] & 0x20:
                self.trainings += 1
                self.train()
            return done

        monkeypatch.setattr("rcdrv.host.port.os.pwrite", trains)
        monkeypatch.setattr(more_link, "port_above", lambda at: port.port_above(at, self.paths))

    def set(self, offset: int, value: int) -> None:
        """A 16-bit register of the capability."""
        with self.config.open("r+b") as file:
            file.seek(self.AT + offset)
            file.write(value.to_bytes(2, "little"))

    def get(self, offset: int) -> int:
        return int.from_bytes(self.config.read_bytes()[self.AT + offset :][:2], "little")

    def case(self, device: Direct) -> CaseResult:
        device.address = "0000:01:00.0"
        return one_case(device, "RETRAIN_TEST")


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bridge:
    return Bridge(tmp_path, monkeypatch)


def test_a_link_that_comes_back_as_it_was(bridge: Bridge) -> None:
    with endpoint("rk3588") as device:
        result = bridge.case(device)
    assert (result.verdict.value, bridge.trainings) == ("pass", 4), result
    assert result.message.endswith("4 trainings by 0000:00:01.0, of which the port showed none")
    assert bridge.get(0x10) == 0x0040  # Retrain Link is not left set


def test_what_the_training_leaves_for_the_kernel_is_taken_away(bridge: Bridge) -> None:
    """pcie_failed_link_retrain() slows down a link that is late where LBMS is set."""
    bridge.train = lambda: bridge.set(0x12, 1 << 13 | 1 << 14)
    with endpoint("rk3588") as device:
        result = bridge.case(device)
    assert result.message.endswith("4 trainings by 0000:00:01.0")
    assert bridge.get(0x12) == 1 << 13


@pytest.mark.parametrize(
    ("what", "reason", "said"),
    [
        ("slows", "bad-link", "after training 1 of 4: the link ran at 8 GT/s x4, and now at 2.5"),
        ("bars", "lost-by-reset", "BAR1's size"),
        ("msi", "lost-by-reset", "after 4 trainings: interrupts"),
        ("stays in training", "bad-link", "does not come back within a second"),
        ("goes down", "bad-link", "does not come back within a second"),
    ],
)
def test_what_a_training_takes_is_named(bridge: Bridge, what: str, reason: str, said: str) -> None:
    with endpoint("rk3588") as device:
        controller = device.endpoint.controller
        bridge.train = {
            "slows": controller.config.slow_link,
            "bars": lambda: controller.lose("bars"),
            "msi": lambda: controller.lose("msi"),
            "stays in training": lambda: bridge.set(0x12, 1 << 13 | 1 << 11),
            "goes down": lambda: bridge.set(0x12, 0),
        }[what]
        result = bridge.case(device)
    assert result.reason is not None
    assert (result.verdict.value, result.reason.value) == ("fail", reason)
    assert said in result.message


def other_driver(bridge: Bridge) -> None:
    (bridge.folder / "0000:01:00.1").mkdir()
    (bridge.folder / "0000:01:00.1/driver").symlink_to("../drivers/nvme")


def test_where_no_link_can_be_trained(bridge: Bridge) -> None:
    def skipped() -> str:
        with endpoint("rk3588") as device:
            result = bridge.case(device)
        assert (result.verdict.value, bridge.trainings) == ("skip", 0)
        return result.message

    bridge.set(0x12, 0)
    assert skipped().endswith("does not show a link")
    bridge.set(0x02, 8 << 4)  # a bridge to PCI
    assert skipped().endswith("is no port with a link below")
    bridge.config.write_bytes(bytes(64))
    assert skipped().endswith("is no PCI Express port")
    bridge.config.write_bytes(bytes(20))
    assert skipped().endswith("its config space has 20 bytes")
    bridge.config.unlink()
    assert skipped().endswith("No such file or directory")
    bridge.folder.rename(bridge.folder.with_name("0000:00:02.0"))
    assert skipped().endswith("No such file or directory")
    bridge.folder.with_name("0000:00:02.0").rename(bridge.folder)
    other_driver(bridge)
    assert skipped().endswith("0000:01:00.1, on the same link, is in use by nvme")
    (bridge.paths.function("0000:01:00.0")).unlink()
    assert "on a root bus" in skipped()


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
