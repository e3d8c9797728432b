"""What ``ring()`` and ``test()`` of :class:`~rcdrv.api.Endpoint` return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcdrv.epf_test.outcome import ring_document
from rcdrv.epf_test.ring import Ring, RingReport
from rcdrv.errors import DeviceLost, RcdrvError
from rcdrv.results.document import to_document
from rcdrv.results.outcome import Result
from rcdrv.results.result import CaseResult, Run
from rcdrv.verdict import NotPassed, Verdict


class RingResult(Result):
    """Outcome of :meth:`~rcdrv.api.Endpoint.ring`."""

    def __init__(self, address: str, report: RingReport, finding: RcdrvError | None) -> None:
        super().__init__(finding)
        self._address = address
        self._report = report
        self.location = report.location
        """Where the doorbell was rung; None if it was not rung."""
        self.irq = report.irq
        """``msi``, ``msix``, ``intx`` or ``poll``; ``none`` if no interrupt was set up."""
        self.rings: Sequence[Ring] = tuple(report.rings)
        """Every ring, in order."""
        self.stray_interrupts = report.stray
        """Interrupts beyond one for each ring or command."""
        self.left_enabled = report.left_enabled
        """The endpoint confirmed no DISABLE: its doorbell may still be enabled."""

    @property
    def latencies_ns(self) -> list[int]:
        """Nanoseconds from write to acknowledgement, of each acknowledged ring."""
        return [
            ring.latency_ns
            for ring in self.rings
            if ring.acknowledged and ring.latency_ns is not None
        ]

    def document(self) -> dict[str, Any]:
        return ring_document(self._address, self._report, self._finding)


class SuiteResult(Result):
    """Outcome of a test run. It passed if all cases ran and none failed; a skip is no failure."""

    def __init__(self, run: Run, lost: DeviceLost | None = None) -> None:
        super().__init__(lost)
        self.run = run
        """Names and results as in the reports."""
        self.lost = lost
        """Loss of the device outside of a case, which ended the run; None otherwise."""
        if lost is None:
            self.verdict = run.verdict
        failed = self.failed
        if failed:
            first = failed[0]
            self.reason, self.hint = first.reason, first.hint
            self.message = (
                f"{len(failed)} of {len(run.planned)} cases did not pass, first {first.name}:"
                f" {first.message}"
            )

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
