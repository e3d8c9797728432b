"""Sizes and durations as short text."""

from __future__ import annotations


def size_text(size: int) -> str:
    """Return a size, exactly: ``128 KiB``, but ``1000 B``."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale and size % scale == 0:
            return f"{size // scale} {unit}"
    return f"{size} B"


def duration_text(nanoseconds: float) -> str:
    """Return a duration with three digits: ``83.3 µs``."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        # A value that rounds up to 1000 belongs to the next unit.
        if nanoseconds >= 0.9995 * scale:
            value = nanoseconds / scale
            return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"
    return f"{nanoseconds:.0f} ns"


_SUFFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Parse an integer: decimal, 0x, 0o or 0b, then K, M, G or T (1024^n).

    :raises ValueError: not such a text
    """
    scale = _SUFFIXES.get(text[-1:].upper(), 1)
    return int(text[:-1] if scale > 1 else text, 0) * scale
