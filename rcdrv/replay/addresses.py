"""Bus addresses in register values, written as buffer and offset.

The host chooses the addresses of buffers, so recordings and comparisons must not depend on them.
"""

from __future__ import annotations


class Addresses:
    """The mapped buffers, numbered in the order of mapping."""

    def __init__(self) -> None:
        self.buffers: dict[int, tuple[int, int]] = {}
        """(Bus address, size in bytes) of each buffer, by number."""
        self.count = 0
        """Number of buffers so far."""
        self._upper: tuple[int, int, int, int] | None = None

    def add(self, iova: int, size: int) -> int:
        number, self.count = self.count, self.count + 1
        self.buffers[number] = iova, size
        return number

    def remove(self, iova: int) -> int:
        """Remove the buffer that starts at an address; return its number, -1 if there is none."""
        number = next((n for n, (at, _) in self.buffers.items() if at == iova), -1)
        self.buffers.pop(number, None)
        return number

    def spell(self, region: int, offset: int, size: int, value: int) -> str:
        """Return the text of a register write: a number, or an address in a buffer.

        The upper half of an address is recognised only directly after the write of its lower half,
        4 bytes below.
        """
        upper, self._upper = self._upper, None
        if upper is not None and size == 4 and upper[:2] == (region, offset) and value == upper[2]:
            return f"@{upper[3]:x}^"
        mask = 0xFFFFFFFF if size == 4 else (1 << 64) - 1
        for number, (iova, length) in self.buffers.items() if size >= 4 else ():
            inside = value - (iova & mask)
            if 0 <= inside < length:
                if size == 4:
                    self._upper = region, offset + 4, iova + inside >> 32, number
                return f"@{number:x}+{inside:x}"
        return f"{value:x}"
