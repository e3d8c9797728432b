"""DMA buffers, with what a recording says of them: bus addresses, contents, random data.

The host chooses the addresses of buffers, so recordings and comparisons must not depend on them:
they have the number of a buffer and an offset.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from rcdrv.replay.contents import stream


@dataclass
class Buffer:
    """One mapped buffer."""

    iova: int
    memory: mmap.mmap
    size: int
    seen: bytes = b""
    """Contents when the recorder looked last."""

    @property
    def contents(self) -> bytes:
        return self.memory[: self.size]


class Buffers:
    """The mapped buffers, numbered in the order of mapping.

    :param seed: seed of the random data for transfers
    """

    def __init__(self, seed: bytes) -> None:
        self.mapped: dict[int, Buffer] = {}
        """The buffers by number."""
        self.count = 0
        """Number of buffers so far."""
        self.random = b""
        """The last random data."""
        self._upper: tuple[int, int, int, int] | None = None
        self._seed = seed
        self._draws = 0

    def add(self, buffer: Buffer) -> None:
        self.mapped[self.count] = buffer
        self.count += 1

    def remove(self, iova: int) -> int:
        """Remove the buffer that starts at an address; return its number, 0 if there is none."""
        for number, buffer in self.mapped.items():
            if buffer.iova == iova:
                del self.mapped[number]
                return number
        return 0

    def random_bytes(self, size: int) -> bytes:
        """Return data for a transfer: the same in the recording and in a replay."""
        self.random = stream(self._seed + self._draws.to_bytes(8, "little"), size)
        self._draws += 1
        return self.random

    def known(self, number: int, first: int, size: int) -> dict[str, bytes]:
        """Return what the device may have copied to a buffer: the same place in the others."""
        return {
            f"{other:x}": buffer.memory[first : first + size]
            for other, buffer in self.mapped.items()
            if other != number and first + size <= buffer.size
        }

    def spell(self, region: int, offset: int, size: int, value: int) -> int | str:
        """Return the value of a register write, as text if it is an address in a buffer.

        The upper half of an address is recognised only directly after the write of its lower half,
        4 bytes below.
        """
        upper, self._upper = self._upper, None
        if upper is not None and size == 4 and upper[:2] == (region, offset) and value == upper[2]:
            return f"@{upper[3]:x}^"
        mask = 0xFFFFFFFF if size == 4 else (1 << 64) - 1
        for number, buffer in self.mapped.items() if size >= 4 else ():
            inside = value - (buffer.iova & mask)
            if 0 <= inside < buffer.size:
                if size == 4:
                    self._upper = region, offset + 4, buffer.iova + inside >> 32, number
                return f"@{number:x}+{inside:x}"
        return value
