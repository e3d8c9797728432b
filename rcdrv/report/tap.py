"""TAP version 13, in the format of the kernel's kselftest harness.

Tools that read the kernel's ``pci_endpoint_test`` read this too: every line has the harness's
format. Further information stands where the harness prints a test's log lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TextIO

from rcdrv.report.text import details, headline, one_line
from rcdrv.results.baseline import differences
from rcdrv.results.observer import Observer
from rcdrv.results.result import CaseName, CaseResult, Change, Run
from rcdrv.verdict import Verdict


class Tap(Observer):
    """Write line by line during the run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._number = 0

    def start(self, run: Run) -> None:
        # Set by the kernel's runner of several tests, which prints the version itself.
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
        # Lines of several devices are mixed, so those that name the test name the device too.
        test = one_line(f"{result.name.device} {result.name.test}".lstrip())
        passed = not (result.failed or result.known_failure)
        skipped = result.verdict is Verdict.SKIP and passed
        directive = ""
        if result.known_failure:
            # TAP's directive for a known failure, which readers do not count as one.
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
        # The harness has no word for a lost device or a host that is not ready: all is FAIL.
        failed = sum(one.failed for one in run.results)
        passed = done - skipped - known - failed
        complete = not run.not_run
        state = "PASSED" if complete and not failed else "FAILED"
        self._comment(f"{state}: {done - failed} / {len(run.planned)} tests passed.")
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
    """Return whether it passes where the baseline has a failure."""
    return (
        result.verdict is Verdict.PASS
        and result.change is Change.BETTER
        and not result.before.startswith(Verdict.SKIP.value)
    )


def _escaped(text: str) -> str:
    """Escape text for a test line, where ``#`` begins a directive.

    TAP 14's ``\\#`` does not help: parsers of TAP 13, such as the kernel's, see the ``#``.
    """
    return one_line(text).replace("\\", "\\\\").replace("#", "\\x23")


def list_text(names: Iterable[CaseName]) -> str:
    """Return the table of the harness's ``-l``: each fixture's variants and tests."""
    fixtures: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for name in names:
        variants, tests = fixtures.setdefault(name.fixture, ({}, {}))
        variants[name.variant] = None
        tests[name.test] = None
    # The harness always lists a fixture "global", for tests without one.
    lines = [_row("# FIXTURE", "VARIANT", "TEST"), _row("global", "", "")]
    for fixture, (variants, tests) in fixtures.items():
        lines.append("-" * 80)
        columns = [[fixture], list(variants), list(tests)]
        for index in range(max(map(len, columns))):
            lines.append(_row(*(c[index] if index < len(c) else "" for c in columns)))
    return "\n".join(lines) + "\n"


def _row(fixture: str, variant: str, test: str) -> str:
    return f"{fixture:<20} {variant:<25} {test}"
