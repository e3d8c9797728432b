"""Durations as a distribution: percentiles and histogram."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
"""Percentiles shown everywhere, besides the maximum."""


class Distribution:
    """One or more durations in nanoseconds, with their counts.

    :param counts: (duration, count) pairs in any order
    :raises ValueError: empty, or a value is negative
    """

    def __init__(self, counts: Iterable[tuple[int, int]]) -> None:
        ordered = sorted((value, times) for value, times in counts if times)
        if not ordered or ordered[0][0] < 0 or any(times < 0 for _, times in ordered):
            raise ValueError("a distribution needs durations, none of them negative")
        self._values = [value for value, _ in ordered]
        self._ranks = list(accumulate(times for _, times in ordered))
        self._total = sum(value * times for value, times in ordered)

    @classmethod
    def of(cls, samples: Sequence[int]) -> Distribution:
        return cls(Counter(samples).items())

    @property
    def count(self) -> int:
        return self._ranks[-1]

    @property
    def minimum(self) -> int:
        return self._values[0]

    @property
    def maximum(self) -> int:
        return self._values[-1]

    @property
    def mean(self) -> float:
        return self._total / self.count

    def percentile(self, percent: float) -> int:
        """Return the percentile by nearest rank.

        It is one of the durations, never interpolated. With fewer than 1000 the 99.9th is the
        maximum.

        :param percent: above 0, at most 100
        """
        if not 0 < percent <= 100:
            raise ValueError(f"{percent} is not a percentile")
        # In whole thousandths of a percent, as 99.9 / 100 * 1000 is not 999 in binary.
        rank = -(-round(percent * 1000) * self.count // 100_000)
        return self._values[bisect_left(self._ranks, rank)]

    def histogram(self, digits: int = 3) -> list[tuple[int, int]]:
        """Return (duration, count), ascending, durations rounded to this many decimal digits."""
        rounded: Counter[int] = Counter()
        previous = 0
        for value, rank in zip(self._values, self._ranks, strict=True):
            rounded[_rounded(value, digits)] += rank - previous
            previous = rank
        return sorted(rounded.items())

    def tail(self) -> tuple[list[int], list[float]]:
        """Return each duration with the share of all that last at least as long."""
        before = [0, *self._ranks[:-1]]
        return self._values, [1 - rank / self.count for rank in before]


def _rounded(value: int, digits: int) -> int:
    unit: int = 10 ** max(0, len(str(value)) - digits)
    return (value + unit // 2) // unit * unit


class Histogram:
    """Durations in nanoseconds, counted as they come, each rounded to three digits.

    Its memory is bounded: 900 counters for each power of ten.
    """

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.count = 0
        """How many durations there are."""

    def add(self, value: int) -> None:
        self.counts[_rounded(value, 3)] += 1
        self.count += 1

    def distribution(self) -> Distribution | None:
        """Return what was counted so far; None if nothing was."""
        return Distribution(self.counts.items()) if self.count else None
