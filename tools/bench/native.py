"""The loops of native.c, compiled for this run. The guest gets a copy of the library."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).parent / "native.c"
LIBRARY = "loops.so"

Buffer = mmap.mmap | memoryview | bytearray


def build(folder: Path) -> Path:
    """Compile into ``folder``.

    :raises SystemExit: there is no C compiler
    """
    library = folder / LIBRARY
    try:
        subprocess.run(
            ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, SOURCE], check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"bench: cannot compile {SOURCE.name} ({error}); install a C compiler"
        ) from error
    return library


class Native:
    """The functions of native.c, on writable memory of this process."""

    SLEEP, SPIN, POLL = range(3)
    NOBODY, END = -1, -2

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("stores", "loads", "fill_and_verify", "rings", "echo"):
            getattr(self._library, name).restype = ctypes.c_uint64

    def stores(self, memory: Buffer, count: int) -> float:
        """Return nanoseconds per store, of ``count`` stores to the first word."""
        took: int = self._library.stores(_address(memory), ctypes.c_uint32(5), _u64(count))
        return took / count

    def loads(self, memory: Buffer, count: int) -> float:
        """Return nanoseconds per load, of ``count`` loads of the first word."""
        took: int = self._library.loads(_address(memory), _u64(count))
        return took / count

    def fill_and_verify(self, memory: Buffer, byte: int) -> int:
        """Set all words of ``memory`` to ``byte`` and read them back; return nanoseconds."""
        wrong = _u64(0)
        took: int = self._library.fill_and_verify(
            _address(memory),
            ctypes.c_uint32(byte * 0x01010101),
            _u64(len(memory) // 4),
            ctypes.byref(wrong),
        )
        assert not wrong.value, "the memory does not hold what was written"
        return took

    def endpoint(self, registers: Buffer, doorbell: Buffer, eventfd: ctypes.c_int) -> None:
        """Answer commands and rings until ``eventfd`` is :attr:`END`; runs in its own thread."""
        self._library.endpoint(_address(registers), _address(doorbell), ctypes.byref(eventfd))

    def rings(
        self,
        bar: Buffer,
        offset: int,
        data: int,
        registers: Buffer,
        eventfd: int,
        how: int,
        count: int,
    ) -> Sequence[int]:
        """Ring ``count`` times; return the latency of each ring in nanoseconds.

        :param how: wait for the answer: :attr:`SLEEP`, :attr:`SPIN` or :attr:`POLL`
        """
        latencies = (ctypes.c_uint64 * count)()
        missed = self._library.rings(
            _address(bar, offset),
            ctypes.c_uint32(data),
            _address(registers),
            eventfd,
            how,
            latencies,
            _u64(count),
        )
        assert not missed, f"{missed} of {count} rings were not answered"
        return list(latencies)

    def echo(self, count: int) -> Sequence[int]:
        """Send ``count`` messages to another process; return the latency of each reply in ns."""
        latencies = (ctypes.c_uint64 * count)()
        missed = self._library.echo(latencies, _u64(count))
        assert not missed, f"{missed} of {count} messages were not answered"
        return list(latencies)


def _address(memory: Buffer, offset: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory, offset)))


def _u64(value: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(value)
