"""The TAP output: the harness's own lines, and valid whatever the messages are."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from tap.line import Line  # type: ignore[import-untyped]
from tap.parser import Parser  # type: ignore[import-untyped]

from rcdrv.report.tap import Tap, list_text
from rcdrv.results.result import CaseName, CaseResult, Run
from rcdrv.verdict import Verdict

from .samples import BAR_TEST, MSI_TEST, RESULTS, a_run, play, runs

HARNESS = """\
TAP version 13
1..5
# Starting 5 tests from 3 test cases.
#  RUN           pci_ep_bar.BAR0.BAR_TEST ...
#            OK  pci_ep_bar.BAR0.BAR_TEST
ok 1 pci_ep_bar.BAR0.BAR_TEST
#  RUN           pci_ep_basic.MSI_TEST ...
+# MSI_TEST: 32 vectors
#            OK  pci_ep_basic.MSI_TEST
ok 2 pci_ep_basic.MSI_TEST
#  RUN           pci_ep_basic.MSIX_TEST ...
#      SKIP      the function has no MSI-X
#            OK  pci_ep_basic.MSIX_TEST
ok 3 pci_ep_basic.MSIX_TEST # SKIP the function has no MSI-X
#  RUN           pci_ep_data_transfer.dma.READ_TEST ...
+# READ_TEST: data-mismatch: 1024 B: 4 bytes differ
+# READ_TEST: +0x10: expected 0xdf, got 0xff
+# READ_TEST: AER: 1 receiver error
+# READ_TEST: 1 bad TLP
+# READ_TEST: hint: look at the inbound window of the endpoint
# READ_TEST: Test failed
#          FAIL  pci_ep_data_transfer.dma.READ_TEST
not ok 4 pci_ep_data_transfer.dma.READ_TEST
#  RUN           pci_ep_data_transfer.dma.COPY_TEST ...
+# COPY_TEST: device-lost: all registers read 0xffffffff
# COPY_TEST: Test failed
#          FAIL  pci_ep_data_transfer.dma.COPY_TEST
not ok 5 pci_ep_data_transfer.dma.COPY_TEST
# FAILED: 3 / 5 tests passed.
# 1 skipped test(s) detected. Consider enabling relevant config options to improve coverage.
# Totals: pass:2 fail:2 xfail:0 xpass:0 skip:1 error:0
"""
"""What the kernel's harness prints for these verdicts; a ``+`` marks what we say besides."""

LIST = """\
# FIXTURE            VARIANT                   TEST
global                                         
--------------------------------------------------------------------------------
pci_ep_bar           BAR0                      BAR_TEST
                     BAR1                      BAR_SUBRANGE_TEST
                     BAR2                      
--------------------------------------------------------------------------------
pci_ep_basic                                   LEGACY_IRQ_TEST
                                               MSI_TEST
--------------------------------------------------------------------------------
pci_ep_data_transfer memcpy                    READ_TEST
                     dma                       WRITE_TEST
                                               COPY_TEST
"""  # noqa: W291


@pytest.fixture(autouse=True)
def _own_tap_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KSFT_TAP_LEVEL", raising=False)


def tap(run: Run) -> str:
    stream = io.StringIO()
    play(run, Tap(stream))
    return stream.getvalue()


def test_every_line_is_one_of_the_harness() -> None:
    assert tap(a_run()) == re.sub(r"^\+", "", HARNESS, flags=re.MULTILINE)


def test_results_without_a_message_add_nothing_to_the_harness() -> None:
    run = a_run()
    run.results = [CaseResult(result.name, result.verdict) for result in run.results]
    bare = re.sub(r"^\+.*\n", "", HARNESS, flags=re.MULTILINE)
    # Where no reason is known, the harness says so.
    assert tap(run) == bare.replace("the function has no MSI-X", "unknown")


def test_a_run_without_failures_is_passed() -> None:
    run = Run("sim:generic", planned=(BAR_TEST,), results=[RESULTS[0]])
    assert tap(run).splitlines()[-2:] == [
        "# PASSED: 1 / 1 tests passed.",
        "# Totals: pass:1 fail:0 xfail:0 xpass:0 skip:0 error:0",
    ]


def test_a_run_that_ended_early_is_not_passed() -> None:
    assert tap(a_run(finished=2)).splitlines()[-3:] == [
        "# FAILED: 2 / 5 tests passed.",
        "# Planned tests != run tests (5 != 2)",
        "# Totals: pass:2 fail:0 xfail:0 xpass:0 skip:0 error:0",
    ]


def test_the_version_is_left_to_an_outer_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSFT_TAP_LEVEL", "1")
    assert tap(a_run()).startswith("1..5\n")


def test_lines_come_as_the_run_goes() -> None:
    received = io.BytesIO()
    observer = Tap(io.TextIOWrapper(received, encoding="utf-8"))
    observer.start(a_run())
    observer.case_started(MSI_TEST)
    assert received.getvalue().endswith(b"#  RUN           pci_ep_basic.MSI_TEST ...\n")
    observer.case_finished(RESULTS[1])
    assert received.getvalue().endswith(b"ok 1 pci_ep_basic.MSI_TEST\n")


def test_a_parser_reads_what_was_meant() -> None:
    lines = [line for line in parse(tap(a_run())) if line.category == "test"]
    assert [(line.number, line.ok, line.description, line.skip) for line in lines] == [
        (index, result.verdict in (Verdict.PASS, Verdict.SKIP), str(result.name), index == 3)
        for index, result in enumerate(RESULTS, 1)
    ]
    assert lines[2].directive.reason == "the function has no MSI-X"


@given(runs())
def test_no_text_can_break_it(run: Run) -> None:
    text = tap(run)
    text.encode("utf-8")
    # No other kind of line end, as a consumer may know more of them than "\n".
    assert text.splitlines() == text.split("\n")[:-1]

    version, plan, *rest = parse(text)
    assert (version.category, plan.category) == ("version", "plan")
    assert plan.expected_tests == len(run.planned)
    assert {line.category for line in rest} <= {"test", "diagnostic"}
    read = [
        (line.number, line.ok, line.skip, line.todo) for line in rest if line.category == "test"
    ]
    assert read == [
        (
            index,
            result.verdict in (Verdict.PASS, Verdict.SKIP),
            result.verdict is Verdict.SKIP,
            False,
        )
        for index, result in enumerate(run.results, 1)
    ]


def test_what_a_test_line_cannot_hold_is_escaped() -> None:
    name = CaseName("a#b", "", "c\\d\ne")
    run = Run("", planned=(name,), results=[CaseResult(name, Verdict.SKIP, message="x # y")])
    assert "\nok 1 a\\x23b.c\\\\d\\\\ne # SKIP x \\x23 y\n" in tap(run)


def test_the_list_is_the_harness_s() -> None:
    names = [
        CaseName("pci_ep_bar", f"BAR{bar}", test)
        for bar in range(3)
        for test in ("BAR_TEST", "BAR_SUBRANGE_TEST")
    ]
    names += [CaseName("pci_ep_basic", "", test) for test in ("LEGACY_IRQ_TEST", "MSI_TEST")]
    names += [
        CaseName("pci_ep_data_transfer", variant, test)
        for variant in ("memcpy", "dma")
        for test in ("READ_TEST", "WRITE_TEST", "COPY_TEST")
    ]
    assert list_text(names) == LIST


def parse(text: str) -> list[Line]:
    return list(Parser().parse_text(text))
