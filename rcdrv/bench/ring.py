"""Latency from the doorbell to its acknowledgement, and of the write alone."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.results.bench import Result, Series
from rcdrv.results.distribution import Distribution

BURST = 64
"""Rings per burst, measured as one."""


class Method(Enum):
    """Detection of the acknowledgement."""

    INTERRUPT = "interrupt"
    """Sleep until the interrupt's eventfd is readable."""
    SPIN = "spin"
    """Poll the eventfd without sleeping."""
    POLL = "poll"
    """Poll STATUS; no interrupt is armed."""
    WRITE = "write"
    """None: the time of the posted write."""
    BURST = "burst"
    """None: the time of each write of a burst."""


def default_methods(driver: EpfTest) -> tuple[Method, ...]:
    """Return the methods that the endpoint and ``irq`` allow."""
    if driver.irq_choice is IrqChoice.POLL or driver.irq_kind is None:
        return Method.POLL, Method.WRITE, Method.BURST
    return tuple(Method)


def measure(
    driver: EpfTest,
    method: Method,
    count: int,
    result: Result,
    *,
    expect_bar: int | None = None,
    force: bool = False,
) -> Series:
    """Enable the doorbell, ring ``count`` times, disable it.

    :param result: records whether the doorbell was left enabled
    :param expect_bar, force: see :class:`~rcdrv.epf_test.doorbell.Doorbell`
    :raises NotPassed: the first ring without acknowledgement, or what
        :class:`~rcdrv.epf_test.doorbell.Doorbell` raises
    """
    driver.use_irq(IrqChoice.POLL if method is Method.POLL else driver.irq_choice)
    driver.spin = method is Method.SPIN
    doorbell = Doorbell(driver, expect_bar=expect_bar, force=force)
    try:
        with doorbell:
            rounds = {Method.WRITE: _writes, Method.BURST: _bursts}.get(method, _rings)
            samples = list(rounds(driver, doorbell, count))
            doorbell.settle()
    finally:
        result.left_enabled = result.left_enabled or doorbell.left_enabled
        driver.spin = False
        driver.use_irq(driver.irq_choice)
    return Series(method.value, Distribution.of(samples))


def _rings(driver: EpfTest, doorbell: Doorbell, count: int) -> Iterator[int]:
    for number in range(-_warm_up(count), count):
        driver.function.check()
        answer = doorbell.ring()
        failure = doorbell.judge(answer)
        if failure is not None:
            failure.message = f"{failure.message} (ring {max(0, number) + 1} of {count})"
            raise failure
        assert answer.latency_ns is not None
        if number >= 0:
            yield answer.latency_ns


def _writes(driver: EpfTest, doorbell: Doorbell, count: int) -> Iterator[int]:
    now = driver.function.clock.now_ns
    for number in range(-_warm_up(count), count):
        if number % BURST == 0:
            driver.function.check()
        start = now()
        doorbell.write()
        end = now()
        if number >= 0:
            yield end - start


def _bursts(driver: EpfTest, doorbell: Doorbell, count: int) -> Iterator[int]:
    now = driver.function.clock.now_ns
    for _ in range(max(1, count // BURST)):
        driver.function.check()
        start = now()
        doorbell.burst(BURST)
        yield (now() - start) // BURST


def _warm_up(count: int) -> int:
    """Ring first for the caches and, on a sleeping link, to wake it (ASPM)."""
    return min(100, count // 10)
