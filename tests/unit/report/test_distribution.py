"""Percentiles are what the definition says, and a rounded distribution is close to its origin."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.results.distribution import PERCENTILES, Distribution

samples = st.lists(st.integers(0, 10**9), min_size=1, max_size=300) | st.lists(
    st.integers(0, 3), min_size=1, max_size=2100
)


@given(samples=samples, percent=st.sampled_from((*PERCENTILES, 100.0, 0.001, 33.3)))
def test_a_percentile_is_the_nearest_rank_of_the_sorted_list(
    samples: list[int], percent: float
) -> None:
    rank = ceil(Fraction(str(percent)) / 100 * len(samples))
    assert Distribution.of(samples).percentile(percent) == sorted(samples)[rank - 1]


@given(samples=samples)
def test_count_and_extremes_are_those_of_the_list(samples: list[int]) -> None:
    found = Distribution.of(samples)
    assert (found.count, found.minimum, found.maximum) == (len(samples), min(samples), max(samples))
    assert found.mean == pytest.approx(sum(samples) / len(samples))


@given(samples=samples, digits=st.integers(1, 5))
def test_a_histogram_keeps_every_sample_and_rounds_by_half_a_unit_at_most(
    samples: list[int], digits: int
) -> None:
    rounded = [
        value for value, times in Distribution.of(samples).histogram(digits) for _ in range(times)
    ]
    assert len(rounded) == len(samples)
    for exact, other in zip(sorted(samples), rounded, strict=True):
        assert abs(exact - other) <= 0.5 * 10 ** max(0, len(str(exact)) - digits)


@given(samples=samples)
def test_a_histogram_of_all_digits_is_the_distribution_itself(samples: list[int]) -> None:
    found = Distribution.of(samples)
    again = Distribution(found.histogram(12))
    assert again.histogram(12) == found.histogram(12)
    assert again.percentile(99) == found.percentile(99)


@pytest.mark.parametrize("counts", [[], [(5, 0)], [(-1, 1)], [(1, 2), (2, -1)]])
def test_what_is_no_distribution_is_refused(counts: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="durations"):
        Distribution(counts)


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_what_is_no_percentile_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        Distribution.of([1]).percentile(percent)
