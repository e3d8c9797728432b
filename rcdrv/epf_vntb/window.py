"""Tests of a memory window in both directions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.errors import RcdrvError
from rcdrv.mmio import Window, first_difference
from rcdrv.verdict import NotPassed, Reason

_CHUNK = 64 << 10


def test_pointing(vntb: Vntb, index: int) -> int:
    """Have the endpoint map memory of ours into its side of the window, and unmap it.

    :returns: the number of bytes mapped
    :raises NotPassed: the endpoint refused or did not answer
    """
    size = vntb.window(index).size
    with vntb.window_buffer(size) as buffer:
        try:
            vntb.point_window(index, buffer)
        except BaseException:
            # The endpoint may have obeyed; the first error is the one to report.
            with vntb.function.cancel.deferred(), contextlib.suppress(RcdrvError):
                vntb.clear_window(index)
            raise
        with vntb.function.cancel.deferred():
            vntb.clear_window(index)
    return size


def test_memory(vntb: Vntb, index: int) -> int:
    """Write a pattern to all of the endpoint's memory in the window, verify it, and restore it.

    Only for a window whose translation the endpoint has set.

    :returns: the number of bytes tested
    :raises NotPassed: ``data-mismatch``
    """
    window = vntb.window(index)
    for offset, size in _chunks(window.size):
        vntb.function.cancel.check()
        before = window.read_block(offset, size)
        data = pattern(offset, size)
        try:
            vntb.widen(index, offset)
            window.write_block(offset, data)
            compare(vntb, window, offset, data)
        finally:
            window.write_block(offset, before)
    return window.size


def compare(vntb: Vntb, window: Window, offset: int, expected: bytes) -> None:
    """:raises NotPassed: ``data-mismatch``: something else is there"""
    found = window.read_block(offset, len(expected))
    if found == expected:
        return
    vntb.function.check_alive()
    at = first_difference(found, expected)
    raise NotPassed(
        Reason.DATA_MISMATCH,
        f"{window.name}+{offset + at:#x}: wrote {expected[at]:#04x}, read {found[at]:#04x}",
        hint="has the endpoint set this window's translation, and is its memory that large?",
    )


def _chunks(end: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, end, _CHUNK):
        yield offset, min(_CHUNK, end - offset)


def pattern(offset: int, size: int) -> bytes:
    """Return words that are the complement of their offset, so that no two chunks are equal."""
    words = range(offset, offset + size, 4)
    return b"".join((~word & 0xFFFF_FFFF).to_bytes(4, "little") for word in words)
