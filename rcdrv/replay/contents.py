"""Contents of BAR blocks and DMA buffers as short text.

Contents equal to known ones are stored by name, others compressed. Large random data of a transfer
is stored as its CRC-32, which is all that pci-epf-test and its driver examine; :func:`forge`
creates data with that CRC.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping
from itertools import pairwise

LARGEST = 8192
"""Limit of compressed contents in bytes, above which a CRC-32 is stored if the caller permits."""

_SHORT = 64
_GRAIN = 1 << 16
_KEPT = 64 << 20  # bytes of blocks written to BARs that are remembered


def stream(seed: bytes, size: int) -> bytes:
    """Return ``size`` pseudo-random bytes, determined by the seed on every host."""
    return hashlib.shake_128(seed).digest(size)


def digest(memory: bytes) -> int:
    """Return the CRC-32 of memory padded with zeros to a multiple of 64 KiB.

    Padding makes it independent of the host's page size: buffers consist of whole pages.
    """
    return zlib.crc32(bytes(-len(memory) % _GRAIN), zlib.crc32(memory))


def pieces(offset: int, size: int) -> list[tuple[int, int]]:
    """Cut a block at multiples of 64 KiB: how a driver cuts them is no part of a recording."""
    end = offset + size
    first = offset - offset % _GRAIN + _GRAIN
    cuts = [offset, *range(first, end, _GRAIN), end]
    return [(one, other - one) for one, other in pairwise(cuts)]


def cut(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    """Return the pieces of a block, each with its offset."""
    return [(at, data[at - offset : at - offset + n]) for at, n in pieces(offset, len(data))]


class Written:
    """The blocks that a driver wrote last: recorder and player remember the same."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, int, int], bytes] = {}
        self._kept = 0

    def keep(self, place: tuple[int, int, int], data: bytes) -> None:
        self._kept += len(data)
        if self._kept > _KEPT:
            self._kept = len(data)
            self._blocks.clear()
        self._blocks[place] = data

    def known(self, place: tuple[int, int, int]) -> dict[str, bytes]:
        """What :func:`pack` and :func:`unpack` may refer to for a block that is read."""
        block = self._blocks.get(place)
        return {} if block is None else {"w": block}


def pack(content: bytes, known: Mapping[str, bytes], *, exact: bool) -> str:
    """Return contents as one word of text.

    :param known: contents by name, which :func:`unpack` gets too
    :param exact: never reduce the contents to a CRC-32
    """
    for name, base in known.items():
        if base == content:
            return f"={name}"
    if len(content) <= _SHORT:
        return "h" + content.hex()
    packed = zlib.compress(content)
    if len(packed) > LARGEST:
        for name, base in known.items():
            if len(base) == len(content):
                changed = zlib.compress(_xor(content, base))
                if len(changed) <= LARGEST:
                    return f"x{name}:{_text(changed)}"
    if exact or min(len(content), len(packed)) <= LARGEST:
        return "z" + _text(packed)
    return f"c{zlib.crc32(content):x}"


def unpack(word: str, size: int, known: Mapping[str, bytes]) -> bytes:
    """Return the contents of a word of :func:`pack`.

    :raises ValueError: not such a word, not ``size`` bytes, or it refers to unknown contents
    """
    kind, rest = word[:1], word[1:]
    if kind == "=":
        content = _base(rest, known)
    elif kind == "h":
        content = bytes.fromhex(rest)
    elif kind == "z":
        content = _inflate(rest, size)
    elif kind == "x":
        name, _, packed = rest.partition(":")
        content = _xor(_inflate(packed, size), _base(name, known))
    elif kind == "c":
        content = forge(int(rest, 16), size)
    else:
        raise ValueError("unknown contents")
    if len(content) != size:
        raise ValueError("the contents have a different size")
    return content


def forge(crc: int, size: int) -> bytes:
    """Return ``size`` bytes with this CRC-32, determined by both.

    The last four bytes produce the CRC: its register is run backwards over them.

    :raises ValueError: fewer than four bytes, or not a CRC-32
    """
    if size < 4 or not 0 <= crc < 1 << 32:
        raise ValueError("no contents of this size have this CRC-32")
    front = stream(crc.to_bytes(8, "little"), size - 4)
    # zlib inverts the register at both ends.
    register = crc ^ 0xFFFFFFFF
    for _ in range(32):  # the bits of the last four bytes, the last one first
        register = (register ^ 0xEDB88320) << 1 | 1 if register >> 31 else register << 1
    tail = (register ^ zlib.crc32(front) ^ 0xFFFFFFFF) & 0xFFFFFFFF
    return front + tail.to_bytes(4, "little")


def _base(name: str, known: Mapping[str, bytes]) -> bytes:
    if name not in known:
        raise ValueError(f"the contents refer to {name!r}, which is unknown here")
    return known[name]


def _xor(one: bytes, other: bytes) -> bytes:
    if len(one) != len(other):
        raise ValueError("the contents have a different size")
    mixed = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return mixed.to_bytes(len(one), "little")


def _text(packed: bytes) -> str:
    return base64.b64encode(packed).decode()


def _inflate(text: str, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(str(error)) from None
