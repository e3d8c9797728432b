"""Ratios that a busy machine distorts little: contestants take turns, and the best rounds decide.

What else runs on the machine can only add to a time, so the least of many is the nearest to what
the thing itself costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from timeit import Timer
from typing import Any, NamedTuple


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each measured, once a round; a first round is not counted."""
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, rounds):
        for name, contestant in contestants.items():
            figure = contestant()
            if number >= 0:
                figures[name].append(figure)
    return figures


def statement(code: str, names: Mapping[str, Any], count: int) -> Callable[[], float]:
    """Something that runs ``code`` ``count`` times; nanoseconds for each.

    Sixteen go in each pass of the loop, so that the loop is not what is measured.

    :param names: the local variables that the code uses
    """
    passes = max(1, count // 16)
    locals_ = "; ".join(f"{name} = _{name}" for name in names) or "pass"
    timer = Timer(
        "\n".join([code] * 16),
        locals_,
        globals={f"_{name}": value for name, value in names.items()},
    )
    return lambda: timer.timeit(passes) / passes / 16 * 1e9


class Kind(Enum):
    """How ours is held against theirs. All figures are costs: less is better."""

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
    """What :attr:`target` is about; without one, ours / theirs."""
    target: Target | None
    because: str
    """Where the target is not met, or may not be: why."""

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
    """A row of two contestants that took turns, by the best round of each."""
    mine, other = min(ours), min(theirs)
    figure = {
        Kind.TIMES: mine / other,
        Kind.MORE: mine - other,
        Kind.RATE: other / mine,
    }[Kind.TIMES if target is None else target.kind]
    return Row(what, mine, unit, against, other, figure, target, because)


class Cost(NamedTuple):
    """One point of how a cost grows."""

    what: str
    size: int
    cost: float
    unit: str
