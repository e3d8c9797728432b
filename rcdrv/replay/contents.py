"""Contents of memory as short text: for BARs that are read as blocks, and for DMA buffers.

What is equal to something known is named, what compresses is kept, and large random data of a
transfer is a CRC-32: :func:`forge` makes data that has it, which is all that pci-epf-test and its
driver look at.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping

LARGEST = 8192
"""Bytes of compressed contents; above it, a CRC-32 has to do where the caller allows that."""

_SHORT = 64
_GRAIN = 1 << 16


def stream(seed: bytes, size: int) -> bytes:
    """Return ``size`` bytes that follow from the seed, on every host and for ever the same."""
    return hashlib.shake_128(seed).digest(size)


def digest(memory: bytes) -> int:
    """CRC-32 of memory as if zeros followed up to a multiple of 64 KiB.

    How far a buffer of whole pages goes depends on the page size of the host.
    """
    return zlib.crc32(bytes(-len(memory) % _GRAIN), zlib.crc32(memory))


def pack(content: bytes, known: Mapping[str, bytes], *, exact: bool) -> str:
    """Return contents as a word.

    :param known: what :func:`unpack` will know too, by name
    :param exact: keep it however long it is
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
    """Return the ``size`` bytes of a word of :func:`pack`.

    :raises ValueError: it is none, has another size, or needs what is not known
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
        raise ValueError("the contents have another size")
    return content


def forge(crc: int, size: int) -> bytes:
    """Return ``size`` bytes with this CRC-32; they follow from it.

    The last four decide: the register of the CRC is run back from its end over them.

    :raises ValueError: under four bytes have not every CRC
    """
    if size < 4 or not 0 <= crc < 1 << 32:
        raise ValueError("no such contents have such a CRC-32")
    front = stream(crc.to_bytes(8, "little"), size - 4)
    # zlib inverts the register at both ends.
    register = crc ^ 0xFFFFFFFF
    for _ in range(32):  # the bits of the last four bytes, the last one first
        register = (register ^ 0xEDB88320) << 1 | 1 if register >> 31 else register << 1
    tail = (register ^ zlib.crc32(front) ^ 0xFFFFFFFF) & 0xFFFFFFFF
    return front + tail.to_bytes(4, "little")


def _base(name: str, known: Mapping[str, bytes]) -> bytes:
    if name not in known:
        raise ValueError("the contents are those of something else, which is not there")
    return known[name]


def _xor(one: bytes, other: bytes) -> bytes:
    if len(one) != len(other):
        raise ValueError("the contents have another size")
    mixed = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return mixed.to_bytes(len(one), "little")


def _text(packed: bytes) -> str:
    return base64.b64encode(packed).decode()


def _inflate(text: str, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(str(error)) from None
