"""What the cases of the second suite share: their description, and how they pass on a failure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rcdrv.epf_test.bars import Progress as Progress
from rcdrv.epf_test.suite import Body, Case
from rcdrv.errors import EndpointError
from rcdrv.results.result import CaseName
from rcdrv.verdict import NotPassed, Reason
from rcdrv.verdict import skip as skip


def case(
    name: str, proves: str, *, risk: str = "nothing", needs: str = "nothing"
) -> Callable[[Body], Case]:
    """Return a decorator that makes a body a case.

    :param name: ``GROUP.TEST`` or ``GROUP.VARIANT.TEST``
    """
    return lambda body: Case(CaseName.parse(f"more_{name}_TEST"), body, proves, risk, needs)


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
