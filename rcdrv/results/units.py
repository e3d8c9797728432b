"""Sizes and durations as short text."""

from __future__ import annotations

import re


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


_PERIODS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)")


def parse_duration(text: str) -> float:
    """Return seconds of a time as a user writes it: ``90``, ``0.5``, ``500ms``, ``1h30m``, ``2d``.

    :raises ValueError: it is none
    """
    try:
        return float(text)
    except ValueError:
        if not re.fullmatch(f"(?:{_PERIOD.pattern})+", text):
            raise
    return sum(float(number) * _PERIODS[unit] for number, unit in _PERIOD.findall(text))


def period_text(seconds: float) -> str:
    """Return a time as :func:`parse_duration` reads it: ``1h30m``, ``45s``, ``0.5s``."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (rest, "s"))
    return "".join(f"{value}{unit}" for value, unit in parts if value)
