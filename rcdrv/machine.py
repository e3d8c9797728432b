"""Machine code for two operations that Python lacks: a memory barrier, and a copy by words.

They are put into an executable page of their own. Where the system forbids such a page, or the
processor is another, the barrier is membarrier(2) and the copy a loop over items of a cast
``memoryview``, each of which CPython compiles to a single load or store as well.
"""

from __future__ import annotations

import mmap
import os
import sys
from array import array
from collections import deque
from collections.abc import Callable
from functools import cache

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Any, Literal

Copy = Callable[[memoryview, memoryview, int], None]
"""Copies words to a target, first, from a source; third the bytes of a word, 4 or 8."""

_X86 = ("x86_64", "i686", "amd64")

# What barrier() is on processors that order weakly. x86 keeps stores to memory and to devices in
# program order, so nothing is needed there.
_BARRIER = {
    "aarch64": "9f3f03d5 c0035fd6",  # dsb sy; ret
    "riscv64": "0f00f00f 67800000",  # fence iorw, iorw; ret
}

# copy(target, source, count): one load and one store a word of 32 or 64 bits, upwards. The string
# instructions of x86 may do it in other widths, and what updates its address register on arm64, or
# loads and stores pairs, cannot be emulated for a guest whose device memory is trapped.
_COPY = {
    "x86_64": "4885d2"  # test rdx, rdx
    "7411"  # jz 2f
    "8b06"  # 1: mov eax, [rsi]
    "8907"  # mov [rdi], eax
    "4883c604"  # add rsi, 4
    "4883c704"  # add rdi, 4
    "48ffca"  # dec rdx
    "75ef"  # jnz 1b
    "c3",  # 2: ret
    "aarch64": "e20000b4"  # cbz x2, 2f
    "230040b9"  # 1: ldr w3, [x1]
    "030000b9"  # str w3, [x0]
    "21100091"  # add x1, x1, 4
    "00100091"  # add x0, x0, 4
    "420400f1"  # subs x2, x2, 1
    "61ffff54"  # b.ne 1b
    "c0035fd6",  # 2: ret
}
_COPY64 = {
    "x86_64": "4885d2"  # test rdx, rdx
    "7413"  # jz 2f
    "488b06"  # 1: mov rax, [rsi]
    "488907"  # mov [rdi], rax
    "4883c608"  # add rsi, 8
    "4883c708"  # add rdi, 8
    "48ffca"  # dec rdx
    "75ed"  # jnz 1b
    "c3",  # 2: ret
    "aarch64": "e20000b4"  # cbz x2, 2f
    "230040f9"  # 1: ldr x3, [x1]
    "030000f9"  # str x3, [x0]
    "21200091"  # add x1, x1, 8
    "00200091"  # add x0, x0, 8
    "420400f1"  # subs x2, x2, 1
    "61ffff54"  # b.ne 1b
    "c0035fd6",  # 2: ret
}

# membarrier(2)'s number, where it is not that of all newer processors. Of the 32-bit ones that are
# not x86, arm is the one with PCIe.
_MEMBARRIER = {"ppc64": 365, "ppc64le": 365, "s390x": 356}
_MEMBARRIER_ARM = 389

_HOST_BITS = 64 if sys.maxsize > 1 << 32 else 32

_pages: list[mmap.mmap] = []


def barrier() -> None:
    """Order all earlier memory accesses before all later ones, device memory included.

    Call it between filling a DMA buffer and the register write that sends the device to
    it, and between an interrupt and reading what the device wrote.
    """
    _barrier()()


def copy_words(target: memoryview, source: memoryview, step: int = 4) -> None:
    """Copy words, each with one load and one store of its width, in ascending order.

    Both are views of bytes; a view of device memory starts at a multiple of ``step``.

    :param step: bytes of a word: 4, or 8 on a 64-bit host
    :raises ValueError: the lengths differ, or are not a multiple of ``step``
    """
    if len(target) != len(source) or len(target) % step:
        raise ValueError(f"{len(source)} bytes do not go word by word into {len(target)}")
    if len(target):
        _copier()(target, source, step)


@cache
def _barrier() -> Callable[[], object]:
    machine = os.uname().machine
    if machine.lower() in _X86:
        return _nothing
    compiled = _executable(_instructions(_BARRIER))
    if compiled is not None:
        return compiled
    # smp_mb() on every processor: orders memory, which is enough for devices in the processor's
    # own shareability domain.
    import ctypes

    libc = ctypes.CDLL(None)
    number = _MEMBARRIER.get(machine, 283) if _HOST_BITS == 64 else _MEMBARRIER_ARM
    return lambda: libc.syscall(number, 1, 0, 0)  # MEMBARRIER_CMD_GLOBAL


def _nothing() -> None:
    """Program order is enough."""


@cache
def _copier() -> Copy:
    from ctypes import byref, c_char, c_size_t, c_void_p

    # Looked up here, once: a copy of a few words takes less than an import statement.
    view_of = c_char.from_buffer

    arguments = c_void_p, c_void_p, c_size_t
    compiled = _executable(_instructions(_COPY), *arguments)
    compiled64 = _executable(_instructions(_COPY64), *arguments)
    if compiled is None or compiled64 is None:
        return _copy_items

    def copy(target: memoryview, source: memoryview, step: int) -> None:
        # A pointer into the bytes is valid while the view is.
        data = bytes(source) if source.readonly else byref(view_of(source))
        loop = compiled if step == 4 else compiled64
        loop(byref(view_of(target)), data, len(target) // step)

    return copy


def _copy_items(target: memoryview, source: memoryview, step: int) -> None:
    """The copy without machine code: each item is one access, made by ``memoryview`` itself."""
    form: Literal["I", "Q"] = "I" if step == 4 else "Q"
    words = target.cast(form)
    deque(map(words.__setitem__, range(len(words)), array(form, source.cast(form))), maxlen=0)


def _instructions(table: dict[str, str]) -> str:
    """Return the entry for this processor; empty for a 32-bit Python, also on a 64-bit kernel."""
    return table.get(os.uname().machine, "") if _HOST_BITS == 64 else ""


def _executable(code: str, *arguments: Any) -> Callable[..., object] | None:
    """Return the code as a function with arguments of these ctypes; None if not possible."""
    if not code:
        return None
    import ctypes

    instructions = bytes.fromhex(code)
    # Written first and made executable after: the kernel then synchronises the instruction
    # cache (arch/arm64/mm/flush.c), and no page is ever writable and executable at once.
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[: len(instructions)] = instructions
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 1 | 4):  # READ | EXEC
        return None
    _pages.append(page)
    return ctypes.CFUNCTYPE(None, *arguments)(address)
