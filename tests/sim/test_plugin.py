"""The pytest plugin on software endpoints, and the example suite that is made of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import rcdrv
from rcdrv.epf_test.registers import NO_BAR
from tests.plugin import ROOT, run_pytest, write_suite
from tests.sim.conftest import Endpoint, bound

FAILING = """
import pytest

def test_that_forgets(endpoint):
    endpoint.doorbell().__enter__().ring()
    endpoint.function.dma_buffer(4096)
    raise ArithmeticError("the test's own")

def test_that_holds_it(doorbell):
    assert doorbell.location is None

def test_that_checks(endpoint):
    endpoint.test("LEGACY_IRQ_TEST").check()

def test_that_comes_after(endpoint, function):
    assert endpoint.function is function
    assert endpoint.disable_doorbell()
    endpoint.ring(3).check()

@pytest.mark.rcdrv_needs("msi", "msix")
def test_that_needs_more(endpoint):
    raise AssertionError("this runs only where there is MSI-X")
"""


def test_the_example_suite_passes_from_wherever_it_was_copied_to(tmp_path: Path) -> None:
    copy = tmp_path / "board"
    shutil.copytree(ROOT / "examples/board", copy)
    outcome = run_pytest(copy, "--junit-xml", "report.xml")
    assert outcome.status == 0, outcome.text
    assert "skipped" not in outcome.text
    assert "no board was tested, but the software endpoint sim:rk3588" in outcome.text
    report = ElementTree.parse(copy / "report.xml")
    devices = [
        one.get("value") for one in report.iter("property") if one.get("name") == "rcdrv_device"
    ]
    assert len(devices) == len(list(report.iter("testcase")))
    assert set(devices) == {"sim:rk3588"}


def test_the_example_suite_fails_on_a_board_whose_interrupts_are_lost() -> None:
    outcome = run_pytest(
        ROOT / "examples/board",
        *("-p", "no:cacheprovider", "test_doorbell.py", "-k", "again"),
        *("--rcdrv-device", "sim:rk3588,fault=irq-lost", "--rcdrv-timeout", bound(False)),
    )
    assert outcome.status == pytest.ExitCode.TESTS_FAILED
    assert "no msi interrupt arrived" in outcome.text
    assert "rcdrv: what to look at next" in outcome.text
    assert "Is bus mastering on" in outcome.text
    assert "rcdrv: last register accesses" in outcome.text
    assert "write COMMAND" in outcome.text
    assert "no board was tested" not in outcome.text


def test_after_a_test_that_failed_all_is_as_it_was(
    endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    board = endpoint("rcar-s4")
    with rcdrv.open(board.address) as before:
        command = before.function.config.command
    outcome = run_pytest(write_suite(tmp_path / "suite", FAILING), "--rcdrv-device", board.address)
    assert outcome.status == pytest.ExitCode.TESTS_FAILED
    assert "3 failed, 1 passed, 1 skipped in" in outcome.text, outcome.text
    assert "has no MSIX vectors" in outcome.line("SKIPPED [1]")
    with rcdrv.open(board.address) as after:
        assert after.registers()["DB_BAR"] == NO_BAR
        assert after.function.config.command == command


def test_a_doorbell_that_cannot_be_disabled_is_an_error_of_its_test(tmp_path: Path) -> None:
    write_suite(tmp_path, "def test_it(doorbell):\n    doorbell.ring()\n")
    outcome = run_pytest(tmp_path, "--rcdrv-device", "sim:generic,fault=disable-fail")
    assert outcome.status == pytest.ExitCode.TESTS_FAILED
    assert "1 passed, 1 error" in outcome.text
    assert "still enabled" in outcome.text


def test_where_there_are_no_doorbells_the_test_is_skipped(tmp_path: Path) -> None:
    write_suite(tmp_path, "def test_it(doorbell):\n    doorbell.ring()\n")
    outcome = run_pytest(tmp_path, "--rcdrv-device", "sim:j721e")
    assert outcome.status == 0
    assert "needs doorbell" in outcome.line("SKIPPED [1]")
