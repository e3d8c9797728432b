"""Totals and overall verdict of a run."""

from __future__ import annotations

from rcdrv.results.result import CaseName, Run
from rcdrv.verdict import Verdict

CASE_VERDICTS = (Verdict.PASS, Verdict.FAIL, Verdict.SKIP, Verdict.LOST, Verdict.ERROR)
"""Possible verdicts of a case, in the order of reports."""


def not_run(run: Run) -> tuple[CaseName, ...]:
    """Return the planned cases without a result: the run ended early."""
    done = {result.name for result in run.results}
    return tuple(name for name in run.planned if name not in done)


def totals(run: Run) -> dict[Verdict, int]:
    return {verdict: run.count(verdict) for verdict in CASE_VERDICTS}


def overall(run: Run) -> Verdict:
    """PASS if no case failed (:attr:`CaseResult.failed`) and none is missing; else the worst.

    A skipped case is not a failure, as in the kernel's harness. A missing one is an ERROR.
    """
    count = totals(run)
    if count[Verdict.LOST]:
        return Verdict.LOST
    if count[Verdict.ERROR] or not_run(run):
        return Verdict.ERROR
    if run.failed:
        return Verdict.FAIL
    return Verdict.PASS
