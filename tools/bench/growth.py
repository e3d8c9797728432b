"""Growth of cost with the size of a BAR, the number of vectors and the number of rings."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rcdrv.address import open_function
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.bars import bar_test
from rcdrv.epf_test.doorbell import Location
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.ring import RingPlan, RingReport, RingRun, ring_blind
from tools.bench.measure import Cost

_LAYOUT = """
vendor = 0x104c
device = 0xb500
msi = 32
msix = 2048
[bar0]
type = "programmable"
[bar2]
type = "fixed"
size = {size}
[doorbell]
backend = "embedded"
"""


def costs(*, quick: bool) -> Iterator[Cost]:
    """Measure the points of each curve."""
    largest = 1 << (26 if quick else 30)
    for exponent in range(12, 31, 3):
        if 1 << exponent <= largest:
            yield from _bar(1 << exponent)
    yield from _vectors((1, 32, 256) if quick else (1, 32, 256, 2048))
    yield from _rings(4 if quick else 6)


def _bar(size: int) -> Iterator[Cost]:
    with tempfile.TemporaryDirectory(prefix="rcdrv-bench-") as folder:
        path = Path(folder) / "layout.toml"
        path.write_text(_LAYOUT.format(size=size))
        with open_function(f"sim:{path}") as function:
            driver = EpfTest(function)
            yield Cost("map a BAR", size, _seconds(lambda: function.bar(2)) * 1e6, "us")
            bar_test(2, driver)  # the first write allocates the memory of a sparse file
            took = _seconds(lambda: bar_test(2, driver))
            yield Cost("fill + verify a BAR", size, took * 1e3, "ms")


def _vectors(counts: tuple[int, ...]) -> Iterator[Cost]:
    with tempfile.TemporaryDirectory(prefix="rcdrv-bench-") as folder:
        path = Path(folder) / "layout.toml"
        path.write_text(_LAYOUT.format(size=4096))
        with open_function(f"sim:{path}") as function:
            driver = EpfTest(function, irq=IrqChoice.MSIX)
            for count in counts:
                driver.disarm()
                took = _seconds(partial(driver.arm, count))
                yield Cost("arm MSI-X, per vector", count, took * 1e6 / count, "us")
                took = min(_seconds(driver.drop_interrupts) for _ in range(5))
                yield Cost("poll for interrupts, by number of vectors", count, took * 1e6, "us")


def _rings(decades: int) -> Iterator[Cost]:
    with open_function("sim:rk3588") as function:
        memory = Location(bar=1, offset=0, data=0)

        def blindly(count: int) -> None:
            for _ in ring_blind(function, memory, count=count):
                pass

        for count in (10**decade for decade in range(decades + 1)):
            took = _seconds(partial(blindly, count))
            yield Cost("ring a mapped BAR blindly, each", count, took * 1e9 / count, "ns")
        driver = EpfTest(function)
        what = "enable, ring, await each answer, disable; a ring"
        for count in (10**decade for decade in range(decades - 1)):
            run = RingRun(driver, RingPlan(count=count), RingReport(keep=False))
            took = _seconds(run.run)
            assert run.report.acknowledged == count, run.report.failure()
            yield Cost(what, count, took * 1e6 / count, "us")


def _seconds(operation: Callable[[], object]) -> float:
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start
