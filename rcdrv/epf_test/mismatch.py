"""Difference between data written and data read: offset, extent and likely cause.

numpy is imported only if the data differs, and only the cause needs it: without numpy, offset and
extent are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from operator import ne
from typing import TYPE_CHECKING, Any, TypeAlias

from rcdrv.mmio import first_difference

if TYPE_CHECKING:
    import numpy as np

    Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Mismatch:
    """One comparison that failed."""

    offset: int
    """Bytes from the start of the buffer or BAR to the first 32-bit word that differs."""
    expected: int
    """That word, little endian (fewer bytes at the very end)."""
    got: int
    differing: int
    """Number of differing bytes, of ``total``."""
    total: int
    guess: str
    """Likely cause; empty if none is known."""

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
    """Return the difference between the two, or None if they are equal.

    :param base: offset of the first byte, for the report
    :param others: returns what was written to other places, by name and of the same length, to
        recognise an alias; called only if the data differs
    """
    if expected == got:
        return None
    first = first_difference(expected, got) // 4 * 4
    differing, guess = (
        _analyse(expected, got, others())
        if find_spec("numpy")
        else (sum(map(ne, expected, got)), "")
    )
    return Mismatch(
        offset=base + first,
        expected=int.from_bytes(expected[first : first + 4], "little"),
        got=int.from_bytes(got[first : first + 4], "little"),
        differing=differing,
        total=len(expected),
        guess=guess,
    )


def _analyse(expected: bytes, got: bytes, others: Mapping[str, bytes]) -> tuple[int, str]:
    """Return the number of differing bytes, and the first known fault that explains them all."""
    import numpy as np

    wanted, found = np.frombuffer(expected, np.uint8), np.frombuffer(got, np.uint8)
    wrong = found[wanted != found]
    guess = ""
    if (wrong == 0xFF).all():
        guess = "all ones where it differs: nothing answers there"
    elif not wrong.any():
        guess = "zero where it differs: writes are not stored there"
    else:
        alias = next((name for name, pattern in others.items() if got == pattern), None)
        if alias:
            guess = f"it shows what was written to {alias}: the two are aliased"
    return len(wrong), guess or next(
        (text for fault in _FAULTS if (text := fault(wanted, found))), ""
    )


# Each of the following takes the data written and the data read, of the same length. It returns the
# fault as text if that explains every byte, else an empty string.


def _swapped(wanted: Bytes, found: Bytes) -> str:
    size = len(wanted)
    if size % 2 == 0 and _equal(wanted.reshape(2, -1)[::-1], found):
        return "the two halves are swapped"
    for bytes_ in (2, 4, 8):
        if size % bytes_ == 0 and _equal(wanted.reshape(-1, bytes_)[:, ::-1], found):
            return f"the byte order of {8 * bytes_}-bit words is reversed"
    for bytes_ in (2, 4, 8, 16, 32):
        if size % (2 * bytes_) == 0:
            if _equal(wanted.reshape(-1, 2, bytes_)[:, ::-1], found):
                return f"neighbouring {8 * bytes_}-bit words are swapped"
            halves = wanted.reshape(2, -1, bytes_).transpose(1, 0, 2)
            pairs = wanted.reshape(-1, 2, bytes_).transpose(1, 0, 2)
            if _equal(halves, found) or _equal(pairs, found):
                return f"the two halves are interleaved by {8 * bytes_}-bit words"
    return ""


def _stuck(wanted: Bytes, found: Bytes) -> str:
    """Stuck address line or data line; a pattern of offsets cannot tell them apart."""
    return ", or ".join(filter(None, (_repeated(wanted, found), _stuck_bits(wanted, found))))


def _repeated(wanted: Bytes, found: Bytes) -> str:
    """Address line without effect: half of the places show the contents of the other half."""
    size = len(wanted)
    steps = [1 << line for line in range(size.bit_length()) if size % (2 << line) == 0]
    dead = []
    for step in steps:
        pairs, before = found.reshape(-1, 2, step), wanted.reshape(-1, 2, step)
        if _equal(pairs[:, 0], pairs[:, 1]) and not _equal(before[:, 0], before[:, 1]):
            dead.append(step)
    for side in (0, 1) if dead else ():
        seen = wanted.copy()
        for step in dead:
            pairs = seen.reshape(-1, 2, step)
            pairs[:, 1 - side] = pairs[:, side]
        if _equal(seen, found):
            lines = ", ".join(str(step.bit_length() - 1) for step in dead)
            return f"places repeat: address bit{'s' * (len(dead) > 1)} {lines} stuck at {side}"
    return ""


def _shifted(wanted: Bytes, found: Bytes) -> str:
    """Data of another offset, also if the window wraps around at its end."""
    size, probe = len(wanted), min(64, len(wanted) // 2)
    if probe < 4:
        return ""
    data, seen = wanted.tobytes(), found.tobytes()
    for text, step in (
        ("further on", data.find(seen[:probe], 1)),
        ("further back", seen.find(data[:probe], 1)),
    ):
        if step > 0:
            ahead = text == "further on"
            one, other = (wanted, found) if ahead else (found, wanted)
            if _equal(one[step:], other[: size - step]):
                return f"the data of {step:#x} bytes {text}: the window is off by that much"
    return ""


def _rotated(wanted: Bytes, found: Bytes) -> str:
    for bits in (32, 16, 8):
        one, other = _words(wanted, bits), _words(found, bits)
        if len(one) < 4:
            continue
        for by in range(1, bits):
            turned = (one[:4] << by) | (one[:4] >> (bits - by))
            if _equal(turned, other[:4]) and _equal((one << by) | (one >> (bits - by)), other):
                return f"each {bits}-bit word is rotated left by {by} bits"
    return "every bit is inverted" if _equal(~wanted, found) else ""


def _stuck_bits(wanted: Bytes, found: Bytes) -> str:
    """Bits that have one value everywhere, which explains every difference."""
    import numpy as np

    one, other = _words(wanted, 32), _words(found, 32)
    if len(one) < 2 or not _equal(wanted[4 * len(one) :], found[4 * len(one) :]):
        return ""
    # numpy's annotations of reduce() differ between releases.
    any_bit: Any = np.bitwise_or.reduce
    every_bit: Any = np.bitwise_and.reduce
    changed = int(any_bit(one ^ other))
    low = changed & ~int(any_bit(other))
    high = changed & int(every_bit(other))
    if changed != low | high or changed.bit_count() > 8:
        return ""
    return " and ".join(
        f"bit{'s' if mask.bit_count() > 1 else ''} "
        + ", ".join(str(bit) for bit in range(32) if mask >> bit & 1)
        + f" of each 32-bit word stuck at {value}"
        for mask, value in ((low, 0), (high, 1))
        if mask
    )


def _lanes(wanted: Bytes, found: Bytes) -> str:
    """Byte lanes: lost byte enables, or a bus narrower than the access."""
    import numpy as np

    whole = len(wanted) // 8 * 8
    if whole < 64:
        return ""
    share = (wanted[:whole] != found[:whole]).reshape(-1, 8).mean(axis=0)
    bad = np.flatnonzero(share)
    # A single wrong byte is in some lane too; a lost lane is wrong in most places.
    if len(bad) > 4 or share[bad].min() < 0.5 or not _equal(wanted[whole:], found[whole:]):
        return ""
    return f"only byte{'s' * (len(bad) > 1)} {', '.join(map(str, bad))} of each 8 differ"


_FAULTS = (_swapped, _stuck, _shifted, _rotated, _lanes)
"""In order of preference."""


def _equal(one: Any, other: Bytes) -> bool:
    import numpy as np

    return bool(np.array_equal(one.reshape(-1), other.reshape(-1)))


def _words(data: Bytes, bits: int) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the whole words of the data, little endian on every host."""
    return data[: len(data) // (bits // 8) * (bits // 8)].view(f"<u{bits // 8}")
