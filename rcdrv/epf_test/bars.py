"""BAR tests: write and verify patterns in one BAR, in all BARs, and in the halves of a BAR.

The patterns are those of ``pci_endpoint_test_bar()``, ``..._bars()`` and ``..._bar_subrange()`` in
``drivers/misc/pci_endpoint_test.c``.
"""

from __future__ import annotations

import contextlib
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial

from rcdrv.epf_test.block import ALL_ONES, stale_doorbell
from rcdrv.epf_test.doorbell import LEFT_ENABLED_HINT, NOT_MEMORY_HINT
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.mismatch import compare
from rcdrv.epf_test.probe import check_caps_order
from rcdrv.epf_test.registers import ANSWERS, Caps, Command, Reg, Status
from rcdrv.errors import RcdrvError
from rcdrv.mmio import Window
from rcdrv.verdict import NotPassed, Reason, skip

CHUNK = 1 << 16
"""Bytes per copy. Cancellation is checked between copies: each read of a removed endpoint may take
a completion time-out of up to 50 ms."""

_PAGE = 4096

WHOLE = 1 << 30
"""Largest BAR in bytes that is tested completely by default."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total)."""

Stretches = Callable[[int], Iterable[tuple[int, int]]]
"""Return the (offset, length) pairs to test of a size, ascending, each a multiple of 4 bytes."""


def no_progress(_done: int, _total: int) -> None:
    """Discard progress."""


def chunks(size: int) -> Iterator[tuple[int, int]]:
    """Yield the whole range in stretches of at most :data:`CHUNK` bytes."""
    for offset in range(0, size, CHUNK):
        yield offset, min(CHUNK, size - offset)


def sampled(size: int) -> Iterator[tuple[int, int]]:
    """Yield all of a BAR up to :data:`WHOLE`; of a larger one each power of two, and the end.

    BAR reads reach about 10 MB/s: 1 GiB takes minutes, and a claimed 2^62 bytes never end.
    """
    if size <= WHOLE:
        yield from chunks(size)
        return
    yield 0, CHUNK
    offset = CHUNK
    while offset < size:
        yield offset, CHUNK
        offset *= 2
    yield size - CHUNK, CHUNK


def outline(size: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last page, and a few words at each power of two between them.

    This covers every address line.
    """
    yield 0, min(size, _PAGE)
    offset = _PAGE
    while offset < size - _PAGE:
        yield offset, 64
        offset *= 2
    if size > _PAGE:
        yield size - _PAGE, _PAGE


def _how_much(size: int, stretches: Stretches) -> str:
    tested = sum(length for _, length in stretches(size)) if size > WHOLE else size
    return f"{size:#x} bytes" if tested == size else f"{tested:#x} of {size:#x} bytes, in parts"


def bar_test(
    index: int, driver: EpfTest, progress: Progress = no_progress, *, stretches: Stretches = sampled
) -> str:
    """Fill a BAR with its byte pattern and read it back, stretch by stretch.

    :returns: the number of bytes tested, as text
    :raises NotPassed: a skip (``bar-reserved``, ``bar-disabled``), or ``data-mismatch``
    """
    check_writable(driver, index)
    window = _present(driver, index)
    size = testable_size(driver, index)
    widen(driver, index)
    for offset, length in stretches(size):
        driver.function.check()
        window.fill(offset, length, 0xA0 + index)
        pattern = bytes([0xA0 + index]) * length
        verify(driver, index, offset, pattern, partial(_fills, length))
        progress(offset + length, size)
    return _how_much(size, stretches)


def consecutive_bar_test(
    driver: EpfTest, progress: Progress = no_progress, *, stretches: Stretches = sampled
) -> str:
    """Write BAR number and offset into every word of all BARs, then verify all BARs.

    Detects BARs that share memory, which :func:`bar_test` cannot.

    :returns: the BARs tested, as text
    :raises NotPassed: ``data-mismatch``
    """
    _check_caps(driver)
    bars = testable_bars(driver)
    for index in bars:
        check_writable(driver, index)
    sizes = {index: testable_size(driver, index) for index in bars}
    total, done = 2 * sum(sizes.values()), 0
    for index in bars:
        widen(driver, index)
        for offset, length in stretches(sizes[index]):
            driver.function.check()
            driver.function.bar(index).write_block(offset, offset_pattern(index, offset, length))
            done += length
            progress(done, total)
    for index in bars:
        for offset, length in stretches(sizes[index]):
            driver.function.check()
            others = partial(_offset_patterns, bars, offset, length)
            verify(driver, index, offset, offset_pattern(index, offset, length), others)
            done += length
            progress(done, total)
    return " ".join(f"BAR{index}" for index in bars)


def subrange_test(
    index: int, driver: EpfTest, progress: Progress = no_progress, *, stretches: Stretches = sampled
) -> str:
    """Have the endpoint swap the two halves of the BAR, and verify its signature in each.

    Every accepted SETUP is followed by CLEAR: a bus reset or an unbind before CLEAR would disable
    the BAR until the endpoint function is created again.

    :raises NotPassed: a skip (``bar-reserved``, ``no-caps``, ``register-bar``,
        ``bar-disabled``, ``no-resource``), or the failure
    """
    check_writable(driver, index)
    if not driver.announces(Caps.SUBRANGE_MAPPING):
        check_caps_order(driver.caps)
        raise skip(Reason.NO_CAPS, "Subrange map is not supported")
    if index == driver.reg_bar:
        raise skip(Reason.REGISTER_BAR, "BAR is test register space")
    window = _present(driver, index)
    try:
        _subrange_command(driver, index, Command.BAR_SUBRANGE_SETUP)
        _check_halves(driver, index, window, progress, stretches)
    except BaseException as error:
        if not isinstance(error, NotPassed) or error.reason not in _NOT_SET_UP:
            _clear_anyway(driver, index)
        raise
    with driver.function.cancel.deferred():
        _subrange_command(driver, index, Command.BAR_SUBRANGE_CLEAR)
    return f"2 halves of {_how_much(window.size // 2, stretches)}"


_NOT_SET_UP = (Reason.SUBRANGE_FAILED, Reason.NO_RESOURCE, Reason.STUCK_COMMAND)


def _clear_anyway(driver: EpfTest, index: int) -> None:
    """Send CLEAR after another failure, without replacing that failure."""
    with driver.function.cancel.deferred(), contextlib.suppress(RcdrvError):
        answer = driver.settle()
        if answer is None or not answer.status & Status.BAR_SUBRANGE_SETUP_FAIL:
            _subrange_command(driver, index, Command.BAR_SUBRANGE_CLEAR)


def _check_halves(
    driver: EpfTest, index: int, window: Window, progress: Progress, stretches: Stretches
) -> None:
    half = window.size // 2

    def check(number: int, first: int, offset: int, length: int) -> None:
        """Verify that the half holds its own byte: ``first`` in half 0, ``first + 1`` in half 1."""
        own, other = (bytes([first + which & 0xFF]) * length for which in (number, 1 - number))
        verify(driver, index, number * half + offset, own, lambda: {"the other half": other})

    try:
        for number in (0, 1):
            for offset in (0, half - 4):
                check(number, 0x50 + 8 * index, offset, 4)
    except NotPassed:
        _check_swapped(index, window)
        raise
    widen(driver, index)
    pattern = 0xA0 + 8 * index
    for number in (0, 1):
        for offset, length in stretches(half):
            driver.function.check()
            window.fill(number * half + offset, length, pattern + number & 0xFF)
    for number in (0, 1):
        for offset, length in stretches(half):
            driver.function.check()
            check(number, pattern, offset, length)
            progress(number * half + offset + length, window.size)


def _check_swapped(index: int, window: Window) -> None:
    """Detect halves that were not swapped, among the causes of a wrong signature.

    :raises NotPassed: ``data-mismatch``: each half shows the other's signature
    """
    half = window.size // 2
    for number in (0, 1):
        wrong = bytes([0x50 + 8 * index + 1 - number]) * 4
        for offset in (0, half - 4):
            if window.read_block(number * half + offset, 4) != wrong:
                return
    raise NotPassed(
        Reason.DATA_MISMATCH,
        f"BAR{index}: the halves were not swapped: each shows what the other should",
        hint="the endpoint answers SETUP_SUCCESS: does its controller map subranges in the order"
        " of the submap, or as one window over the whole BAR?",
    )


def _subrange_command(driver: EpfTest, index: int, command: Command) -> None:
    """Send a subrange command.

    :raises NotPassed: it failed, or its interrupt was lost
    """
    name = str(command.name)
    answer = driver.command(command, {Reg.SIZE: index})
    good = Status.BAR_SUBRANGE_SETUP_SUCCESS | Status.BAR_SUBRANGE_CLEAR_SUCCESS
    if answer.good and not answer.status & ANSWERS[command] & good:
        if answer.status & Status.NO_RESOURCE:
            raise skip(Reason.NO_RESOURCE, "Not enough inbound windows")
        raise NotPassed(
            Reason.SUBRANGE_FAILED,
            f"{name}: the endpoint could not do it for BAR{index}",
            hint="the halves may be smaller than what its controller can map (its dmesg says so)",
        )
    if not answer.good or answer.irq_lost:
        raise explain(driver, answer, name)


def offset_pattern(index: int, offset: int, length: int) -> bytes:
    """Return words with 0xa0 + BAR in the top 8 bits and their offset in the low 24.

    Little endian.
    """
    pattern = bytearray()
    while len(pattern) < length:
        # Within 64 KiB only the low half of the words counts up.
        high, low = divmod((offset + len(pattern)) % 2**24, 2**16)
        words = bytearray(_low_halves()[low : low + length - len(pattern)])
        words[2::4] = bytes([high]) * (len(words) // 4)
        words[3::4] = bytes([0xA0 + index]) * (len(words) // 4)
        pattern += words
    return bytes(pattern)


@cache
def _low_halves() -> bytes:
    return counting(0, 1 << 16)


def counting(first: int, length: int) -> bytes:
    """Return words that count up from ``first`` in steps of 4, little endian."""
    words = array("I", range(first, first + length, 4))
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def _fills(length: int) -> dict[str, bytes]:
    """Return what :func:`bar_test` writes to each BAR."""
    return {f"BAR{index}": bytes([0xA0 + index]) * length for index in range(6)}


def _offset_patterns(bars: Sequence[int], offset: int, length: int) -> dict[str, bytes]:
    """Return what :func:`consecutive_bar_test` writes to each BAR."""
    return {f"BAR{index}": offset_pattern(index, offset, length) for index in bars}


def is_reserved(driver: EpfTest, index: int) -> bool:
    """Return whether CAPS or the table of parts reserves the BAR."""
    return driver.announces(Caps.BAR0_RESERVED << index) or index in driver.part.untestable_bars


def testable_bars(driver: EpfTest) -> list[int]:
    """Return the memory BARs that are not reserved."""
    return [
        bar.index
        for bar in driver.function.bars
        if bar is not None and bar.is_memory and not is_reserved(driver, bar.index)
    ]


def check_writable(driver: EpfTest, index: int) -> None:
    """Check that a test may write to the BAR.

    :raises NotPassed: a skip, the BAR is reserved; or a doorbell is mapped there
    """
    _check_caps(driver)
    if driver.announces(Caps.BAR0_RESERVED << index):
        raise skip(Reason.BAR_RESERVED, "BAR is reserved")
    if is_reserved(driver, index):
        raise skip(
            Reason.BAR_RESERVED,
            f"BAR is reserved on {driver.part.name}, though CAPS does not announce it",
        )
    # A pattern would hit registers of the endpoint's interrupt controller, or of its DMA engine.
    if stale_doorbell(driver) == index:
        raise NotPassed(
            Reason.DISABLE_FAILED,
            f"BAR{index} shows the doorbell that an earlier run left enabled, so nothing is"
            " written there",
            hint=LEFT_ENABLED_HINT,
        )
    if index in driver.not_memory:
        raise NotPassed(
            Reason.DISABLE_FAILED,
            f"BAR{index} still shows the doorbell's page, as DISABLE_DOORBELL failed, so nothing is"
            " written there",
            hint=NOT_MEMORY_HINT,
        )


def _check_caps(driver: EpfTest) -> None:
    """Reject CAPS of all ones, which would reserve every BAR.

    :raises NotPassed: ``all-ones``
    """
    if driver.caps == ALL_ONES:
        raise driver.all_ones()


def testable_size(driver: EpfTest, index: int) -> int:
    """Return the bytes that a test may write: of the register BAR only MAGIC, which is unused."""
    return 4 if index == driver.reg_bar else driver.function.bar(index).size


def widen(driver: EpfTest, index: int) -> None:
    """Use 64-bit accesses for the BAR if a trial write of its first 8 bytes arrives intact."""
    if testable_size(driver, index) >= 8 and driver.function.widen(index) is False:
        driver.trace(f"BAR{index}: 64-bit accesses do not arrive, so words have 32 bits here")


def _present(driver: EpfTest, index: int) -> Window:
    function, part = driver.function, driver.part
    if function.bars[index] is None:
        message = "BAR is disabled"
        if index in part.missing(function.bars):
            # pci_epf_test_set_bar() goes on without a BAR that the controller refuses.
            message += f", though {part.name} has {part.bar_text(index)}: does the endpoint's"
            message += f' dmesg say "Failed to set BAR{index}"?'
        raise skip(Reason.BAR_DISABLED, message)
    return driver.function.bar(index)


_MAPPING = "is the endpoint's inbound mapping of this BAR right, and its memory really there?"


def verify(
    driver: EpfTest,
    index: int,
    offset: int,
    expected: bytes,
    others: Callable[[], Mapping[str, bytes]] = dict,
    hint: str = _MAPPING,
) -> None:
    """Read a stretch of a BAR and compare it.

    :param others: as for :func:`~rcdrv.epf_test.mismatch.compare`
    :raises NotPassed: ``data-mismatch``
    :raises DeviceLost: the device is gone and reads all ones
    """
    found = driver.function.bar(index).read_block(offset, len(expected))
    mismatch = compare(expected, found, base=offset, others=others)
    if mismatch is None:
        return
    driver.function.check_alive()
    raise NotPassed(Reason.DATA_MISMATCH, f"BAR{index} {mismatch}", hint=hint)
