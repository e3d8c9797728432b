"""What the cases of the second suite share: their description, and how they pass on a failure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rcdrv.epf_test.bars import Progress as Progress
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.suite import Body, Case
from rcdrv.errors import EndpointError
from rcdrv.results.result import CaseName
from rcdrv.verdict import NotPassed, Reason
from rcdrv.verdict import skip as skip


@dataclass(frozen=True)
class MoreCase(Case):
    """One case; the summary is what a pass proves."""

    risk: str
    """Possible effects on a board."""
    needs: str
    """Requirements; the case is skipped without them."""


def case(
    name: str, proves: str, *, risk: str = "nothing", needs: str = "nothing"
) -> Callable[[Body], MoreCase]:
    """Make a body a case, which starts with the interrupt kind of the user or CAPS.

    :param name: ``GROUP.TEST`` or ``GROUP.VARIANT.TEST``
    """
    group, *variant, test = name.split(".")

    def made(body: Body) -> MoreCase:
        def run(driver: EpfTest, progress: Progress) -> str:
            driver.use_irq(driver.irq_choice)
            return body(driver, progress)

        full = CaseName(f"more_{group}", "".join(variant), f"{test}_TEST")
        return MoreCase(full, run, proves, risk, needs)

    return made


@contextlib.contextmanager
def during(what: str) -> Iterator[None]:
    """Begin the message of a failure with ``what``."""
    try:
        yield
    except NotPassed as error:
        error.message = f"{what}: {error.message}"
        raise


@contextlib.contextmanager
def judged(words: str) -> Iterator[None]:
    """Skip with ``words``, which name the case that judges it, where something fails."""
    try:
        yield
    except NotPassed as why:
        raise skip(why.reason, words) from None


@contextlib.contextmanager
def list_judged() -> Iterator[None]:
    """Leave a capability list that cannot be walked to CAPABILITIES_TEST."""
    try:
        yield
    except EndpointError as why:
        message = f"CAPABILITIES_TEST judges the list: {why.message}"
        raise skip(Reason.BAD_CONFIG, message) from None
