"""The result of one test case, and of a whole run."""

from __future__ import annotations

from dataclasses import dataclass, field

from rcdrv.verdict import Reason, Verdict


@dataclass(frozen=True)
class CaseName:
    """A test's name, in the three parts that the kernel's kselftest harness gives it."""

    fixture: str
    variant: str
    """Empty where the fixture has no variants."""
    test: str

    def __str__(self) -> str:
        return ".".join(part for part in (self.fixture, self.variant, self.test) if part)


@dataclass(frozen=True)
class CaseResult:
    """Outcome of one case."""

    name: CaseName
    verdict: Verdict
    """Never UNVERIFIED."""
    reason: Reason | None = None
    """None when it passed."""
    message: str = ""
    """Why it did not pass; or a note on a pass, such as ``32 vectors``."""
    hint: str = ""
    """Next thing to check; empty when it passed."""
    diagnostics: tuple[str, ...] = ()
    """More lines, such as where data differed or which AER counters rose."""
    seconds: float = 0.0


@dataclass
class Run:
    """All results of a run, in order."""

    device: str
    """The address of the endpoint, as the user named it."""
    description: str = ""
    """The endpoint: part, ID, kind of interrupts."""
    planned: tuple[CaseName, ...] = ()
    results: list[CaseResult] = field(default_factory=list)

    def count(self, *verdicts: Verdict) -> int:
        return sum(result.verdict in verdicts for result in self.results)

    @property
    def failed(self) -> bool:
        """Whether anything is neither passed nor skipped."""
        return any(result.verdict not in (Verdict.PASS, Verdict.SKIP) for result in self.results)
