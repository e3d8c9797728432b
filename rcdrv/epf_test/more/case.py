"""Description of a case of the second suite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rcdrv.epf_test.bars import Progress as Progress
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.suite import Case
from rcdrv.results.result import CaseName
from rcdrv.verdict import skip as skip


@dataclass(frozen=True)
class MoreCase(Case):
    """One case; the summary is what a pass proves."""

    risk: str
    """Possible effects on a board."""
    needs: str
    """Requirements; the case is skipped without them."""


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
    """Return a case of ``more_GROUP``, which starts with the interrupt kind of the user or CAPS."""

    def run(driver: EpfTest, progress: Progress) -> str:
        driver.use_irq(driver.irq_choice)
        return body(driver, progress)

    return MoreCase(CaseName(f"more_{group}", variant, f"{test}_TEST"), run, proves, risk, needs)
