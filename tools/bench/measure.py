"""Comparisons that tolerate a busy machine: contestants take turns, and the best rounds count.

Other load can only add to a time, so the minimum of many rounds is the best estimate of a cost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from timeit import Timer
from types import FrameType
from typing import Any, NamedTuple


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run each contestant once per round; return their figures, without those of a first round."""
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, rounds):
        for name, contestant in contestants.items():
            figure = contestant()
            if number >= 0:
                figures[name].append(figure)
    return figures


def statement(code: str, names: Mapping[str, Any], count: int) -> Callable[[], float]:
    """Return a function that runs ``code`` ``count`` times, and returns nanoseconds per run.

    Each pass of the loop runs it 16 times, to reduce the cost of the loop.

    :param names: local variables of the code
    """
    passes = max(1, count // 16)
    locals_ = "; ".join(f"{name} = _{name}" for name in names) or "pass"
    timer = Timer(
        "\n".join([code] * 16),
        locals_,
        globals={f"_{name}": value for name, value in names.items()},
    )
    return lambda: timer.timeit(passes) / passes / 16 * 1e9


def calls(function: Callable[[], object]) -> int:
    """Return how many Python functions a call of ``function`` calls, in this thread."""
    found = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal found
        found += event == "call"

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


class Kind(Enum):
    """Comparison of two costs. Lower is better."""

    TIMES = "at most {:g} x"
    """ours / theirs"""
    MORE = "at most +{:g} {}"
    """ours - theirs"""
    RATE = "at least {:g} of its rate"
    """theirs / ours"""


class Target(NamedTuple):
    """Target of a row."""

    kind: Kind
    limit: float

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.kind is Kind.RATE else figure <= self.limit

    def text(self, unit: str) -> str:
        return self.kind.value.format(self.limit, unit)


NO_SLOWER = Target(Kind.TIMES, 1.0)


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: float
    unit: str
    against: str
    theirs: float
    figure: float
    """Figure that :attr:`target` limits; ours / theirs without a target."""
    target: Target | None
    because: str
    """Reason for a missed target, by what the same run measured."""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.target.met(self.figure) else "not met"


def compared(
    what: str,
    unit: str,
    ours: Sequence[float],
    against: str,
    theirs: Sequence[float],
    target: Target | None = None,
    because: str = "",
) -> Row:
    """Return a row that compares the best rounds of two contestants."""
    mine, other = min(ours), min(theirs)
    figure = {
        Kind.TIMES: mine / other,
        Kind.MORE: mine - other,
        Kind.RATE: other / mine,
    }[Kind.TIMES if target is None else target.kind]
    return Row(what, mine, unit, against, other, figure, target, because)


class Cost(NamedTuple):
    """One point of a curve of costs."""

    what: str
    size: int
    cost: float
    unit: str
