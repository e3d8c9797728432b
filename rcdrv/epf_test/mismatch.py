"""What a difference between data written and data read looks like, and what may be behind it."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Mapping
from functools import reduce
from itertools import compress
from operator import and_, ne, or_, xor

from rcdrv.mmio import first_difference
from rcdrv.record import record

_PAGE = 4096


@record
class Mismatch:
    """One comparison that failed."""

    offset: int
    """Bytes from the start of the buffer or BAR to the first 32-bit word that differs."""
    expected: int
    """That word, little endian (fewer bytes at the very end)."""
    got: int
    differing: int
    """How many bytes differ, of ``total``."""
    total: int
    guess: str
    """What the pattern suggests; empty when it suggests nothing."""

    def __str__(self) -> str:
        text = (
            f"at {self.offset:#x}: expected {self.expected:#010x}, got {self.got:#010x};"
            f" {self.differing} of {self.total} bytes differ"
        )
        return f"{text}; {self.guess}" if self.guess else text


def compare(
    expected: bytes,
    got: bytes,
    *,
    base: int = 0,
    others: Callable[[], Mapping[str, bytes]] = dict,
) -> Mismatch | None:
    """None when the two are equal, else where and how they differ.

    :param base: offset of the first byte, for the report
    :param others: makes the names of other places with what was written there, of the same
        length, to recognise an alias; called only when something differs
    """
    if expected == got:
        return None
    first = first_difference(expected, got) // 4 * 4
    wrong = bytes(compress(got, map(ne, expected, got)))
    return Mismatch(
        offset=base + first,
        expected=int.from_bytes(expected[first : first + 4], "little"),
        got=int.from_bytes(got[first : first + 4], "little"),
        differing=len(wrong),
        total=len(expected),
        guess=_guess(expected, got, wrong, others()),
    )


def _guess(expected: bytes, got: bytes, wrong: bytes, others: Mapping[str, bytes]) -> str:
    """The most telling of the usual faults that explains every byte; empty if none does.

    :param wrong: the bytes of ``got`` that are not as expected
    """
    if wrong.count(0xFF) == len(wrong):
        return "all ones where it differs: nothing answers there"
    if wrong.count(0) == len(wrong):
        return "zero where it differs: writes are not stored there"
    for name, pattern in others.items():
        if got == pattern:
            return f"it shows what was written to {name}: the two are aliased"
    half = len(expected) // 2
    if half and expected[half:] + expected[:half] == got:
        return "the two halves are swapped"
    for size in (2, 4, 8):
        if len(expected) % size == 0 and all(
            expected[byte::size] == got[size - 1 - byte :: size] for byte in range(size)
        ):
            return f"the byte order of {8 * size}-bit words is reversed"
    shift = _shift(expected, got)
    if shift:
        return f"the data of {shift:#x} bytes further on: the window is off by that much"
    return _stuck_bits(expected, got)


def _shift(expected: bytes, got: bytes) -> int:
    """By how much the data is displaced: a power of two of at least a page, or 0."""
    step = _PAGE
    while step < len(expected):
        if got[:-step] == expected[step:] and expected[step:] != expected[:-step]:
            return step
        step *= 2
    return 0


def _stuck_bits(expected: bytes, got: bytes) -> str:
    """Bits that read the same everywhere, and whose absence explains every difference."""
    if len(expected) < 8:
        return ""
    wanted, found = _words(expected), _words(got)
    changed = reduce(or_, map(xor, wanted, found))
    low = changed & ~reduce(or_, found)
    high = changed & reduce(and_, found)
    if changed != low | high or changed.bit_count() > 8:
        return ""
    parts = [
        f"bit{'s' if mask.bit_count() > 1 else ''} "
        + ", ".join(str(bit) for bit in range(32) if mask >> bit & 1)
        + f" of each 32-bit word stuck at {value}"
        for mask, value in ((low, 0), (high, 1))
        if mask
    ]
    return " and ".join(parts)


def _words(data: bytes) -> array[int]:
    """All whole 32-bit words, little endian."""
    words = array("I", data[: len(data) // 4 * 4])
    if sys.byteorder == "big":
        words.byteswap()
    return words
