"""A run beside its baseline: what counts as worse, and how each report says it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tap.parser import Parser  # type: ignore[import-untyped]

from rcdrv.epf_test.more import MORE
from rcdrv.errors import UsageError
from rcdrv.report.junit import to_junit
from rcdrv.report.tap import Tap
from rcdrv.report.terminal import Plain
from rcdrv.results.baseline import load, parse, shipped
from rcdrv.results.document import to_document
from rcdrv.results.result import Baseline, Before, CaseName, CaseResult, Change, Run
from rcdrv.verdict import Reason, Verdict
from tests.verdicts import EXPECTED

from .samples import BAR_TEST, MSI_TEST, MSIX_TEST, READ_TEST, play, runs
from .test_junit import read

PASS, SKIP, FAIL, LOST = Verdict.PASS, Verdict.SKIP, Verdict.FAIL, Verdict.LOST
NO_VECTORS, SILENT, IRQ_LOST = Reason.NO_VECTORS, Reason.SILENT, Reason.IRQ_LOST


@pytest.mark.parametrize(
    ("before", "now", "change", "failed"),
    [
        (Before(PASS, ""), (PASS, None), Change.SAME, False),
        (Before(PASS, ""), (FAIL, SILENT), Change.WORSE, True),
        (Before(PASS, ""), (SKIP, NO_VECTORS), Change.WORSE, True),
        (Before(SKIP, "no-vectors"), (SKIP, NO_VECTORS), Change.SAME, False),
        (Before(SKIP, "bar-reserved"), (SKIP, Reason.BAR_DISABLED), Change.WORSE, True),
        (Before(SKIP, "no-vectors"), (PASS, None), Change.BETTER, False),
        (Before(SKIP, "no-caps"), (FAIL, SILENT), Change.WORSE, True),
        (Before(FAIL, "irq-lost"), (FAIL, IRQ_LOST), Change.SAME, False),
        (Before(FAIL, "irq-lost"), (FAIL, SILENT), Change.WORSE, True),
        (Before(FAIL, "irq-lost"), (SKIP, NO_VECTORS), Change.BETTER, False),
        (Before(FAIL, "irq-lost"), (PASS, None), Change.BETTER, False),
        # Neither is ever expected: nothing is known of the endpoint then.
        (Before(LOST, "device-lost"), (LOST, Reason.DEVICE_LOST), Change.SAME, True),
        (Before(Verdict.ERROR, "host"), (Verdict.ERROR, Reason.HOST), Change.SAME, True),
        (None, (PASS, None), Change.NEW, False),
        (None, (FAIL, SILENT), Change.NEW, True),
    ],
)
def test_what_is_worse(
    before: Before | None,
    now: tuple[Verdict, Reason | None],
    change: Change,
    failed: bool,
) -> None:
    cases = {} if before is None else {str(BAR_TEST): before}
    judged = Baseline("b", cases).judge(CaseResult(BAR_TEST, *now))
    assert (judged.change, judged.failed) == (change, failed)


def compared(*results: CaseResult, gone: str = "gone.TEST") -> Run:
    baseline = Baseline(
        "b.json",
        {
            str(BAR_TEST): Before(PASS, ""),
            str(MSI_TEST): Before(FAIL, "irq-lost"),
            str(READ_TEST): Before(FAIL, "silent"),
            gone: Before(PASS, ""),
        },
    )
    judged = [baseline.judge(result) for result in results]
    return Run("sim:x", "x", tuple(one.name for one in judged), judged, baseline)


KNOWN = CaseResult(MSI_TEST, FAIL, IRQ_LOST, "no interrupt", "look there")
FIXED = CaseResult(READ_TEST, PASS)
GOOD = compared(CaseResult(BAR_TEST, PASS), KNOWN, FIXED, CaseResult(MSIX_TEST, PASS))
BAD = compared(CaseResult(BAR_TEST, SKIP, Reason.BAR_DISABLED, "BAR is disabled"), KNOWN)
DIFFERENCES = (
    "better: pci_ep_data_transfer.dma.READ_TEST: pass, before fail silent",
    "new: pci_ep_basic.MSIX_TEST: pass, not in the baseline",
    "missing: 1 of the baseline were not run: gone.TEST",
    "baseline b.json: nothing is worse, known failures: 1",
)


def tap(run: Run) -> str:
    stream = io.StringIO()
    play(run, Tap(stream))
    return stream.getvalue()


def test_tap_of_known_failures() -> None:
    """prove and tap.py count TODO as no failure; the kernel's totals call it xfail."""
    text = tap(GOOD)
    (line,) = [one for one in Parser().parse_text(text) if one.category == "test" and one.todo]
    assert not line.ok
    assert "not ok 2 pci_ep_basic.MSI_TEST # TODO expected failure: irq-lost: no interrupt" in text
    assert "# PASSED: 4 / 4 tests passed." in text
    assert "# Totals: pass:2 fail:0 xfail:1 xpass:1 skip:0 error:0" in text
    for line in DIFFERENCES:
        assert f"# {line}\n" in text


def test_tap_of_what_is_worse() -> None:
    text = tap(BAD)
    assert "not ok 1 pci_ep_bar.BAR0.BAR_TEST\n" in text
    assert "# worse: pci_ep_bar.BAR0.BAR_TEST: skip bar-disabled, before pass" in text
    assert "# Totals: pass:0 fail:1 xfail:1 xpass:0 skip:0 error:0" in text


def test_junit_of_known_failures() -> None:
    suite = read(to_junit(GOOD))
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("0", "1")
    (skipped,) = suite.iter("skipped")
    message = "expected failure: irq-lost: no interrupt"
    assert skipped.attrib == {"type": "xfail", "message": message}
    said = [one.attrib["value"] for one in suite.iter("property")]
    assert said[2:] == ["b.json", *DIFFERENCES]


def test_junit_of_what_is_worse() -> None:
    suite = read(to_junit(BAD))
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("1", "1")
    (failure,) = suite.iter("failure")
    assert failure.attrib == {"type": "bar-disabled", "message": "BAR is disabled"}


def test_a_terminal_lists_the_differences() -> None:
    stream = io.StringIO()
    play(GOOD, Plain(stream))
    assert "\n".join(DIFFERENCES) in stream.getvalue()
    assert "expected failure:  irq-lost: no interrupt" in stream.getvalue()
    assert stream.getvalue().count("FAIL") == 1  # and none among what to look at


def test_the_document_of_a_compared_run() -> None:
    document = to_document(GOOD)
    assert document["verdict"] == "pass"
    assert document["totals"]["fail"] == 1
    assert document["baseline"] == {
        "name": "b.json",
        "worse": [],
        "better": [str(READ_TEST)],
        "new": [str(MSIX_TEST)],
        "missing": ["gone.TEST"],
        "known_failures": [str(MSI_TEST)],
    }
    changes = [(one["change"], one["before"]) for one in document["results"]]
    assert changes[1:] == [("same", "fail irq-lost"), ("better", "fail silent"), ("new", None)]
    assert to_document(BAD)["verdict"] == "fail"


@given(runs(), runs())
def test_a_run_is_never_worse_than_itself(run: Run, other: Run) -> None:
    """And any document of --json is a baseline, if no name is too long."""
    names = {str(one.name) for one in run.results}
    if not names or "" in names or len(names) < len(run.results) or max(map(len, names)) > 200:
        return
    baseline = parse(json.dumps(to_document(run)).encode(), "b")
    judged = [baseline.judge(one) for one in run.results]
    reasons = [one.verdict is PASS or one.reason for one in judged]
    assert not any(one.failed for one in judged if one.verdict in (PASS, SKIP, FAIL)), reasons
    again = [baseline.judge(one) for one in other.results]
    compared_run = Run("d", "", tuple(one.name for one in again), again, baseline)
    assert (compared_run.verdict is PASS) == (not compared_run.failed)
    read(to_junit(compared_run))
    Parser().parse_text(tap(compared_run))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is empty"),
        ("{", "not JSON"),
        ("\udcff", "not JSON: not UTF-8 text, at byte 0"),
        ("9" * 5000, "not JSON: an integer of thousands of digits"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ("[]", "[] is not an object"),
        ('{"results": {}}', "{} is not a list"),
        ('{"results": []}', "results: [] is not a list with results"),
        ('{"results": [3]}', "results[0]: 3 is not an object"),
        ('{"results": [{"name": "A", "verdict": []}]}', "results[0]: verdict: [] is not one of"),
        ('{"results": [{"name": "A", "verdict": "good"}]}', "'good' is not one of pass"),
        ('{"results": [{"name": "A", "verdict": "unverified"}]}', "not the verdict of a case"),
        ('{"results": [{"name": "A", "verdict": "fail", "reason": 1}]}', "reason: 1 is not a text"),
        ('{"results": [{"name": "%s", "verdict": "pass"}]}' % ("A" * 201), "1 to 200 characters"),
        ('{"results": [%s, %s]}' % (('{"name": "A", "verdict": "pass"}',) * 2), "[1]: name: 'A'"),
    ],
)  # fmt: skip
def test_a_hostile_baseline(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "b.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as caught:
        load(str(file))
    assert str(file) in caught.value.message
    assert said in caught.value.message
    assert "rcdrv test --json" in caught.value.hint


@given(st.binary(max_size=200))
def test_any_bytes_are_a_baseline_or_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        parse(data, "b")


def test_a_baseline_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    with file.open("wb") as stream:
        stream.truncate(5 << 20)
    with pytest.raises(UsageError, match="larger than 4 MiB"):
        load(str(file))
    with pytest.raises(UsageError, match="not a regular file"):
        load("/dev/zero")
    with pytest.raises(UsageError, match="No such file") as caught:
        load("rk3589")
    assert caught.value.hint == "did you mean rk3588?"


def test_the_shipped_baselines() -> None:
    """One for each preset, with the verdicts that the preset gives (tests/sim/test_suite.py)."""
    assert set(shipped()) == set(EXPECTED)
    for name in shipped():
        cases = load(name).cases
        more = [case for case in cases if case.startswith("more_")]
        assert more == [str(case.name) for case in MORE]
        assert len(cases) == 23 + len(more)
        found = {case: tuple(one) for case, one in cases.items() if one.verdict is not PASS}
        assert {case: one for case, one in found.items() if case not in more} == EXPECTED[name]
        assert {found[case][0] for case in more if case in found} <= {"skip"}


def test_a_run_of_one_suite_misses_none_of_the_other() -> None:
    """`rcdrv test --more --baseline rk3588`: the 23 were not to be run, and are not listed."""
    planned = (CaseName("more_config", "", "ATS_TEST"),)
    missing = load("rk3588").missing(Run("here", planned=planned))
    assert missing
    assert all(name.startswith("more_") for name in missing)
    assert "more_config.ATS_TEST" not in missing
