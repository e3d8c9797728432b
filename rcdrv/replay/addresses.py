"""Bus addresses of DMA buffers in register values, by buffer and offset.

Where a buffer lies is the host's choice, so neither a recording nor a comparison keeps it.
"""

from __future__ import annotations


class Addresses:
    """The buffers that are mapped now, in the order in which they were mapped."""

    def __init__(self) -> None:
        self.buffers: dict[int, tuple[int, int]] = {}
        """{number: (bus address, size)}."""
        self.count = 0
        self._upper: tuple[int, int, int, int] | None = None

    def add(self, iova: int, size: int) -> int:
        """Return the number of a new buffer."""
        number, self.count = self.count, self.count + 1
        self.buffers[number] = iova, size
        return number

    def find(self, iova: int) -> int:
        """Return the number of the buffer at this address; -1 if there is none."""
        return next((n for n, (at, _) in self.buffers.items() if at == iova), -1)

    def spell(self, region: int, offset: int, size: int, value: int) -> str:
        """Return what is written to a register: a number, or an address in a buffer.

        The upper half of one is known only by what was written just before, 4 bytes lower.
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
