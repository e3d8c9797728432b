"""Which parts of a BAR are tested."""

from __future__ import annotations

import pytest

from rcdrv.epf_test.bars import CHUNK, WHOLE, chunks, sampled


@pytest.mark.parametrize("size", [4, CHUNK, WHOLE])
def test_all_of_it_up_to_a_limit(size: int) -> None:
    assert [*sampled(size)] == [*chunks(size)]


@pytest.mark.parametrize("size", [2 * WHOLE, 1 << 46, 1 << 62])
def test_parts_of_a_larger_one(size: int) -> None:
    """Every address line is 1 in one of them; none overlaps another, and none reaches beyond."""
    parts = [*sampled(size)]
    starts = {offset for offset, _ in parts}
    assert {0, *(1 << bit for bit in range(16, size.bit_length() - 1)), size - CHUNK} == starts
    ends = [offset + length for offset, length in parts]
    assert all(end <= start for end, (start, _) in zip(ends, parts[1:], strict=False))
    assert ends[-1] == size
