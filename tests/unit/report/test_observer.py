"""Several observers at once, and what they cost to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rcdrv.results.observer import Observer, Observers
from rcdrv.results.result import CaseName, CaseResult, Run

from .samples import a_run, play


class Recorder(Observer):
    """Writes down what it was told."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def start(self, run: Run) -> None:
        self.heard.append(run)

    def case_started(self, name: CaseName) -> None:
        self.heard.append(name)

    def progress(self, name: CaseName, done: int, total: int, what: str) -> None:
        self.heard.append((name, done, total, what))

    def case_finished(self, result: CaseResult) -> None:
        self.heard.append(result)

    def finish(self, run: Run) -> None:
        self.heard.append("finish")


class Broken(Observer):
    def finish(self, run: Run) -> None:
        raise OSError("disk full")


def test_all_hear_the_same() -> None:
    alone, first, second = Recorder(), Recorder(), Recorder()
    play(a_run(), alone)
    play(a_run(), Observers(first, Observer(), second))
    assert first.heard == second.heard == alone.heard


def test_all_are_finished_though_one_fails() -> None:
    first, last = Recorder(), Recorder()
    with pytest.raises(OSError, match="disk full"):
        Observers(first, Broken(), last).finish(a_run())
    assert first.heard == last.heard == ["finish"]


def test_rich_is_imported_only_for_a_terminal() -> None:
    imports = "rcdrv.results.observer, rcdrv.report.tap, rcdrv.report.junit, rcdrv.report.terminal"
    code = f"import sys, {imports}; sys.exit(2 if 'rich' in sys.modules else 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
