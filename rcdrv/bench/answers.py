"""Time from COMMAND to the answer, of transfers and interrupts; and interrupts of this host alone.

It includes the endpoint's tick of a millisecond or more, and the checksum of a transfer.
"""

from __future__ import annotations

from collections.abc import Callable

from rcdrv.device import IrqKind, SetIrqs
from rcdrv.epf_test.answer import Answer, IrqChoice
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.irqs import raise_vector
from rcdrv.epf_test.transfer import Direction, Placement, transfers
from rcdrv.results.bench import Series
from rcdrv.results.distribution import Distribution
from rcdrv.verdict import NotPassed, Reason, skip


def transfer(driver: EpfTest, direction: Direction, size: int, dma: bool, count: int) -> Series:
    """Measure ``count`` transfers of ``size`` bytes, of which every byte is checked.

    :param dma: use the endpoint's DMA engine, else its processor
    :raises NotPassed: the first failure
    :raises UsageError: the size could harm the endpoint
    """
    placement = Placement(size)
    with transfers(driver, direction, dma, [placement]) as move:
        found = _latencies(driver, count, lambda _number: move(placement))
    return Series(f"{'dma' if dma else 'memcpy'} {direction.value} {size}", found, size)


def _latencies(driver: EpfTest, count: int, request: Callable[[int], Answer]) -> Distribution:
    samples = []
    for number in range(count):
        driver.function.check()
        answer = request(number)
        assert answer.latency_ns is not None
        samples.append(answer.latency_ns)
    return Distribution.of(samples)


def irq_choices(driver: EpfTest) -> tuple[IrqChoice, ...]:
    """Return the requested kind, else all that function and endpoint have."""
    if driver.irq_choice is not IrqChoice.AUTO:
        return (driver.irq_choice,)
    count = driver.function.device.irq_count
    return tuple(c for c in (IrqChoice.MSI, IrqChoice.MSIX) if count(IrqKind[c.name]))


def loopback(driver: EpfTest, choice: IrqChoice, count: int) -> Series | None:
    """Measure the host alone: trigger a vector's eventfd (VFIO_IRQ_SET_ACTION_TRIGGER) and wait.

    The rest of a latency is the endpoint's and the link's. None for INTx, which VFIO masks when
    it fires, and for polling.

    :raises NotPassed: ``irq-lost``
    """
    if choice not in (IrqChoice.MSI, IrqChoice.MSIX):
        return None
    kind = IrqKind[choice.name]
    function = driver.function
    driver.disarm()
    fire = SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER
    now = function.clock.now_ns
    samples = []
    with function.interrupts(kind) as interrupts:
        for _ in range(count):
            start = now()
            function.device.set_irqs(kind, fire, 0, 1)
            fired = interrupts.wait(function.deadline(driver.timeout))
            samples.append(now() - start)
            if not fired:
                function.check_alive()
                raise NotPassed(
                    Reason.IRQ_LOST, f"{choice.value}: this host's own trigger fired no eventfd"
                )
    return Series(f"{choice.value} on this host", Distribution.of(samples))


def interrupt(driver: EpfTest, choice: IrqChoice, vectors: int, count: int) -> Series:
    """Measure ``count`` interrupts of the endpoint, on vectors 1 to ``vectors`` in turn.

    :raises NotPassed: an interrupt failed; or a skip, too few vectors
    """
    driver.use_irq(choice)
    ready = driver.arm(vectors)
    if choice is not IrqChoice.POLL and ready < vectors:
        raise skip(
            Reason.NO_VECTORS,
            f"there are {ready} vectors of {choice.value}, not {vectors}",
            hint="rcdrv info shows how many there are",
        )
    driver.drop_interrupts()
    found = _latencies(driver, count, lambda number: raise_vector(driver, choice, number % vectors))
    name = f"{choice.value} of the endpoint"
    return Series(f"{name}, {vectors} vectors" if vectors > 1 else name, found)
