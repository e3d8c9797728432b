"""Differences are found where they are, and the usual faults are recognised."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.epf_test.bars import offset_pattern
from rcdrv.epf_test.mismatch import compare

PATTERN = offset_pattern(2, 0, 1 << 14)


@given(data=st.binary(max_size=300))
def test_equal_data_is_no_mismatch(data: bytes) -> None:
    assert compare(data, bytes(data)) is None


@given(
    data=st.binary(min_size=1, max_size=300),
    flips=st.dictionaries(st.integers(0, 299), st.integers(1, 255), min_size=1),
    base=st.integers(0, 1 << 40),
)
def test_the_first_word_and_the_count_are_right(
    data: bytes, flips: dict[int, int], base: int
) -> None:
    wrong = bytearray(data)
    for index, flip in flips.items():
        wrong[index % len(data)] ^= flip
    places = [index for index in range(len(data)) if wrong[index] != data[index]]
    mismatch = compare(data, bytes(wrong), base=base)
    if not places:
        assert mismatch is None
        return
    assert mismatch is not None
    first = places[0] // 4 * 4
    assert mismatch.offset == base + first
    assert mismatch.expected == int.from_bytes(data[first : first + 4], "little")
    assert mismatch.got == int.from_bytes(wrong[first : first + 4], "little")
    assert (mismatch.differing, mismatch.total) == (len(places), len(data))
    assert f"{len(places)} of {len(data)} bytes differ" in str(mismatch)


def words(data: bytes, change: int) -> bytes:
    return b"".join(
        (int.from_bytes(data[index : index + 4], "little") & change).to_bytes(4, "little")
        for index in range(0, len(data), 4)
    )


@pytest.mark.parametrize(
    ("got", "guess"),
    [
        (b"\xff" * len(PATTERN), "all ones"),
        (PATTERN[:4096] + bytes(len(PATTERN) - 4096), "not stored"),
        (PATTERN[len(PATTERN) // 2 :] + PATTERN[: len(PATTERN) // 2], "halves are swapped"),
        (offset_pattern(4, 0, len(PATTERN)), "BAR4"),
        (offset_pattern(2, 4096, len(PATTERN)), "0x1000 bytes further on"),
        (words(PATTERN, ~(1 << 5) & 0xFFFFFFFF), "bit 5 of each 32-bit word stuck at 0"),
        (
            b"".join(PATTERN[index : index + 4][::-1] for index in range(0, len(PATTERN), 4)),
            "byte order of 32-bit words",
        ),
    ],
)
def test_the_usual_faults_are_recognised(got: bytes, guess: str) -> None:
    mismatch = compare(PATTERN, got, others=lambda: {"BAR4": offset_pattern(4, 0, len(PATTERN))})
    assert mismatch is not None
    assert guess in mismatch.guess


NOISE = random.Random(1).randbytes(1 << 14)


def reordered(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> bytes:
    return change(np.frombuffer(NOISE, np.uint8)).tobytes()


@pytest.mark.parametrize(
    ("got", "guess"),
    [
        (reordered(lambda d: d.reshape(-1, 8)[:, ::-1]), "the byte order of 64-bit words is"),
        (reordered(lambda d: d.reshape(-1, 2, 4)[:, ::-1]), "neighbouring 32-bit words are"),
        (reordered(lambda d: d.reshape(2, -1, 4).swapaxes(0, 1)), "interleaved by 32-bit words"),
        (reordered(lambda d: np.tile(d[: 1 << 13], 2)), "address bit 13 stuck at 0"),
        (reordered(lambda d: np.tile(d[1 << 12 : 1 << 13], 4)[: 1 << 14]), ""),
        (reordered(lambda d: np.repeat(d.reshape(-1, 2, 16)[:, 1], 2, 0)), "bit 4 stuck at 1"),
        (reordered(lambda d: np.roll(d, 4)), "0x4 bytes further back"),
        (b"\x55" * 4 + NOISE[:-4], "the data of 0x4 bytes further back"),
        (NOISE[12:] + b"\x55" * 12, "the data of 0xc bytes further on"),
        (reordered(lambda d: d.view("<u4") << 3 | d.view("<u4") >> 29), "rotated left by 3 bits"),
        (reordered(lambda d: ~d), "every bit is inverted"),
        (reordered(lambda d: d.view("<u4") | 0x900), "bits 8, 11 of each 32-bit word stuck at 1"),
        (reordered(lambda d: d * np.tile([1, 1, 1, 1, 1, 1, 1, 3], len(d) // 8).astype("u1")),
         "only byte 7 of each 8"),
    ],
)  # fmt: skip
def test_noise_that_is_damaged(got: bytes, guess: str) -> None:
    mismatch = compare(NOISE, got)
    assert mismatch is not None
    assert guess in mismatch.guess
    assert guess or not mismatch.guess


def test_two_wrong_bytes_are_no_lost_lanes() -> None:
    mismatch = compare(NOISE, NOISE[:9] + bytes([NOISE[9] ^ 0x5A]) + NOISE[10:])
    assert mismatch is not None
    assert (mismatch.differing, mismatch.guess) == (1, "")


def test_without_numpy_place_and_extent_are_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdrv.epf_test.mismatch.find_spec", lambda _name: None)
    mismatch = compare(NOISE, NOISE[:8] + b"\xff" * 8 + NOISE[16:])
    assert mismatch is not None
    assert (mismatch.offset, mismatch.differing, mismatch.guess) == (8, 8, "")


def test_noise_suggests_nothing() -> None:
    mismatch = compare(PATTERN, os.urandom(len(PATTERN)))
    assert mismatch is not None
    assert mismatch.guess == ""


def test_the_offset_pattern_is_the_kernels() -> None:
    # bar_test_pattern_with_offset() of drivers/misc/pci_endpoint_test.c
    data = offset_pattern(3, 0x1000000 - 4, 8)
    assert data == (0xA3FFFFFC).to_bytes(4, "little") + (0xA3000000).to_bytes(4, "little")
