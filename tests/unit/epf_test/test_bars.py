"""Which parts of a BAR are tested, and in what words."""

from __future__ import annotations

import pytest

import rcdrv
from rcdrv.api import Endpoint
from rcdrv.epf_test.bars import CHUNK, WHOLE, chunks, sampled
from rcdrv.errors import UsageError
from rcdrv.function import Function
from tests.unit.epf_test import virtual


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


@pytest.mark.parametrize(
    ("fault", "width", "words", "said"),
    [("", 64, 64, 0), ("", 32, 32, 0), (",fault=wide-torn", 64, 32, 1)],
)
def test_bars_are_tested_in_the_widest_words_that_arrive(
    fault: str, width: int, words: int, said: int
) -> None:
    trace: list[str] = []
    small = "".join(f",bar{bar}.size=16K" for bar in range(6))
    with virtual.endpoint(f"generic{small}{fault}") as device:
        function = Function(device.attach(), clock=device.clock)
        function.width = width
        with Endpoint(function, trace=trace.append) as endpoint:
            for test in ("BAR_TEST", "BAR_SUBRANGE_TEST", "CONSECUTIVE_BAR_TEST"):
                endpoint.test(test).check()
            widths = [function.bar(bar).bulk for bar in range(6)]
    assert widths == [32] + [words] * 5, "of the register BAR only 4 bytes are written"
    assert sum("64-bit" in line for line in trace) == 5 * said


def test_a_width_is_32_or_64() -> None:
    with pytest.raises(UsageError, match="neither 32 nor 64"):
        rcdrv.open("sim:generic", width=16)
