"""Capability chains, whatever is in them; and the call itself, on a real descriptor."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.device import capabilities, pairs
from rcdrv.errors import HostError
from rcdrv.vfio.ioctl import call

FIXED = 32


def header(identity: int, following: int) -> bytes:
    return struct.pack("=HHI", identity, 1, following)


def test_no_chain() -> None:
    assert list(capabilities(bytes(FIXED), FIXED, 0, HostError)) == []


def test_each_capability_in_order() -> None:
    # The second one stands before the first one: the order is the chain's.
    answer = bytes(FIXED) + header(7, 0) + b"last" + header(3, FIXED) + b"first"
    found = list(capabilities(answer, FIXED, FIXED + 12, HostError))
    assert [identity for identity, _ in found] == [3, 7]
    assert bytes(found[0][1]) == b"first"
    assert bytes(found[1][1][:4]) == b"last"


@pytest.mark.parametrize("first", [1, FIXED - 1, FIXED + 1, FIXED + 8, 0xFFFFFFFF])
def test_a_chain_outside_is_refused(first: int) -> None:
    with pytest.raises(HostError, match="broken"):
        list(capabilities(bytes(FIXED) + header(1, 0), FIXED, first, HostError))


def test_a_cycle_is_refused() -> None:
    answer = bytes(FIXED) + header(1, FIXED + 8) + header(2, FIXED)
    with pytest.raises(HostError, match="broken: it loops at 0x20"):
        list(capabilities(answer, FIXED, FIXED, HostError))


@given(st.binary(max_size=200), st.integers(0, 0xFFFFFFFF) | st.integers(0, 232))
def test_any_bytes_end_or_are_refused(tail: bytes, first: int) -> None:
    answer = bytes(FIXED) + tail
    steps = 0
    try:
        for _, body in capabilities(answer, FIXED, first, HostError):
            steps += 1
            assert answer.endswith(body)
            assert len(body) <= len(tail) - 8
    except HostError:
        pass
    assert steps <= len(tail)


@given(st.lists(st.integers(0, 40), max_size=6))
def test_any_links_end_or_are_refused(links: list[int]) -> None:
    """Chains that hold together further than random bytes do."""
    places = [FIXED + 8 * index for index in range(len(links))]
    answer = bytes(FIXED) + b"".join(
        header(index, places[link] if link < len(places) else 0) for index, link in enumerate(links)
    )
    first = places[0] if places else 0
    seen = []
    try:
        for identity, _ in capabilities(answer, FIXED, first, HostError):
            seen.append(identity)
    except HostError:
        assert seen
    assert len(seen) == len(set(seen))


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=9))
def test_pairs(found: list[tuple[int, int]]) -> None:
    body = struct.pack("=II", len(found), 0) + b"".join(struct.pack("=QQ", *one) for one in found)
    assert pairs(body, HostError) == found
    assert pairs(body + b"the next capability", HostError) == found


@given(st.binary(max_size=80))
def test_pairs_stay_inside(body: bytes) -> None:
    try:
        found = pairs(body, HostError)
    except HostError:
        return
    assert 8 + 16 * len(found) <= len(body)


def test_a_count_beyond_the_end_is_refused() -> None:
    with pytest.raises(HostError, match="2 entries"):
        pairs(struct.pack("=IIQQ", 2, 0, 1, 1), HostError)


@pytest.mark.usefixtures("pseudo_terminals")
def test_memory_is_written_back_and_the_result_kept() -> None:
    ours, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("=4H", 24, 80, 0, 0))
        size = bytearray(8)
        assert call(ours, termios.TIOCGWINSZ, size) == 0
        assert struct.unpack("=4H", size)[:2] == (24, 80)
    finally:
        os.close(ours)
        os.close(terminal)
