"""`rcdrv test` on software endpoints: every preset's verdicts, and every fault caught."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rcdrv.api import case_names
from rcdrv.sim.faults import FAULTS
from tests.sim.conftest import LIMIT, Endpoint, Result, bound, finish, rcdrv, start
from tests.verdicts import EXPECTED, MSIX, doorbell, subrange


def test_a_bar_without_end_is_tested_in_parts() -> None:
    """Years, at what a BAR reads; the layout's largest."""
    wide = "bar2.wide=true,bar3.type=disabled"
    result = rcdrv(
        "test",
        "-r",
        "pci_ep_bar.BAR2.BAR_TEST",
        "--device",
        f"sim:generic,bar2.size=0x400000000000,{wide}",
    )
    assert result.status == 0
    assert "of 0x400000000000 bytes, in parts" in result.out


def verdicts(result: Result) -> dict[str, tuple[str, str]]:
    """{case: (verdict, reason)} of those that did not pass."""
    return {
        one["name"]: (one["verdict"], one["reason"])
        for one in result.document["results"]
        if one["verdict"] != "pass"
    }


def suite(spec: str, *arguments: str) -> Result:
    return rcdrv("test", "--device", f"sim:{spec}", *arguments)


@pytest.mark.parametrize("preset", EXPECTED)
def test_every_preset_has_its_verdicts(preset: str) -> None:
    silent = any(reason == "silent" for _, reason in EXPECTED[preset].values())
    result = suite(preset, "--timeout", bound(silent), "--json")
    assert len(result.document["results"]) == len(case_names())
    assert verdicts(result) == EXPECTED[preset]
    failed = any(verdict == "fail" for verdict, _ in EXPECTED[preset].values())
    assert result.status == (1 if failed else 0)


def test_all_vectors_of_a_large_msix_table() -> None:
    result = suite("generic,msix=2048", "MSIX_TEST", "--json")
    assert result.status == 0
    assert result.document["results"][0]["message"] == "2048 vectors"


def test_fewer_vectors_are_tested_and_counted() -> None:
    result = suite("generic,msi=4", "MSI_TEST", "--json")
    (only,) = result.document["results"]
    assert (only["verdict"], only["reason"]) == ("skip", "no-vectors")
    assert "MSI5" in only["message"]
    assert "all 4 before it passed" in only["message"]


def test_an_older_endpoint_that_announces_nothing() -> None:
    result = suite("generic,caps=0", "--json")
    assert result.status == 0, result
    assert verdicts(result) == {
        **subrange("skip", "no-caps", 0, 1, 2, 3, 4, 5),
        **MSIX,
        **doorbell("skip", "no-caps"),
    }


def test_registers_of_an_unknown_part_are_found() -> None:
    assert suite("am654,vendor=0x1234", "MSI_TEST").status == 0


# Which case has to catch a fault that concerns only some of them.
CATCHES = {
    "bad-data": "pci_ep_data_transfer.memcpy.READ_TEST",
    "bad-checksum": "pci_ep_data_transfer.memcpy.WRITE_TEST",
    "src-invalid": "pci_ep_data_transfer.memcpy.COPY_TEST",
    "dst-invalid": "pci_ep_data_transfer.memcpy.READ_TEST",
    "dma-hangs": "pci_ep_data_transfer.dma.READ_TEST",
    "disable-clears-bar": "pcie_ep_doorbell.DOORBELL_TEST",
    "msix-dead": "pci_ep_basic.MSIX_TEST",
    "bar-alias": "pci_ep_basic.CONSECUTIVE_BAR_TEST",
    "subrange-straight": "pci_ep_bar.BAR1.BAR_SUBRANGE_TEST",
    "irq-wrong-vector": "pci_ep_basic.MSI_TEST",
    "window-off": "pci_ep_bar.BAR1.BAR_SUBRANGE_TEST",
    "contradiction": "pci_ep_data_transfer.memcpy.READ_TEST",
    "wrong-bar": "pcie_ep_doorbell.DOORBELL_TEST",
    "doorbell-dead": "pcie_ep_doorbell.DOORBELL_TEST",
}
# An endpoint may have these: slow is within the time-out, no-resource is a skip in the kselftest.
# DB_OFFSET is read once, so that it may change behind that.
# A BAR without a size is one that is not there.
# No case needs what these spoil; the command that does says so.
ELSEWHERE = {"cap-loop": "info", "rebar-empty": "info", "reset-loses": "reset"}
HARMLESS = {"slow", "doorbell-late", "no-resource", "offset-changes", "bar-empty"}


@pytest.mark.parametrize(
    "fault",
    [n for n, fault in FAULTS.items() if fault.function in ("", "epf_test") and not fault.more],
)
def test_every_fault_is_caught_and_none_hangs_the_run(fault: str) -> None:
    # Beside a fault a case that a busy host lets run out of time changes nothing here.
    timeout = bound(False) if fault in HARMLESS else "0.3"
    result = suite(f"generic,fault={fault}", "--timeout", timeout, "--json")
    if fault in ELSEWHERE:
        assert rcdrv(ELSEWHERE[fault], "--device", f"sim:generic,fault={fault}").status == 1
        return
    document = result.document
    caught = {
        name: found for name, found in verdicts(result).items() if found[0] not in ("pass", "skip")
    }
    assert len(document["results"]) + len(document["not_run"]) == len(case_names())
    if fault in HARMLESS:
        assert not caught
        return
    assert caught, "nobody noticed"
    assert result.status == (5 if fault == "vanish" else 1)
    if fault in CATCHES:
        assert CATCHES[fault] in caught


def test_a_wedged_endpoint_does_not_stop_the_rest() -> None:
    """The DMA engine hangs, which takes the endpoint's command handler with it."""
    result = suite("generic,fault=dma-hangs", "--timeout", bound(True), "--json")
    document = result.document
    assert len(document["results"]) == len(case_names())
    passed = [one["name"] for one in document["results"] if one["verdict"] == "pass"]
    assert "pci_ep_data_transfer.memcpy.COPY_TEST" in passed


def test_boundaries_move_every_byte() -> None:
    result = suite("generic", "--boundaries", "-f", "pci_ep_data_transfer", "--json")
    assert result.status == 0
    assert len(result.document["results"]) == 6
    aligned = suite("j721e", "--boundaries", "-v", "memcpy", "--json")
    assert aligned.status == 0


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["-f", "pci_ep_bar"], 12),
        (["-v", "BAR4"], 2),
        (["-t", "BAR_TEST", "-T", "DOORBELL_TEST"], 6),
        (["-T", "BAR_SUBRANGE_TEST", "-f", "pci_ep_bar"], 6),
        (["-F", "pci_ep_data_transfer"], 17),
        (["-r", "pci_ep_bar.BAR4.BAR_TEST", "-r", "pci_ep_basic.MSI_TEST"], 2),
        (["BAR4"], 2),
        (["pci_ep_bar.BAR?.BAR_TEST"], 6),
        (["DOORBELL_TEST", "MSI_TEST"], 2),
    ],
)
def test_selection(arguments: list[str], count: int) -> None:
    assert len(suite("generic", "--json", *arguments).document["results"]) == count


@pytest.mark.parametrize(
    "arguments",
    [
        ["NO_SUCH_TEST"],
        ["-t", "NO_SUCH_TEST"],
        ["--size", "0"],
        ["--size", "5M"],
        ["--align", "3"],
        ["--boundaries", "--size", "4"],
        ["--destructive", "everything"],
    ],
)
def test_bad_selections_are_usage_errors(arguments: list[str]) -> None:
    assert suite("generic", *arguments).status == 2


def test_listing_takes_names() -> None:
    """A wrong name was listed past, and refused without -l."""
    assert rcdrv("test", "-l", "DOORBELL_TEST", "--json").document["tests"] == [
        "pcie_ep_doorbell.DOORBELL_TEST"
    ]
    wrong = rcdrv("test", "-l", "DOORBELL")
    assert wrong.status == 2
    assert "did you mean DOORBELL_TEST?" in wrong.err


def test_the_list_names_every_test_without_a_device() -> None:
    result = rcdrv("test", "-l")
    assert result.status == 0
    for name in ("pci_ep_bar", "BAR5", "CONSECUTIVE_BAR_TEST", "memcpy", "DOORBELL_TEST"):
        assert name in result.out


def test_an_address_that_the_iommu_refuses() -> None:
    result = suite("generic", "--destructive", "iommu-fault", "IOMMU_FAULT_TEST", "--json")
    assert result.status == 0, result
    assert result.document["results"][0]["message"] == "WRITE READ_FAIL, READ WRITE_SUCCESS"
    window = suite(
        *("generic,fault=src-invalid", "--destructive", "iommu-fault", "IOMMU_FAULT_TEST"), "--json"
    )
    assert verdicts(window) == {"rcdrv_destructive.IOMMU_FAULT_TEST": ("fail", "address-invalid")}


def test_tap_and_junit_together(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    result = suite("rk3588", "--tap", "--junit", str(report))
    assert result.status == 1
    lines = result.out.splitlines()
    assert lines[:2] == ["TAP version 13", f"1..{len(case_names())}"]
    assert lines[-1] == "# Totals: pass:17 fail:2 xfail:0 xpass:0 skip:4 error:0"
    root = ElementTree.parse(report).getroot()
    cases = list(root.iter("testcase"))
    assert len(cases) == len(case_names())
    assert len(list(root.iter("failure"))) == 2
    assert len(list(root.iter("skipped"))) == 4


def test_pcitest_options() -> None:
    result = rcdrv(
        *("pcitest", "-D", "sim:generic", "-b", "1", "-i", "2", "-I", "-l", "-m", "3", "-x", "5"),
        *("-w", "-r", "-c", "-s", "4097"),
    )
    assert result.status == 0
    assert result.out.count("OKAY") == 9
    assert "GET IRQ TYPE:\t\tMSI-X OKAY" in result.out  # what -i has just set, as pcitest has it
    assert "NOT OKAY" not in result.out
    assert "READ (   4097 bytes):\t\tOKAY" in result.out
    failed = rcdrv("pcitest", "-D", "sim:rk3588", "-c", "-d")
    assert failed.status == 1
    assert "COPY ( 102400 bytes):\t\tNOT OKAY" in failed.out


def test_a_signal_ends_the_run_with_its_report(
    endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    board = endpoint("generic,fault=slow=200")
    report = tmp_path / "report.xml"
    run = start("test", "--junit", str(report), "--device", board.address)
    assert run.stdout is not None
    while "MSI_TEST" not in run.stdout.readline():
        pass
    run.send_signal(signal.SIGINT)
    result = finish(run)
    assert result.status == 130
    assert "# Totals:" in result.out
    assert len(list(ElementTree.parse(report).getroot().iter("testcase"))) == len(case_names())


def test_a_signal_during_a_subrange_set_up_clears_it(endpoint: Callable[..., Endpoint]) -> None:
    board = endpoint("generic,fault=slow=300")
    run = start("test", "pci_ep_bar.BAR1.BAR_SUBRANGE_TEST", "--device", board.address)
    deadline = time.monotonic() + LIMIT
    while not [line for line in board.log() if line.get("event") == "command"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    assert finish(run).status == 130
    written = [
        line["value"]
        for line in board.log()
        if line.get("op") == "write" and line["region"] == "BAR0" and line["offset"] == 4
    ]
    assert written == [1 << 8, 1 << 9]


def test_no_mapping_is_left_behind(endpoint: Callable[..., Endpoint]) -> None:
    board = endpoint("generic", "--set", "trap=sparse")

    def state() -> tuple[int, int]:
        process = Path(f"/proc/{board.process.pid}")
        return len(list((process / "fd").iterdir())), (process / "maps").read_text().count(
            "rcdrv-dma"
        )

    assert rcdrv("info", "--device", board.address).status == 0  # it has started for certain
    before = state()
    for arguments in ([], ["-f", "pci_ep_data_transfer", "--boundaries"]):
        assert rcdrv("test", "--device", board.address, *arguments).status == 0
        assert state() == before


@pytest.mark.usefixtures("pseudo_terminals")
def test_on_a_terminal_there_is_a_live_table(tmp_path: Path) -> None:
    script = tmp_path / "typescript"
    run: subprocess.CompletedProcess[Any] = subprocess.run(
        [
            *("script", "-qec"),
            f"{shlex.quote(sys.executable)} -m rcdrv test --device sim:generic",
            str(script),
        ],
        capture_output=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        timeout=LIMIT,
        check=False,
    )
    text = script.read_text()
    assert run.returncode == 0, text
    assert "TAP version" not in text
    assert "DOORBELL_TEST" in text


def test_lists_are_documents_too() -> None:
    tests = rcdrv("test", "-l", "--json").document["tests"]
    assert len(tests) == len(case_names())
    assert "pcie_ep_doorbell.DOORBELL_TEST" in tests
    lists = rcdrv("sim", "--list", "--json").document
    assert set(rcdrv("sim", "--list").out.split()) >= {*lists["presets"], *lists["faults"]}
