"""Single accesses of every width, and BAR memory filled and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from rcdrv.epf_test.bars import check_writable, testable_bars
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Reg
from rcdrv.errors import UsageError
from rcdrv.mmio import Window
from rcdrv.results.bench import Series
from rcdrv.results.distribution import Distribution
from rcdrv.verdict import NotPassed

BLOCK = 1 << 16
"""Maximum size of a block in bytes."""


def default_bar(driver: EpfTest) -> int | None:
    """Return the first BAR whose memory may be written, except the register BAR."""
    for index in testable_bars(driver):
        with suppress(NotPassed):
            check_writable(driver, index)
            if index != driver.reg_bar:
                return index
    return None


def measure(driver: EpfTest, bar: int | None, count: int) -> Iterator[Series]:
    """Measure registers by MAGIC, which the protocol does not use, and memory by ``bar``, if any.

    The memory's contents are restored.

    :param count: accesses of each kind; blocks are a hundredth of that, at least 10
    :raises NotPassed: ``bar-reserved``
    :raises UsageError: there is no such BAR, or it holds the test registers
    """
    if bar == driver.reg_bar:
        raise UsageError(f"BAR{bar} holds the test registers; name another one")
    if bar is not None:
        check_writable(driver, bar)
    registers = driver.function.bar(driver.reg_bar)
    magic = registers.register32(Reg.MAGIC)

    def read() -> None:
        _ = magic[0]

    def write() -> None:
        magic[0] = 0

    def write_and_flush() -> None:
        magic[0] = 0
        _ = magic[0]

    for name, access in (
        ("register read 32", read),
        ("register write 32", write),
        ("register write 32 + read", write_and_flush),
    ):
        yield _timed(driver, name, access, count)
    if bar is None:
        return
    window = driver.function.bar(bar)
    size = min(window.size, BLOCK) & ~7
    before = window.read_block(0, size)
    try:
        yield from _memory(driver, window, size, count)
    finally:
        window.write_block(0, before)


def _memory(driver: EpfTest, window: Window, size: int, count: int) -> Iterator[Series]:
    for width in (8, 16, 32, 64):
        for name, access in (
            ("read", partial(window.read, width, 0)),
            ("write", partial(window.write, width, 0, 0)),
        ):
            yield _timed(driver, f"{window.name} {name} {width}", access, count)
    blocks = max(10, count // 100)
    yield _timed(
        driver, f"{window.name} fill", lambda: window.fill(0, size, 0xA0), blocks, size=size
    )
    yield _timed(
        driver, f"{window.name} read block", lambda: window.read_block(0, size), blocks, size=size
    )


def _timed(
    driver: EpfTest, name: str, access: Callable[[], object], count: int, *, size: int = 0
) -> Series:
    """Return durations, including the clock's own (``clock_ns`` of the setup)."""
    now = driver.function.clock.now_ns
    samples = []
    for number in range(count):
        if number % 64 == 0 or size:
            driver.function.check()
        start = now()
        access()
        samples.append(now() - start)
    return Series(name, Distribution.of(samples), size)
