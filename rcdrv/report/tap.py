"""TAP version 13, in the words of the kernel's kselftest harness.

Whoever reads the kernel's ``pci_endpoint_test`` reads this too, so every line has the harness's
format. What we know beyond it stands where the harness prints the log lines of a test.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TextIO

from rcdrv.report.text import details, headline, one_line
from rcdrv.results.baseline import differences
from rcdrv.results.observer import Observer
from rcdrv.results.result import CaseName, CaseResult, Change, Run
from rcdrv.results.summary import not_run
from rcdrv.verdict import Verdict


class Tap(Observer):
    """Writes line by line, as the run goes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._number = 0

    def start(self, run: Run) -> None:
        # The kernel's runner of many tests sets this, and has printed the version itself.
        if "KSFT_TAP_LEVEL" not in os.environ:
            self._line("TAP version 13")
        self._line(f"1..{len(run.planned)}")
        cases = {(name.fixture, name.variant) for name in run.planned}
        self._comment(f"Starting {len(run.planned)} tests from {len(cases)} test cases.")

    def case_started(self, name: CaseName) -> None:
        self._comment(f" RUN           {_escaped(str(name))} ...")

    def case_finished(self, result: CaseResult) -> None:
        self._number += 1
        name = _escaped(str(result.name))
        test = one_line(result.name.test)
        passed = not (result.failed or result.known_failure)
        skipped = result.verdict is Verdict.SKIP and passed
        directive = ""
        if result.known_failure:
            # What TAP calls a test that is known to fail; its readers count it as no failure.
            reason = f"expected failure: {_escaped(headline(result))}"
            directive = f" # TODO {reason}"
            self._comment(f"     XFAIL     {reason}")
        elif skipped:
            reason = _escaped(headline(result)) or "unknown"
            directive = f" # SKIP {reason}"
            self._comment(f"     SKIP      {reason}")
        elif headline(result):
            self._comment(f"{test}: {headline(result)}")
        for line in details(result):
            self._comment(f"{test}: {line}")
        if result.failed:
            self._comment(f"{test}: Test failed")
        word = "FAIL" if result.failed else "OK" if passed else "XFAIL"
        self._comment(f"        {word:>5}  {name}")
        self._line(f"{'ok' if passed else 'not ok'} {self._number} {name}{directive}")

    def finish(self, run: Run) -> None:
        done = len(run.results)
        skipped = sum(one.verdict is Verdict.SKIP and not one.failed for one in run.results)
        known = sum(one.known_failure for one in run.results)
        fixed = sum(_unexpected_pass(one) for one in run.results)
        # The harness has no words for a lost device or a host that is not ready: all is FAIL.
        failed = sum(one.failed for one in run.results)
        passed = done - skipped - known - failed
        complete = not not_run(run)
        state = "PASSED" if complete and not failed else "FAILED"
        self._comment(f"{state}: {done - failed} / {done} tests passed.")
        if skipped:
            self._comment(
                f"{skipped} skipped test(s) detected."
                " Consider enabling relevant config options to improve coverage."
            )
        if not complete:
            self._comment(f"Planned tests != run tests ({len(run.planned)} != {done})")
        for line in differences(run):
            self._comment(_escaped(line))
        self._comment(
            f"Totals: pass:{passed - fixed} fail:{failed} xfail:{known} xpass:{fixed}"
            f" skip:{skipped} error:0"
        )

    def _comment(self, text: str) -> None:
        self._line(f"# {text}")

    def _line(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def _unexpected_pass(result: CaseResult) -> bool:
    """Whether it passes although the baseline has a failure."""
    return (
        result.verdict is Verdict.PASS
        and result.change is Change.BETTER
        and not result.before.startswith(Verdict.SKIP.value)
    )


def _escaped(text: str) -> str:
    """``text`` for a test line, where ``#`` begins a directive.

    TAP 14's ``\\#`` would not do: parsers of TAP 13, the kernel's among them, see the ``#``.
    """
    return one_line(text).replace("\\", "\\\\").replace("#", "\\x23")


def list_text(names: Iterable[CaseName]) -> str:
    """The table that ``-l`` of the harness prints: each fixture's variants beside its tests."""
    fixtures: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for name in names:
        variants, tests = fixtures.setdefault(name.fixture, ({}, {}))
        variants[name.variant] = None
        tests[name.test] = None
    # The harness always has a fixture "global", for tests without one. Here as there it is empty.
    lines = [_row("# FIXTURE", "VARIANT", "TEST"), _row("global", "", "")]
    for fixture, (variants, tests) in fixtures.items():
        lines.append("-" * 80)
        columns = [[fixture], list(variants), list(tests)]
        for index in range(max(map(len, columns))):
            lines.append(_row(*(c[index] if index < len(c) else "" for c in columns)))
    return "\n".join(lines) + "\n"


def _row(fixture: str, variant: str, test: str) -> str:
    return f"{fixture:<20} {variant:<25} {test}"
