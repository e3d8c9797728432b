"""Mappable areas, as the kernel may list them."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.device import Area
from rcdrv.errors import HostError
from rcdrv.vfio.device import sorted_areas

PAGE = mmap.PAGESIZE


def test_areas_are_sorted_and_empty_ones_dropped() -> None:
    found = [(4 * PAGE, PAGE), (2 * PAGE, 0), (0, 2 * PAGE)]
    assert sorted_areas(found, 8 * PAGE) == [Area(0, 2 * PAGE), Area(4 * PAGE, PAGE)]


def test_the_last_page_may_be_cut_by_the_end_of_the_region() -> None:
    assert sorted_areas([(PAGE, 128)], PAGE + 128) == [Area(PAGE, 128)]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([(0, 9 * PAGE)], "outside"),
        ([(8 * PAGE, PAGE)], "outside"),
        ([(0, 2**64 - PAGE), (2**64 - PAGE, PAGE)], "outside"),
        ([(0, 2 * PAGE), (PAGE, 2 * PAGE)], "overlap"),
        ([(16, PAGE)], "whole pages"),
        ([(0, 16)], "whole pages"),
    ],
)
def test_what_is_refused(found: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(HostError, match=message):
        sorted_areas(found, 8 * PAGE)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=5),
    st.integers(0, 12),
    st.sampled_from([1, PAGE // 2, PAGE]),
)
def test_what_is_accepted_can_be_mapped(
    found: list[tuple[int, int]], pages: int, unit: int
) -> None:
    size = pages * PAGE
    try:
        areas = sorted_areas([(offset * unit, length * unit) for offset, length in found], size)
    except HostError:
        return
    end = 0
    for area in areas:
        assert area.offset % PAGE == 0
        assert area.offset >= end
        end = area.offset + area.size
    assert end <= size
