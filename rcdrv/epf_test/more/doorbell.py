"""The doorbell: bursts, every vector as its answer, and enabling again and again."""

from __future__ import annotations

from rcdrv.device import IrqKind
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.more.case import MoreCase, Progress, case, skip
from rcdrv.epf_test.registers import Reg, Status
from rcdrv.verdict import NotPassed, Reason

_BURSTS = (1, 2, 10, 100, 1000)
_CYCLES = 16
_QUIET = 0.05
"""Seconds without an acknowledgement after which a burst has ended."""


def _works(driver: EpfTest) -> None:
    """:raises NotPassed: a skip: it cannot be enabled at all, which is not for these to judge"""
    try:
        with Doorbell(driver):
            pass
    except NotPassed as why:
        if why.reason is not Reason.ENABLE_FAILED:
            raise
        message = "no doorbell can be enabled, which DOORBELL_TEST judges"
        raise skip(why.reason, message) from None


def _ring(doorbell: Doorbell, what: str) -> None:
    failure = doorbell.judge(doorbell.ring())
    if failure is not None:
        failure.message = f"{what}: {failure.message}"
        raise failure


def bursts(driver: EpfTest, progress: Progress) -> str:
    """Ring many times without a pause: 1 to as many acknowledgements, and the next ring works.

    Rings that come before the endpoint has taken the last one coalesce: its interrupt is pending
    or it is not.
    """
    _works(driver)
    seen = []
    with Doorbell(driver) as doorbell:
        for done, count in enumerate(_BURSTS, 1):
            driver.request_irq()
            driver.write(Reg.STATUS, 0)
            driver.drop_interrupts()
            driver.count_strays()
            start = driver.function.clock.now_ns()
            doorbell.burst(count)
            driver.unanswered = 0  # so that stray counts them all
            answer = driver.wait_answer(start, Status.DOORBELL_SUCCESS)
            if not answer.answered or answer.irq_lost:
                raise explain(driver, answer, f"{count} rings at once")
            acknowledged = sum(answer.vectors.values())
            while True:
                late = driver.stray
                driver.function.pause(_QUIET)
                driver.drop_interrupts()
                if driver.stray == late:
                    break
            acknowledged += driver.stray
            if driver.irq_kind in (IrqKind.MSI, IrqKind.MSIX) and acknowledged > count:
                raise NotPassed(
                    Reason.IRQ_TWICE, f"{acknowledged} acknowledgements for {count} rings at once"
                )
            _ring(doorbell, f"a ring after {count} at once")
            doorbell.settle()
            seen.append(f"{acknowledged}/{count}")
            progress(done, len(_BURSTS))
    return f"acknowledged: {', '.join(seen)}"


def vectors(driver: EpfTest, progress: Progress) -> str:
    """Ask for each vector as the answer of a ring: the handler raises what is asked for then."""
    if driver.irq_kind not in (IrqKind.MSI, IrqKind.MSIX):
        raise skip(Reason.NO_VECTORS, f"{driver.irq_name} has no vectors to choose from")
    _works(driver)
    ready = driver.arm(driver.function.device.irq_count(driver.irq_kind))
    with Doorbell(driver) as doorbell:
        for vector in range(ready):
            driver.request_irq(vector)
            driver.write(Reg.STATUS, 0)
            driver.drop_interrupts()
            start = driver.function.clock.now_ns()
            doorbell.write()
            answer = driver.wait_answer(start, Status.DOORBELL_SUCCESS)
            if not answer.answered or answer.irq_lost:
                raise explain(driver, answer, f"a ring to be answered by vector {vector + 1}")
            if set(answer.vectors) != {vector}:
                fired = ", ".join(str(other + 1) for other in sorted(answer.vectors))
                raise NotPassed(
                    Reason.WRONG_VECTOR,
                    f"a ring to be answered by {driver.irq_name} vector {vector + 1}: vector"
                    f" {fired} fired",
                    hint="does the endpoint's handler read IRQ_NUMBER at the ring, or before?",
                )
            progress(vector + 1, ready)
    return f"{ready} vectors"


def cycles(driver: EpfTest, progress: Progress) -> str:
    """Enable, ring, disable, many times: nothing of it is used up."""
    _works(driver)
    for number in range(1, _CYCLES + 1):
        what = f"round {number} of {_CYCLES}"
        try:
            with Doorbell(driver) as doorbell:
                _ring(doorbell, what)
                doorbell.settle()
        except NotPassed as error:
            if error.reason is Reason.ENABLE_FAILED:
                error.message = f"{what}: {error.message}"
                error.hint = "DISABLE_DOORBELL leaks: an interrupt, or an inbound window, is not"
                error.hint += " given back on the endpoint; it has to be bound anew"
            raise
        progress(number, _CYCLES)
    return f"{_CYCLES} rounds"


_RINGS = "enables its doorbell and rings, as DOORBELL_TEST does"
_DOORBELL = "a doorbell that CAPS announces"

CASES: tuple[MoreCase, ...] = (
    case(
        "doorbell",
        "BURST",
        bursts,
        "up to 1000 rings at once are acknowledged 1 to as many times, and it rings on",
        risk=f"{_RINGS}: 1113 rings",
        needs=_DOORBELL,
    ),
    case(
        "doorbell",
        "VECTORS",
        vectors,
        "a ring is answered by the vector asked for",
        risk=_RINGS,
        needs=f"{_DOORBELL}, MSI or MSI-X",
    ),
    case(
        "doorbell",
        "CYCLES",
        cycles,
        f"it can be enabled and disabled {_CYCLES} times",
        risk=_RINGS,
        needs=_DOORBELL,
    ),
)
