"""Sample of words in a large BAR."""

from __future__ import annotations

import random
from functools import lru_cache

from rcdrv.epf_test import bars

WHOLE = 1 << 20
"""Limit in bytes of a BAR that is tested as a whole."""

_EDGE = 64
_RANDOM_WORDS = 8


@lru_cache(256)
def sample(size: int) -> tuple[tuple[int, int], ...]:
    """Return (offset, length) of both edges, one word at each power of two, and random words.

    A stuck address line shows at a power of two. BARs of one size have the same random words, so
    that aliases show.
    """
    if size <= WHOLE:
        return tuple(bars.chunks(size))
    words = {1 << bit for bit in range(_EDGE.bit_length(), size.bit_length() - 1)}
    rng = random.Random(size)
    words |= {rng.randrange(_EDGE, size - _EDGE, 4) for _ in range(_RANDOM_WORDS)}
    inside = ((word, 4) for word in sorted(words) if _EDGE <= word < size - _EDGE)
    return ((0, _EDGE), *inside, (size - _EDGE, _EDGE))


def covers(size: int, start: int, end: int) -> bool:
    """Return whether the sample has any byte of ``start`` to ``end``."""
    return any(offset < end and start < offset + length for offset, length in sample(size))
