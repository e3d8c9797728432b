"""What a case of the second suite says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.suite import Case
from rcdrv.results.result import CaseName
from rcdrv.verdict import NotPassed, Reason, Verdict

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MoreCase(Case):
    """One case; its summary says what it proves."""

    risk: str
    """What it may do to a board."""
    needs: str
    """What it cannot be run without; else it is a skip."""


def case(
    group: str,
    test: str,
    body: Callable[[EpfTest, Progress], str],
    proves: str,
    *,
    variant: str = "",
    risk: str = "nothing",
    needs: str = "nothing",
) -> MoreCase:
    """A case of ``more_GROUP``, which begins with the interrupts that the user or CAPS says."""

    def run(driver: EpfTest, progress: Progress) -> str:
        driver.use_irq(driver.irq_choice)
        return body(driver, progress)

    return MoreCase(CaseName(f"more_{group}", variant, f"{test}_TEST"), run, proves, risk, needs)


def skip(reason: Reason, message: str) -> NotPassed:
    """The verdict where something that the case needs is not there."""
    return NotPassed(reason, message, verdict=Verdict.SKIP)
