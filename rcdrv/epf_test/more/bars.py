"""BARs: data lines, address lines, byte enables, ordering, retention, and presence."""

from __future__ import annotations

import contextlib
import threading
import zlib
from functools import partial

from rcdrv.epf_test.bars import (
    check_writable,
    counting,
    sampled,
    testable_bars,
    testable_size,
    verify,
    widen,
)
from rcdrv.epf_test.block import ALL_ONES
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more.case import Progress, case, skip
from rcdrv.epf_test.registers import Command
from rcdrv.errors import HostError
from rcdrv.mmio import Window, first_difference
from rcdrv.verdict import NotPassed, Reason

_INVERTED = bytes(255 - value for value in range(256))
_REST = 1.0
"""Seconds for which data must be retained."""
_TURNS = 64
_ROUNDS = 4
_SIDE_BY_SIDE = 256 << 10
"""Bytes of a BAR that each thread writes and reads."""

_WRITES = "writes patterns to the BAR, as BAR_TEST does: of the register BAR only MAGIC"


def _window(index: int, driver: EpfTest) -> tuple[Window, int]:
    """Return the BAR and the number of its bytes that may be written.

    :raises NotPassed: a skip: the BAR is disabled or reserved
    """
    check_writable(driver, index)
    bar = driver.function.bars[index]
    if bar is None or not bar.is_memory:
        raise skip(Reason.BAR_DISABLED, "BAR is disabled")
    widen(driver, index)
    return driver.function.bar(index), testable_size(driver, index)


def _expect(
    driver: EpfTest, index: int, place: int, wrote: int, hint: str, width: int | None = None
) -> None:
    """Read a value of a BAR, and compare it with the value written.

    :param width: bits, to be named in the message; default 32
    :raises NotPassed: ``data-mismatch``
    """
    got = driver.function.bar(index).read(width or 32, place)
    if got == wrote:
        return
    driver.function.check_alive()
    bits = f", {width} bits" if width else ""
    raise NotPassed(
        Reason.DATA_MISMATCH,
        f"BAR{index}+{place:#x}{bits}: wrote {wrote:#010x}, read {got:#010x}"
        f" (differs in {wrote ^ got:#x})",
        hint=hint,
    )


def walking_ones(index: int, driver: EpfTest, _progress: Progress) -> str:
    """Walk a 1 and a 0 over the data bits, then write a unique word at each power of two."""
    window, size = _window(index, driver)
    count = min(size // 4, 32)
    for background in (0, ALL_ONES):
        for first in range(0, 32, count):
            words = [1 << bit ^ background for bit in range(first, min(first + count, 32))]
            for number, word in enumerate(words):
                window.write32(4 * number, word)
            for number, word in enumerate(words):
                hint = "a data line of the endpoint's memory is stuck or tied to another"
                _expect(driver, index, 4 * number, word, hint)
    places = {0, size - 4}
    step = 4
    while step < size:
        places |= {step, size - 4 - step}
        step *= 2
    marks = {place: 0x5A00_0000 + number for number, place in enumerate(sorted(places))}
    for place, mark in marks.items():
        window.write32(place, mark)
    for place, mark in marks.items():
        hint = "an address line has no effect: does the inbound window cover the whole BAR?"
        _expect(driver, index, place, mark, hint)
    return f"32 data bits, {len(marks)} places in {size:#x} bytes"


def _addresses(offset: int, length: int) -> bytes:
    """Return words that hold their own offset, little endian; above 4 GiB folded into 32 bits."""
    base = ((offset >> 16 ^ offset >> 32) & 0xFFFF) << 16 | offset & 0xFFFF
    return counting(base, length)


def address_in_address(index: int, driver: EpfTest, progress: Progress) -> str:
    """Write its own offset to every word, verify all, and repeat with inverted data."""
    window, size = _window(index, driver)
    total, done = 4 * sum(length for _, length in sampled(size)), 0
    for inverted in (False, True):
        for writes in (True, False):
            for offset, length in sampled(size):
                driver.function.check()
                data = _addresses(offset, length)
                data = data.translate(_INVERTED) if inverted else data
                if writes:
                    window.write_block(offset, data)
                else:
                    hint = "two offsets of the BAR reach the same memory, or a bit is stuck"
                    verify(driver, index, offset, data, hint=hint)
                done += length
                progress(done, total)
    return f"{size:#x} bytes" if total == 4 * size else f"{total // 4:#x} of {size:#x} bytes"


def widths(index: int, driver: EpfTest, _progress: Progress) -> str:
    """Write bytes, words, dwords and qwords into known data; all other bytes must be unchanged.

    Done at the start, in the middle and at the end of the BAR, including its last byte.
    """
    window, size = _window(index, driver)
    unit = min(8, size)
    places = sorted({0, size // 2 // unit * unit, size - unit})
    for place in places:
        for width in (8, 16, 32, 64):
            step = width // 8
            for at in range(place, place + unit, step) if step <= unit else ():
                expected = bytearray(range(0x11, 0x11 + unit))
                window.write_block(place, bytes(expected))
                value = bytes(range(0xC1, 0xC1 + step))
                window.write(width, at, int.from_bytes(value, "little"))
                expected[at - place : at - place + step] = value
                hint = f"a write of {width} bits: does the path to the BAR keep byte enables?"
                verify(driver, index, place, bytes(expected), hint=hint)
                for read in (8, 16, 32, 64):
                    for start in range(0, unit, read // 8) if read // 8 <= unit else ():
                        wanted = int.from_bytes(expected[start : start + read // 8], "little")
                        hint = f"a read of {read} bits does not see what a longer one does"
                        _expect(driver, index, place + start, wanted, hint, read)
    return f"8 to {8 * unit} bits at {', '.join(f'{place:#x}' for place in places)}"


def order(index: int, driver: EpfTest, _progress: Progress) -> str:
    """Read each word right after writing it: a read must not pass a write (PCIe 2.4.1)."""
    window, size = _window(index, driver)
    for number in range(64):
        for place in sorted({0, size - 4}):
            word = number * 0x0101_0101 ^ place & ALL_ONES
            window.write32(place, word)
            hint = "a read overtook the write before it: does the endpoint's bus reorder them?"
            _expect(driver, index, place, word, hint)
    return "64 writes, each read back at once"


@case("bar.RETENTION", "BARs keep what was written, also while a command runs", risk=_WRITES)
def retention(driver: EpfTest, progress: Progress) -> str:
    """Fill all BARs, run a command, wait a second, then verify all BARs."""
    bars = testable_bars(driver)
    stretches = [(n, *part) for n in bars for part in sampled(_window(n, driver)[1])]
    for index, offset, length in stretches:
        driver.function.check()
        driver.function.bar(index).write_block(offset, _addresses(offset, length))
    # ADDRESS_TEST reports data that is wrong immediately.
    sums = [zlib.crc32(driver.function.bar(n).read_block(at, size)) for n, at, size in stretches]
    ran = ""
    with contextlib.suppress(NotPassed, HostError):  # other cases test commands and interrupts
        ran = " and a command" if driver.command(Command.RAISE_MSI_IRQ).answered else ""
    driver.function.pause(_REST)
    for done, (index, offset, length) in enumerate(stretches):
        driver.function.check()
        if zlib.crc32(driver.function.bar(index).read_block(offset, length)) != sums[done]:
            hint = "it was another a second ago: who else on the endpoint writes there?"
            verify(driver, index, offset, _addresses(offset, length), hint=hint)
            raise NotPassed(Reason.DATA_MISMATCH, f"BAR{index}+{offset:#x} changes", hint=hint)
        progress(done + 1, len(stretches))
    return f"{' '.join(f'BAR{index}' for index in bars)} after {_REST:g} s{ran}"


@case(
    "bar.TOGETHER",
    "BARs that are accessed in turns, or by threads at once, do not disturb each other",
    risk=_WRITES,
    needs="two BARs besides that of the registers, not reserved by CAPS",
)
def together(driver: EpfTest, progress: Progress) -> str:
    """Write and read several BARs alternately, then the mapped ones in parallel, a thread each.

    The threads' copies release Python's lock, so they do run in parallel.
    """
    bars = [index for index in testable_bars(driver) if index != driver.reg_bar]
    if len(bars) < 2:
        raise skip(Reason.BAR_DISABLED, "fewer than two BARs besides that of the registers")
    windows = {index: _window(index, driver)[0] for index in bars}
    words = {index: [0x0100_0000 * (index + 1) + n for n in range(_TURNS)] for index in bars}
    places = {index: min(_TURNS, windows[index].size // 4) for index in bars}
    for number in range(_TURNS):
        for index, window in windows.items():
            window.write32(4 * (number % places[index]), words[index][number])
    for number in range(_TURNS):
        for index in bars:
            last = max(n for n in range(_TURNS) if n % places[index] == number % places[index])
            hint = "written in turns with other BARs: do their inbound windows overlap?"
            _expect(driver, index, 4 * (number % places[index]), words[index][last], hint)
    mapped = {index: area for index in bars if (area := _largest_area(driver, index))}
    if len(mapped) >= 2:
        _by_threads(driver, mapped)
    progress(1, 1)
    said = f"{' '.join(f'BAR{index}' for index in bars)} in turns"
    return f"{said}, {len(mapped)} of them by threads" if len(mapped) >= 2 else said


def _largest_area(driver: EpfTest, index: int) -> tuple[int, int] | None:
    """Return (offset, bytes) of the largest mapped part of the BAR, limited in size."""
    areas = [area for area in driver.function.device.region(index).areas if area.size >= 8]
    if not areas:
        return None
    area = max(areas, key=lambda one: one.size)
    return area.offset, min(area.size // 8 * 8, _SIDE_BY_SIDE)


def _by_threads(driver: EpfTest, areas: dict[int, tuple[int, int]]) -> None:
    wrong: dict[int, int] = {}

    def run(index: int, offset: int, size: int) -> None:
        window = driver.function.bar(index)
        for number in range(_ROUNDS):
            data = bytes([16 * (index + 1) + number]) * size
            window.write_block(offset, data)
            found = window.read_block(offset, size)
            if found != data:
                wrong.setdefault(index, offset + first_difference(found, data))

    threads = [
        threading.Thread(target=run, args=(index, *area), daemon=True)
        for index, area in areas.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    driver.function.check_alive()
    for index, offset in wrong.items():
        raise NotPassed(
            Reason.DATA_MISMATCH,
            f"BAR{index}+{offset:#x} differs: another BAR was written to by a thread meanwhile",
            hint="do the inbound windows of the BARs overlap?",
        )


@case("bar.PRESENT", "the BARs that the part has are there, of their size", needs="a known part")
def present(driver: EpfTest, _progress: Progress) -> str:
    """Compare the BARs present with those of the part (struct pci_epc_features)."""
    part, bars = driver.part, driver.function.bars
    if not part.bars:
        raise skip(Reason.NO_CAPS, f"it is not known which BARs {part.name} has")
    missing = part.missing(bars)
    if missing:
        raise NotPassed(
            Reason.BAR_DISABLED,
            f"{part.name} has {', '.join(part.bar_text(index) for index in missing)}: not here",
            hint='does the endpoint\'s dmesg say "Failed to set BAR"? After a reset: rcdrv rescan',
        )
    for index, size in part.bars.items():
        bar = bars[index]
        if bar is None:
            continue
        if not bar.is_memory or (size and bar.size != size):
            raise NotPassed(
                Reason.BAD_CONFIG,
                f"BAR{index} is {bar.describe()} of {bar.size} bytes: {part.name} has"
                f" {part.bar_text(index)} of memory",
                hint="is the ID that of another part?",
            )
    return " ".join(f"BAR{bar.index}" for bar in bars if bar is not None)


_EACH = (
    ("WALKING_ONES", walking_ones, "no data line and no address line is stuck"),
    ("ADDRESS", address_in_address, "every word of the BAR has memory of its own"),
    ("WIDTH", widths, "byte, word, dword and qword accesses merge, up to the last byte"),
    ("ORDER", order, "a read does not overtake the write before it"),
)
_NEEDS = "the BAR, not reserved by CAPS"

CASES = (
    present,
    *(
        case(f"bar.BAR{index}.{test}", proves, risk=_WRITES, needs=_NEEDS)(partial(body, index))
        for index in range(6)
        for test, body, proves in _EACH
    ),
    retention,
    together,
)
