"""Result of one test case, and of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from rcdrv.verdict import Reason, Verdict


@dataclass(frozen=True)
class CaseName:
    """Name of a test, in the three parts of the kernel's kselftest harness."""

    fixture: str
    variant: str
    """Empty if the fixture has no variants."""
    test: str
    device: str = ""
    """Where several are tested in one run: the one that the case ran on."""

    @classmethod
    def parse(cls, name: str) -> CaseName:
        """Return the name of ``FIXTURE.TEST`` or ``FIXTURE.VARIANT.TEST``."""
        fixture, *variant, test = name.split(".")
        return cls(fixture, "".join(variant), test)

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        name = ".".join(part for part in (self.fixture, self.variant, self.test) if part)
        return f"{self.device} {name}" if self.device else name


class Change(str, Enum):
    """Result of a case, compared with the baseline's."""

    SAME = "same"
    BETTER = "better"
    WORSE = "worse"
    NEW = "new"
    """The baseline does not have the case."""


@dataclass(frozen=True)
class CaseResult:
    name: CaseName
    verdict: Verdict
    """Any but UNVERIFIED."""
    reason: Reason | None = None
    """None for a pass."""
    message: str = ""
    """Cause of the verdict; or a note on a pass, such as ``32 vectors``."""
    hint: str = ""
    """Next thing to check; empty for a pass."""
    diagnostics: tuple[str, ...] = ()
    """More lines, such as differences of data or AER counters that rose."""
    seconds: float = 0.0
    change: Change | None = None
    """None without a baseline."""
    before: str = ""
    """Verdict and reason in the baseline, such as ``fail irq-lost``; empty if it has none."""

    @property
    def outcome(self) -> str:
        """``pass``, or verdict and reason: ``fail irq-lost``."""
        return f"{self.verdict.value} {self.reason.value if self.reason else ''}".rstrip()

    @property
    def failed(self) -> bool:
        """Whether it neither passed, nor was skipped, nor failed as in the baseline."""
        if self.verdict in (Verdict.LOST, Verdict.ERROR) or self.change is Change.WORSE:
            return True
        return self.verdict is Verdict.FAIL and self.change in (None, Change.NEW)

    @property
    def known_failure(self) -> bool:
        """Whether it failed as in the baseline: expected, not a failure of the run."""
        return self.verdict is Verdict.FAIL and self.change is Change.SAME


_RANK = {Verdict.PASS: 0, Verdict.SKIP: 1, Verdict.FAIL: 2, Verdict.ERROR: 3, Verdict.LOST: 3}


CASE_VERDICTS = (Verdict.PASS, Verdict.FAIL, Verdict.SKIP, Verdict.LOST, Verdict.ERROR)
"""Possible verdicts of a case, in the order of reports."""


class Before(NamedTuple):
    """Result of a case in the baseline."""

    verdict: Verdict
    reason: str
    """Empty for a pass."""

    def __str__(self) -> str:
        return f"{self.verdict.value} {self.reason}".rstrip()


@dataclass(frozen=True)
class Baseline:
    """Results of an earlier run, by case."""

    name: str
    cases: Mapping[str, Before]

    def judge(self, result: CaseResult) -> CaseResult:
        """Return the result with its change since the baseline.

        Another reason for the same verdict is worse: it is not the known failure.
        """
        before = self.cases.get(str(result.name))
        if before is None:
            return replace(result, change=Change.NEW)
        reason = result.reason.value if result.reason else ""
        now, then = _RANK[result.verdict], _RANK[before.verdict]
        if now < then:
            change = Change.BETTER
        elif now > then or (result.verdict is not Verdict.PASS and reason != before.reason):
            change = Change.WORSE
        else:
            change = Change.SAME
        return replace(result, change=change, before=str(before))

    def missing(self, run: Run) -> tuple[str, ...]:
        """Return the cases of the baseline that this run does not plan.

        Those of the other suite are not missing: a run is of one.
        """
        planned = {str(name) for name in run.planned}
        suites = {_is_more(name) for name in planned}
        return tuple(
            name for name in self.cases if name not in planned and _is_more(name) in suites
        )


def _is_more(name: str) -> bool:
    """Whether a case is of the second suite (:mod:`rcdrv.epf_test.more`)."""
    return name.startswith("more_")


@dataclass
class Run:
    """All results of a run, in order."""

    device: str
    """Address of the endpoint, as given."""
    description: str = ""
    """Part, ID and interrupt kind of the endpoint."""
    planned: tuple[CaseName, ...] = ()
    results: list[CaseResult] = field(default_factory=list)
    baseline: Baseline | None = None
    """Earlier run to compare with."""

    def count(self, *verdicts: Verdict) -> int:
        return sum(result.verdict in verdicts for result in self.results)

    @property
    def failed(self) -> bool:
        """Whether any case failed; with a baseline, any that is worse."""
        return any(result.failed for result in self.results)

    @property
    def not_run(self) -> tuple[CaseName, ...]:
        """The planned cases without a result: the run ended early."""
        done = {result.name for result in self.results}
        return tuple(name for name in self.planned if name not in done)

    @property
    def totals(self) -> dict[Verdict, int]:
        return {verdict: self.count(verdict) for verdict in CASE_VERDICTS}

    @property
    def verdict(self) -> Verdict:
        """PASS if no case failed (:attr:`CaseResult.failed`) and none is missing; else the worst.

        A skipped case is not a failure, as in the kernel's harness. A missing one is an ERROR.
        """
        if self.count(Verdict.LOST):
            return Verdict.LOST
        if self.count(Verdict.ERROR) or self.not_run:
            return Verdict.ERROR
        return Verdict.FAIL if self.failed else Verdict.PASS
