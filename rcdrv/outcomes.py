"""Return types of ``ring()``, ``test()`` and ``check()`` of :class:`~rcdrv.api.Endpoint`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rcdrv.epf_test.doorbell import Location
from rcdrv.epf_test.outcome import ring_document
from rcdrv.epf_test.ring import Ring, RingReport
from rcdrv.errors import DeviceLost, RcdrvError
from rcdrv.results.document import to_document
from rcdrv.results.result import CaseResult, Run
from rcdrv.verdict import NotPassed, Reason, Verdict, classify

if TYPE_CHECKING:
    from rcdrv.epf_test.check import Check, LayerResult

ResultT = TypeVar("ResultT", bound="Result")


class Result(ABC):
    """Outcome of an operation."""

    verdict: Verdict
    reason: Reason | None
    """None for a pass."""
    message: str
    """Cause of the verdict, in a sentence."""
    hint: str
    """Next thing to check."""

    @property
    def passed(self) -> bool:
        """Whether the verdict is ``pass``; ``skip`` and ``unverified`` are not."""
        return self.verdict is Verdict.PASS

    @abstractmethod
    def check(self: ResultT) -> ResultT:
        """Return self if the verdict is pass or unverified.

        :raises NotPassed: failed or skipped; see its ``verdict``
        :raises DeviceLost: the device was lost
        """

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Return the JSON document that the command prints and ``rcdrv report`` reads."""

    def __repr__(self) -> str:
        parts = [self.verdict.value, *([self.reason.value] if self.reason else [])]
        said = f": {self.message}" if self.message else ""
        return f"<rcdrv.{type(self).__name__} {' '.join(parts)}{said}>"


class RingResult(Result):
    """Outcome of :meth:`~rcdrv.api.Endpoint.ring`."""

    def __init__(self, address: str, report: RingReport, finding: RcdrvError | None) -> None:
        self._address = address
        self._report = report
        self._finding = finding
        self.verdict, self.reason = classify(finding)
        self.message = "" if finding is None else finding.message
        self.hint = "" if finding is None else finding.hint

    @property
    def location(self) -> Location | None:
        """Where the doorbell was rung; None if it was not rung."""
        return self._report.location

    @property
    def irq(self) -> str:
        """``msi``, ``msix``, ``intx`` or ``poll``; ``none`` if no interrupt was set up."""
        return self._report.irq

    @property
    def rings(self) -> Sequence[Ring]:
        """Every ring, in order."""
        return tuple(self._report.rings)

    @property
    def latencies_ns(self) -> list[int]:
        """Nanoseconds from write to acknowledgement, of each acknowledged ring."""
        return [
            ring.latency_ns
            for ring in self._report.rings
            if ring.acknowledged and ring.latency_ns is not None
        ]

    @property
    def stray_interrupts(self) -> int:
        """Interrupts beyond one for each ring or command."""
        return self._report.stray

    @property
    def left_enabled(self) -> bool:
        """The endpoint confirmed no DISABLE: its doorbell may still be enabled."""
        return self._report.left_enabled

    def check(self) -> RingResult:
        if self._finding is not None and self.verdict is not Verdict.UNVERIFIED:
            raise self._finding
        return self

    def document(self) -> dict[str, Any]:
        return ring_document(self._address, self._report, self._finding)


class SuiteResult(Result):
    """Outcome of a test run. It passed if all cases ran and none failed; a skip is no failure."""

    def __init__(self, run: Run, lost: DeviceLost | None = None) -> None:
        self.run = run
        """Names and results as in the reports."""
        self.lost = lost
        """Loss of the device outside of a case, which ended the run; None otherwise."""
        self.verdict = Verdict.LOST if lost is not None else run.verdict
        failed = self.failed
        self.reason = None
        self.message = self.hint = ""
        if failed:
            first = failed[0]
            self.reason, self.hint = first.reason, first.hint
            self.message = (
                f"{len(failed)} of {len(run.planned)} cases did not pass, first {first.name}:"
                f" {first.message}"
            )
        elif lost is not None:
            self.reason, self.message, self.hint = Reason.DEVICE_LOST, lost.message, lost.hint

    @property
    def cases(self) -> Sequence[CaseResult]:
        """The result of every case that ran, in order."""
        return tuple(self.run.results)

    @property
    def failed(self) -> Sequence[CaseResult]:
        """Results that neither passed nor were skipped; with a baseline, those worse than there."""
        return tuple(case for case in self.run.results if case.failed)

    @property
    def not_run(self) -> Sequence[str]:
        """Full names of the planned cases that did not run."""
        return tuple(str(name) for name in self.run.not_run)

    def __getitem__(self, name: str) -> CaseResult:
        for case in self.run.results:
            if str(case.name) == name:
                return case
        raise KeyError(name)

    def check(self) -> SuiteResult:
        if self.verdict is Verdict.PASS:
            return self
        if self.verdict is Verdict.LOST:
            raise self.lost or DeviceLost(self.message, hint=self.hint)
        assert self.reason is not None
        raise NotPassed(self.reason, self.message, verdict=self.verdict, hint=self.hint)

    def document(self) -> dict[str, Any]:
        return {**to_document(self.run), "verdict": self.verdict.value}


class CheckResult(Result):
    """Outcome of a bring-up check. It passed if no layer is broken; a skip is no failure."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self.layers: Sequence[LayerResult] = tuple(check.layers)
        """The layers up to the broken one."""
        self.broken = check.broken
        """The layer that is broken, or None."""
        self.side = check.side
        """On which side to look, or None."""
        self.picture = check.picture()
        """One line: how far it works."""
        self.verdict = Verdict.PASS if check.broken is None else check.broken.verdict
        self.reason = check.reason
        error = None if check.broken is None else check.broken.error
        self.message = "" if error is None else error.message
        self.hint = check.hint

    @classmethod
    def unopened(cls, address: str, error: RcdrvError) -> CheckResult:
        """Return the check of an endpoint that could not be opened for a fault of its own."""
        from rcdrv.epf_test.check import unopened

        return cls(unopened(address, error))

    def check(self) -> CheckResult:
        if self.broken is not None and self.broken.error is not None:
            raise self.broken.error
        return self

    def document(self) -> dict[str, Any]:
        return self._check.document()
