"""Access to device memory, each access exactly once and exactly as wide as its name says.

A :class:`Window` shows ``size`` bytes of a device region, little endian on every host. There
are two ways to reach them:

* :class:`MappedWindow`: the region is mapped. The one primitive is an item access on a cast
  ``memoryview``: CPython compiles it to a single load or store of the item's width. Slices,
  ``struct.pack_into``, ``memmove`` and ``ctypes`` fields are not used, because each of them
  touches the device more than once or with another width.
* :class:`TrappedWindow`: the region is read and written through its owner (``pread`` and
  ``pwrite`` on a VFIO descriptor, a message over vfio-user). Needed where nothing can be mapped,
  for example for a BAR smaller than a page.

:class:`SplitWindow` joins both for a region of which only parts may be mapped (VFIO's sparse
mmap capability).

This module is longer than others on purpose: the promise of its first line is checked by reading
one file, the only one that touches device memory.

Bulk operations move whole, naturally aligned words, each once: of 32 bits, or of 64 where
:meth:`Window.widen` has shown that these arrive. libc's ``memcpy`` may touch a word
twice, and on arm64, where a BAR is mapped as device memory, it can fault (unaligned tails, DC ZVA);
so a loop of our own copies (:mod:`rcdrv.machine`).
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import repeat

from rcdrv.errors import AccessError, EndpointError, HostError
from rcdrv.machine import barrier as barrier
from rcdrv.machine import copy_words

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Any, Literal, Protocol

    import numpy as np
else:
    Protocol = object

WIDTHS = (8, 16, 32, 64)
"""The access widths, in bits."""

_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {8: "B", 16: "H", 32: "I", 64: "Q"}
_BIG_ENDIAN = sys.byteorder == "big"
# On a 32-bit host a 64-bit item access is two 32-bit ones, which would break the promise above.
_HOST_BITS = 64 if sys.maxsize > 1 << 32 else 32

_LOW = 0xFFFF_FFFF
_CHUNK = 1 << 20  # bytes of a fill in one go


Read = Callable[[int, int], bytes]
"""Reads so many bytes at an offset of a region; all of them, or raises."""
Write = Callable[[int, bytes], object]
"""Writes all bytes at an offset of a region, or raises."""


class Register(Protocol):
    """One aligned 32-bit word of a window, as :meth:`Window.register32` gives it.

    ``register[0]`` is one read and ``register[0] = value`` one write of 32 bits. A value that
    does not fit raises :class:`AccessError` or ValueError, and a register of a closed window
    raises either too; the device is not touched then.
    """

    def __getitem__(self, zero: Literal[0], /) -> int: ...

    def __setitem__(self, zero: Literal[0], value: int, /) -> None: ...


class Window(ABC):
    """``size`` bytes of device memory; offsets are in bytes from its start.

    Every accessor raises :class:`AccessError` for an offset outside the window, or one that is
    not a multiple of the access width, and never touches the device then.
    """

    bulk = 32
    """Width in bits of the words of bulk operations: 32, or 64 after :meth:`widen`."""

    plain: memoryview | None = None
    """The bytes, if they are ordinary memory, which system calls may fill; None for a device's."""

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self.name = name

    # -- one register -------------------------------------------------------------------------

    @abstractmethod
    def read(self, width: int, offset: int) -> int:
        """One read of ``width`` bits (8, 16, 32 or 64) at ``offset``."""

    @abstractmethod
    def write(self, width: int, offset: int, value: int) -> None:
        """One write of ``width`` bits. ``value`` must fit, unsigned."""

    def read8(self, offset: int) -> int:
        return self.read(8, offset)

    def read16(self, offset: int) -> int:
        return self.read(16, offset)

    def read32(self, offset: int) -> int:
        return self.read(32, offset)

    def read64(self, offset: int) -> int:
        return self.read(64, offset)

    def write8(self, offset: int, value: int) -> None:
        self.write(8, offset, value)

    def write16(self, offset: int, value: int) -> None:
        self.write(16, offset, value)

    def write32(self, offset: int, value: int) -> None:
        self.write(32, offset, value)

    def write64(self, offset: int, value: int) -> None:
        self.write(64, offset, value)

    def post32(self, offset: int, value: int) -> None:
        """As :meth:`write32`, without waiting where that has an answer: posted, as on a link."""
        self.write32(offset, value)

    # -- one register, often ------------------------------------------------------------------

    def register32(self, offset: int) -> Register:
        """The 32-bit register at ``offset``, checked here and not at each access any more."""
        self._check(32, offset)
        return _CalledRegister(self, offset)

    def burst32(self, offset: int, value: int, count: int) -> None:
        """``count`` 32-bit writes of the same ``value``, as fast as they can be made.

        Not interruptible. Use short bursts where the user may cancel.
        """
        register = self.register32(offset)
        self._check_value(32, value)
        for _ in repeat(None, count):
            register[0] = value

    # -- bulk ---------------------------------------------------------------------------------

    def read_block(self, offset: int, size: int) -> bytes:
        """Copy ``size`` bytes out of the device.

        Any offset and size: the middle goes in aligned words of :attr:`bulk` bits, the ends in the
        widest naturally aligned accesses that fit. Every byte is read exactly once.
        """
        self._check_range(offset, size)
        data = bytearray(size)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, out: memoryview) -> None:
        """As :meth:`read_block`, into bytes of the caller's, and as many as they are."""
        self._check_range(offset, len(out))
        for width, start, size in _aligned_runs(offset, len(out), self.bulk):
            self._read_run(width, start, out[start - offset : start - offset + size])

    def write_block(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` into the device; the accesses are those of :meth:`read_block`."""
        source = memoryview(data).cast("B")
        self._check_range(offset, len(source))
        for width, start, size in _aligned_runs(offset, len(source), self.bulk):
            self._write_run(width, start, source[start - offset : start - offset + size])

    def fill(self, offset: int, size: int, value: int) -> None:
        """Set ``size`` bytes to the byte ``value``, with the accesses of :meth:`read_block`."""
        if not 0 <= value <= 0xFF:
            raise AccessError(f"{self.name}: the fill value {value:#x} is not a byte")
        self._check_range(offset, size)
        chunk = bytes([value]) * min(size, _CHUNK)
        done = 0
        while done < size:
            step = min(size - done, len(chunk))
            self.write_block(offset + done, chunk[:step])
            done += step

    def widen(self, offset: int = 0) -> bool:
        """Use 64-bit words in bulk operations, if such accesses arrive whole, and return whether.

        Writes 8 bytes, which the caller is about to overwrite: as two 32-bit words, to be read as
        one of 64 bits, and as one, to be read as two. A path to the device that is 32 bits wide
        may drop a half, or swap them.

        :param offset: a multiple of 8
        """
        if self.bulk == 64 or _HOST_BITS < 64:
            return self.bulk == 64
        word = 0x0123_4567_89AB_CDEF
        self.write32(offset, word & _LOW)
        self.write32(offset + 4, word >> 32)
        try:
            arrives = self.read64(offset) == word
            self.write64(offset, ~word & 2**64 - 1)
        except (EndpointError, HostError):  # a server that takes no access of 8 bytes
            return False
        halves = self.read32(offset), self.read32(offset + 4)
        if arrives and halves == (~word & _LOW, ~word >> 32 & _LOW):
            self.bulk = 64
        return self.bulk == 64

    def array(
        self, offset: int, count: int, dtype: np.typing.DTypeLike = "<u4"
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Read ``count`` elements into a new array: a copy, one access of its width an element.

        :param offset: bytes from the window's start, a multiple of the element's size
        :param dtype: a numpy type of 1, 2, 4 or 8 bytes; device memory is little endian: ``"<u4"``
        :raises AccessError: outside the window, not aligned, or an element of another size
        :raises ImportError: numpy is not installed
        """
        import numpy as np

        kind = np.dtype(dtype)
        step = kind.itemsize
        self._check(8 * step, offset)
        self._check_range(offset, count * step)
        data = bytearray(count * step)
        self._read_each(8 * step, offset, memoryview(data))
        return np.frombuffer(data, kind)

    def _read_each(self, width: int, offset: int, out: memoryview) -> None:
        """Fill ``out`` with naturally aligned words of ``width`` bits, one access a word."""
        step = width // 8
        for at in range(0, len(out), step):
            out[at : at + step] = self.read(width, offset + at).to_bytes(step, "little")

    @abstractmethod
    def _read_run(self, width: int, offset: int, out: memoryview) -> None:
        """Fill ``out`` with whole naturally aligned words of ``width`` bits."""

    @abstractmethod
    def _write_run(self, width: int, offset: int, data: memoryview) -> None:
        """Write ``data``, whole naturally aligned words of ``width`` bits."""

    @abstractmethod
    def close(self) -> None:
        """Give up the mapping. Accesses afterwards raise; closing twice is harmless."""

    # -- checks -------------------------------------------------------------------------------

    def _check_range(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise AccessError(
                f"{self.name}: {size} bytes at {offset:#x} are outside its {self.size:#x} bytes"
            )

    def _check(self, width: int, offset: int) -> None:
        if width not in _FORMATS:
            raise AccessError(f"{self.name}: an access is 8, 16, 32 or 64 bits wide, not {width}")
        if width > _HOST_BITS:
            raise AccessError(f"{self.name}: this host has no single {width}-bit access")
        if not 0 <= offset <= self.size - width // 8:
            raise AccessError(
                f"{self.name}: a {width}-bit access at {offset:#x} is outside its "
                f"{self.size:#x} bytes"
            )
        if offset % (width // 8):
            raise AccessError(
                f"{self.name}: offset {offset:#x} is not aligned to a {width}-bit access"
            )

    def _check_value(self, width: int, value: int) -> None:
        if not 0 <= value < 1 << width:
            raise AccessError(f"{self.name}: {value:#x} does not fit in {width} bits")


class _CalledRegister:
    """A register that is not mapped, or not in the host's byte order."""

    __slots__ = ("_offset", "_window")

    def __init__(self, window: Window, offset: int) -> None:
        self._window = window
        self._offset = offset

    def __getitem__(self, zero: Literal[0], /) -> int:
        return self._window.read(32, self._offset)

    def __setitem__(self, zero: Literal[0], value: int, /) -> None:
        self._window.write(32, self._offset, value)


class MappedWindow(Window):
    """Device memory mapped into this process; owns ``memory`` and closes it.

    ``memory`` must start at a multiple of 8, as every mapping does.

    :param plain: it is ordinary memory: see :attr:`Window.plain`
    """

    def __init__(
        self,
        memory: mmap.mmap,
        size: int | None = None,
        name: str = "window",
        *,
        plain: bool = False,
    ) -> None:
        super().__init__(len(memory) if size is None else size, name)
        self._memory = memory
        self._bytes = memoryview(memory)
        if plain:
            self.plain = self._bytes[: self.size]
        # A cast needs a whole number of items; a window's odd tail is reached by narrower ones.
        self._views = {
            width: self._bytes[: self.size - self.size % (width // 8)].cast(form)
            for width, form in _FORMATS.items()
        }
        # For the register path. On a big endian host it is empty, so that each access takes the
        # path that swaps bytes.
        self._words = self._views[32][: 0 if _BIG_ENDIAN else None]
        self._registers: dict[int, memoryview] = {}

    def read(self, width: int, offset: int) -> int:
        self._check(width, offset)
        value: int = self._views[width][offset // (width // 8)]
        return _swap(value, width) if _BIG_ENDIAN else value

    def write(self, width: int, offset: int, value: int) -> None:
        self._check(width, offset)
        self._check_value(width, value)
        self._views[width][offset // (width // 8)] = _swap(value, width) if _BIG_ENDIAN else value

    def read32(self, offset: int) -> int:
        # The register path: one comparison, one item access. memoryview would accept a negative
        # index, so the lower bound is checked here and the upper one by the view itself.
        if offset < 0 or offset & 3:
            return self.read(32, offset)
        try:
            return self._words[offset >> 2]
        except IndexError:
            return self.read(32, offset)

    def write32(self, offset: int, value: int) -> None:
        if offset < 0 or offset & 3:
            self.write(32, offset, value)
            return
        try:
            self._words[offset >> 2] = value
        except (IndexError, ValueError, TypeError):
            self.write(32, offset, value)

    def register32(self, offset: int) -> Register:
        # A view of one item has the access itself in C, its check of the value included, and
        # can reach nothing else.
        self._check(32, offset)
        if _BIG_ENDIAN:
            return super().register32(offset)
        if offset not in self._registers:
            self._registers[offset] = self._words[offset >> 2 : (offset >> 2) + 1]
        return self._registers[offset]

    def burst32(self, offset: int, value: int, count: int) -> None:
        register = self.register32(offset)
        self._check_value(32, value)
        eights, rest = divmod(max(0, count), 8)
        for _ in repeat(None, eights):  # the loop costs as much as a store
            register[0] = register[0] = register[0] = register[0] = value
            register[0] = register[0] = register[0] = register[0] = value
        for register[0] in repeat(value, rest):
            pass

    # Fast path for whole words: no cutting into runs.

    def read_block(self, offset: int, size: int) -> bytes:
        step = self.bulk // 8
        if (offset | size) & (step - 1):
            return super().read_block(offset, size)
        self._check_range(offset, size)
        data = bytearray(size)
        copy_words(memoryview(data), self._bytes[offset : offset + size], step)
        return bytes(data)

    def _read_each(self, width: int, offset: int, out: memoryview) -> None:
        if width < 32:
            super()._read_each(width, offset, out)
        else:
            copy_words(out, self._bytes[offset : offset + len(out)], width // 8)

    def write_block(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        source = memoryview(data).cast("B")
        step = self.bulk // 8
        if (offset | len(source)) & (step - 1):
            super().write_block(offset, source)
            return
        self._check_range(offset, len(source))
        copy_words(self._bytes[offset : offset + len(source)], source, step)

    def fill(self, offset: int, size: int, value: int) -> None:
        step = self.bulk // 8
        if (offset | size) & (step - 1) or size > _CHUNK or not 0 <= value <= 0xFF:
            super().fill(offset, size, value)
            return
        self._check_range(offset, size)
        copy_words(self._bytes[offset : offset + size], _repeated(value, size), step)

    def _read_run(self, width: int, offset: int, out: memoryview) -> None:
        self._read_each(width, offset, out)

    def _write_run(self, width: int, offset: int, data: memoryview) -> None:
        step = width // 8
        if width >= 32:
            copy_words(self._bytes[offset : offset + len(data)], data, step)
            return
        for at in range(0, len(data), step):
            self.write(width, offset + at, int.from_bytes(data[at : at + step], "little"))

    def close(self) -> None:
        if self.size == 0:
            return
        self.size, self.plain = 0, None
        # A traceback may still hold a view of it: then the mapping goes with that.
        with contextlib.suppress(BufferError):
            for view in (*self._registers.values(), self._words, *self._views.values()):
                view.release()
            self._bytes.release()
            self._memory.close()


class TrappedWindow(Window):
    """Device memory reached through its owner, one request an access.

    :param messages: a request of many words is one message, whose receiver chooses the width
    :param post: writes without waiting for an answer; None: there is nothing to wait for
    """

    def __init__(
        self,
        read: Read,
        write: Write,
        size: int,
        name: str = "window",
        *,
        messages: bool = False,
        post: Write | None = None,
    ) -> None:
        super().__init__(size, name)
        self._read, self._write = read, write
        self._messages = messages
        self._post = write if post is None else post

    def read(self, width: int, offset: int) -> int:
        self._check(width, offset)
        return int.from_bytes(self._read(offset, width // 8), "little")

    def write(self, width: int, offset: int, value: int) -> None:
        self._check(width, offset)
        self._check_value(width, value)
        self._write(offset, value.to_bytes(width // 8, "little"))

    def post32(self, offset: int, value: int) -> None:
        self._check(32, offset)
        self._check_value(32, value)
        self._post(offset, value.to_bytes(4, "little"))

    # A run of aligned words is one request: the kernel's VFIO splits it into the widest aligned
    # accesses of at most 8 bytes (vfio_pci_core_do_io_rw()), so every byte is still touched once.
    # Words of 32 bits need a request each there; elsewhere only two, which are no 64-bit access.

    def _step(self, width: int, size: int) -> int:
        """Bytes of a request in a run of ``size`` bytes."""
        exact = width == 32 and (size == 8 or not self._messages)
        return 4 if exact else max(1, size)

    def _read_run(self, width: int, offset: int, out: memoryview) -> None:
        step = self._step(width, len(out))
        for at in range(0, len(out), step):
            out[at : at + step] = self._read(offset + at, step)

    def _write_run(self, width: int, offset: int, data: memoryview) -> None:
        step = self._step(width, len(data))
        for at in range(0, len(data), step):
            self._write(offset + at, bytes(data[at : at + step]))

    def close(self) -> None:
        self.size = 0


class SplitWindow(Window):
    """A region of which some parts are mapped and the rest is trapped.

    ``parts`` are (offset, window) pairs, ascending and without overlap; ``trapped`` covers the
    whole region and serves what no part covers.
    """

    def __init__(
        self, trapped: TrappedWindow, parts: Sequence[tuple[int, Window]], name: str = "window"
    ) -> None:
        super().__init__(trapped.size, name)
        self._trapped = trapped
        self._parts = tuple(parts)

    def _locate(self, offset: int) -> tuple[Window, int, int]:
        """(window, offset in it, bytes from there to its end) of what serves ``offset``."""
        for base, window in self._parts:
            if offset < base:
                return self._trapped, offset, base - offset
            if offset < base + window.size:
                return window, offset - base, base + window.size - offset
        return self._trapped, offset, self.size - offset

    def read(self, width: int, offset: int) -> int:
        self._check(width, offset)
        window, inside, _ = self._locate(offset)
        return window.read(width, inside)

    def write(self, width: int, offset: int, value: int) -> None:
        self._check(width, offset)
        window, inside, _ = self._locate(offset)
        window.write(width, inside, value)

    def post32(self, offset: int, value: int) -> None:
        self._check(32, offset)
        window, inside, _ = self._locate(offset)
        window.post32(inside, value)

    def register32(self, offset: int) -> Register:
        self._check(32, offset)
        window, inside, _ = self._locate(offset)
        return window.register32(inside)

    def _stretches(self, offset: int, size: int) -> Iterator[tuple[Window, int, int, int]]:
        """Split a run: (window, offset in it, offset in the run, size)."""
        done = 0
        while done < size:
            window, inside, left = self._locate(offset + done)
            step = min(left, size - done)
            yield window, inside, done, step
            done += step

    def _read_run(self, width: int, offset: int, out: memoryview) -> None:
        for window, inside, done, size in self._stretches(offset, len(out)):
            window._read_run(width, inside, out[done : done + size])

    def _write_run(self, width: int, offset: int, data: memoryview) -> None:
        for window, inside, done, size in self._stretches(offset, len(data)):
            window._write_run(width, inside, data[done : done + size])

    def close(self) -> None:
        self.size = 0
        for _, window in self._parts:
            window.close()
        self._trapped.close()


def _aligned_runs(offset: int, size: int, bulk: int) -> Iterator[tuple[int, int, int]]:
    """Cut a byte range into runs of naturally aligned words: (width in bits, offset, bytes).

    :param bulk: width of the widest, 32 or 64
    """
    end = offset + size
    narrower = (8, 16, 32) if bulk == 64 else (8, 16)
    for width in narrower:
        step = width // 8
        if offset % (2 * step) and offset + step <= end:
            yield width, offset, step
            offset += step
    step = bulk // 8
    whole = (end - offset) // step * step if offset % step == 0 else 0
    if whole:
        yield bulk, offset, whole
        offset += whole
    for width in reversed(narrower):
        step = width // 8
        if offset % step == 0 and offset + step <= end:
            yield width, offset, step
            offset += step


@lru_cache(maxsize=1)  # a BAR is filled in many stretches of the same size
def _repeated(value: int, size: int) -> memoryview:
    return memoryview(bytearray([value]) * size)


def _swap(value: int, width: int) -> int:
    return int.from_bytes(value.to_bytes(width // 8, "little"), "big")


def first_difference(one: bytes | bytearray, other: bytes | bytearray) -> int:
    """Index of the first byte in which two byte strings of the same length differ.

    :raises ValueError: they are equal
    """
    low, high = 0, len(one)
    if one == other:
        raise ValueError("no difference")
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] != other[low:middle]:
            high = middle
        else:
            low = middle
    return low
