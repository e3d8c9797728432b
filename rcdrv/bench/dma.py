"""Transfers: the endpoint reads, writes or copies this host's memory, and every byte is checked."""

from __future__ import annotations

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.transfer import Direction, Placement, transfers
from rcdrv.results.bench import Series
from rcdrv.results.distribution import Distribution


def measure(driver: EpfTest, direction: Direction, size: int, dma: bool, count: int) -> Series:
    """Measure ``count`` transfers of ``size`` bytes, from COMMAND to its answer.

    The time includes the endpoint's tick of a millisecond or more, and its checksum.

    :param dma: use the endpoint's DMA engine, else its processor
    :raises NotPassed: the first failure
    :raises UsageError: the size could harm the endpoint
    """
    samples = []
    placement = Placement(size)
    with transfers(driver, direction, dma, [placement]) as transfer:
        for _ in range(count):
            driver.function.check()
            answer = transfer(placement)
            assert answer.latency_ns is not None
            samples.append(answer.latency_ns)
    engine = "dma" if dma else "memcpy"
    return Series(f"{engine} {direction.value} {size}", Distribution.of(samples), size)
