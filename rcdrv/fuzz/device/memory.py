"""Expected contents of the memory behind a BAR, as far as they are known."""

from __future__ import annotations


class Memory:
    """``size`` bytes of the endpoint's memory, and in what order a BAR shows their halves.

    Addressed as the BAR shows them. A byte that was neither written nor read yet is unknown.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.swapped = False
        # Of the memory itself, by half and by byte; a later fill of a half forgets its bytes.
        self._fill: list[int | None] = [None, None]
        self._bytes: dict[int, int] = {}

    def write(self, offset: int, data: bytes) -> None:
        for index, byte in enumerate(data, offset):
            self._bytes[self._where(index)] = byte

    def expected(self, offset: int) -> int | None:
        """Return the expected byte; None: any."""
        where = self._where(offset)
        return self._bytes.get(where, self._fill[where * 2 // self.size])

    def sign(self, signatures: tuple[int, int]) -> None:
        """Fill the halves with a byte each, in the order in which the BAR shows them."""
        self._bytes.clear()
        for half, byte in enumerate(signatures):
            self._fill[half ^ self.swapped] = byte

    def known(self) -> list[int]:
        """Offsets worth a look: what was written, and where filled halves begin and end."""
        half = self.size // 2
        filled = [
            offset
            for offset in (0, half - 1, half, self.size - 1)
            if self._fill[self._where(offset) // half] is not None
        ]
        return sorted({*filled, *map(self._where, self._bytes)})

    def _where(self, offset: int) -> int:
        """Swapping is its own inverse, so this goes both ways."""
        return (offset + self.size // 2) % self.size if self.swapped else offset
