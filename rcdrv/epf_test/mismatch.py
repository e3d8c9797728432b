"""What a difference between data written and data read looks like, and what may be behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rcdrv.record import record

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

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
    import numpy

    length = len(expected)
    wanted, found = (numpy.frombuffer(data, dtype=numpy.uint8) for data in (expected, got))
    wrong = numpy.flatnonzero(wanted != found)
    first = int(wrong[0]) // 4 * 4
    return Mismatch(
        offset=base + first,
        expected=int.from_bytes(expected[first : first + 4], "little"),
        got=int.from_bytes(got[first : first + 4], "little"),
        differing=len(wrong),
        total=length,
        guess=_guess(expected, got, wanted, found, others()),
    )


def _guess(
    expected: bytes,
    got: bytes,
    wanted: NDArray[Any],
    found: NDArray[Any],
    others: Mapping[str, bytes],
) -> str:
    """The most telling of the usual faults that explains every byte; empty if none does."""
    wrong = wanted != found
    if bool((found[wrong] == 0xFF).all()):
        return "all ones where it differs: nothing answers there"
    if bool((found[wrong] == 0).all()):
        return "zero where it differs: writes are not stored there"
    for name, pattern in others.items():
        if got == pattern:
            return f"it shows what was written to {name}: the two are aliased"
    half = len(expected) // 2
    if half and expected[half:] + expected[:half] == got:
        return "the two halves are swapped"
    for size in (2, 4, 8):
        whole = len(expected) // size * size
        reversed_bytes = wanted[:whole].reshape(-1, size)[:, ::-1].reshape(-1)
        if whole == len(expected) and bool((reversed_bytes == found).all()):
            return f"the byte order of {8 * size}-bit words is reversed"
    shift = _shift(expected, got)
    if shift:
        return f"the data of {shift:#x} bytes further on: the window is off by that much"
    return _stuck_bits(wanted, found)


def _shift(expected: bytes, got: bytes) -> int:
    """By how much the data is displaced: a power of two of at least a page, or 0."""
    step = _PAGE
    while step < len(expected):
        if got[:-step] == expected[step:] and expected[step:] != expected[:-step]:
            return step
        step *= 2
    return 0


def _stuck_bits(wanted: NDArray[Any], found: NDArray[Any]) -> str:
    """Bits that read the same everywhere, and whose absence explains every difference."""
    import numpy

    whole = len(wanted) // 4 * 4
    if whole < 8:
        return ""
    expected, got = (data[:whole].view("<u4") for data in (wanted, found))
    changed = int(numpy.bitwise_or.reduce(expected ^ got))
    low = changed & ~int(numpy.bitwise_or.reduce(got))
    high = changed & int(numpy.bitwise_and.reduce(got))
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
