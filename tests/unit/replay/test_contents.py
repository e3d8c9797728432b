"""Contents as words: the same again, or data with the same CRC-32."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.replay.contents import LARGEST, digest, forge, pack, stream, unpack

NOISE = stream(b"noise", 3 * LARGEST)


@given(st.binary(max_size=300), st.binary(max_size=300), st.booleans())
def test_small_contents_come_back(content: bytes, other: bytes, exact: bool) -> None:
    known = {"0": other}
    assert unpack(pack(content, known, exact=exact), len(content), known) == content


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "h"),
        (bytes(1 << 20), "z"),
        (NOISE[:LARGEST], "z"),
        (NOISE, "c"),
        (NOISE[:-1] + b"\0", "x"),
    ],
)
def test_large_contents(content: bytes, kind: str) -> None:
    known = {"0": NOISE} if kind == "x" else {}
    word = pack(content, known, exact=False)
    assert word[0] == kind
    assert len(word) < 2 * LARGEST
    found = unpack(word, len(content), known)
    assert found == content if kind != "c" else zlib.crc32(found) == zlib.crc32(content)
    assert unpack(pack(content, {}, exact=True), len(content), {}) == content


def test_what_is_known_takes_no_room() -> None:
    assert pack(NOISE, {"1": NOISE}, exact=False) == "=1"


@given(st.binary(min_size=4, max_size=2000), st.binary(max_size=50), st.binary(max_size=50))
def test_forged_data_has_the_crc_wherever_it_lies(data: bytes, front: bytes, back: bytes) -> None:
    """What changed in a buffer may be less than what the endpoint sent: a zero at its end."""
    forged = forge(zlib.crc32(data), len(data))
    assert zlib.crc32(front + forged + back) == zlib.crc32(front + data + back)


def test_the_data_of_a_seed_are_fixed() -> None:
    assert stream(b"seed", 4).hex() == "25629347"


def test_a_digest_does_not_depend_on_the_page_size() -> None:
    assert digest(b"abc" + bytes(4093)) == digest(b"abc" + bytes(65533)) != digest(b"abd")


@pytest.mark.parametrize(
    "word",
    ["", "q", "=9", "hff", "hxy", "z", "z!!", "zAAAA", "x0:", "x9:AAAA", "c", "c-1", "c1ffffffff"],
)
def test_words_that_are_none(word: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        unpack(word, 3, {"0": b"abc"})


def test_a_bomb_is_not_unpacked() -> None:
    bomb = pack(bytes(1 << 24), {}, exact=True)
    with pytest.raises(ValueError, match="a different size"):
        unpack(bomb, 16, {})
