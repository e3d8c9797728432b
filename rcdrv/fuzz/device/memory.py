"""Expected contents of the memory behind a BAR, as far as they are known."""

from __future__ import annotations


class Memory:
    """``size`` bytes of endpoint memory, whose halves a BAR may show swapped.

    Addressed as in the BAR. A byte is unknown until written or read.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.swapped = False
        # Of the memory itself, by half and by byte; a fill of a half discards its bytes.
        self._fill: list[int | None] = [None, None]
        self._bytes: dict[int, int] = {}

    def write(self, offset: int, data: bytes) -> None:
        for index, byte in enumerate(data, offset):
            self._bytes[self._where(index)] = byte

    def expected(self, offset: int) -> int | None:
        """Return the expected byte, or None if unknown."""
        where = self._where(offset)
        return self._bytes.get(where, self._fill[where * 2 // self.size])

    def sign(self, signatures: tuple[int, int]) -> None:
        """Fill the halves with one byte each, in the BAR's order."""
        self._bytes.clear()
        for half, byte in enumerate(signatures):
            self._fill[half ^ self.swapped] = byte

    def known(self) -> list[int]:
        """Return offsets with known contents: written ones, and the ends of filled halves."""
        half = self.size // 2
        filled = [
            offset
            for offset in (0, half - 1, half, self.size - 1)
            if self._fill[self._where(offset) // half] is not None
        ]
        return sorted({*filled, *map(self._where, self._bytes)})

    def _where(self, offset: int) -> int:
        """Convert an offset between BAR and memory; swapping is its own inverse."""
        return (offset + self.size // 2) % self.size if self.swapped else offset
