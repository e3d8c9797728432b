"""The doorbell: bursts, every vector as the answer, and repeated enabling."""

from __future__ import annotations

from rcdrv.device import IrqKind
from rcdrv.epf_test.block import ALL_ONES
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.more.case import Progress, case, during, skip
from rcdrv.epf_test.registers import Command, Flags, Reg, Status
from rcdrv.epf_test.transfer import address_registers, crc32, dma_buffer
from rcdrv.verdict import NotPassed, Reason

_BURSTS = (1, 2, 10, 100, 1000)
_LONG_BURSTS = (10_000, 100_000)
"""Used if a ring is a store of this processor, not a message or a system call, and a quick one."""
_LONGEST = 2.0
"""Expected seconds up to which such a burst is sent: a virtual machine may trap each store."""
_AT_ONCE = 1000
"""Rings between checks for cancellation."""
_CYCLES = 16
_TRANSFERS = 8
_TRANSFER_SIZE = 1 << 16
_LOOK = 0.0002
"""Seconds between polls of an expected event."""
_AT_ANY_RATE = 0.02
"""Seconds in which a ring is handled, with or without a transfer."""
_QUIET = 0.05
"""Seconds without an acknowledgement after which a burst has ended."""
_TAIL = 10
"""Limit of a burst's end in time-outs, however slow the acknowledgements are."""

_RINGS = "enables its doorbell and rings, as DOORBELL_TEST does"
_DOORBELL = "a doorbell that CAPS announces"


def _works(driver: EpfTest) -> None:
    """Check that the doorbell can be enabled at all, which DOORBELL_TEST reports.

    :raises NotPassed: a skip: it cannot
    """
    try:
        with Doorbell(driver):
            pass
    except NotPassed as why:
        if why.reason is not Reason.ENABLE_FAILED:
            raise
        message = "no doorbell can be enabled, which DOORBELL_TEST judges"
        raise skip(why.reason, message) from None


@case(
    "doorbell.BURST",
    "up to 1000 rings at once, 10^5 where a ring is a quick store, are acknowledged 1 to as"
    " many times, and it rings on",
    risk=f"{_RINGS}: up to 111113 rings",
    needs=_DOORBELL,
)
def bursts(driver: EpfTest, progress: Progress) -> str:
    """Ring many times without a pause: expect 1 to N acknowledgements and a working next ring.

    Rings that arrive before the endpoint has taken the last one coalesce, as its interrupt is a
    single pending bit.
    """
    _works(driver)
    seen, clock, each = [], driver.function.clock, 0.0
    with Doorbell(driver) as doorbell:
        plan = _BURSTS + (_LONG_BURSTS if _is_mapped(driver, doorbell) else ())
        for done, count in enumerate(plan, 1):
            if count in _LONG_BURSTS and each * count > _LONGEST:
                seen.append(f"{count} would take {each * count:.0f} s")
                progress(len(plan), len(plan))
                break
            driver.request_irq()
            driver.write(Reg.STATUS, 0)
            driver.drop_interrupts()
            driver.count_strays()
            start, begun = clock.now_ns(), clock.now()
            for _ in range(0, count, _AT_ONCE):
                doorbell.burst(min(count, _AT_ONCE))
                driver.function.check()
            each = (clock.now() - begun) / count
            driver.unanswered = 0  # so that stray counts them all
            answer = driver.wait_answer(start, Status.DOORBELL_SUCCESS)
            if not answer.answered or answer.irq_lost:
                raise explain(driver, answer, f"{count} rings at once")
            acknowledged = sum(answer.vectors.values())
            late, tail = -1, driver.function.deadline(_TAIL * driver.timeout)
            # An endpoint that does not stop has sent too many.
            while late != driver.stray <= count and not tail.expired:
                late = driver.stray
                driver.function.pause(_QUIET)
                driver.drop_interrupts()
            acknowledged += driver.stray
            if driver.irq_kind in (IrqKind.MSI, IrqKind.MSIX) and acknowledged > count:
                raise NotPassed(
                    Reason.IRQ_TWICE, f"{acknowledged} acknowledgements for {count} rings at once"
                )
            doorbell.acknowledged(f"a ring after {count} at once")
            seen.append(f"{acknowledged}/{count}")
            progress(done, len(plan))
    return f"acknowledged: {', '.join(seen)}"


def _is_mapped(driver: EpfTest, doorbell: Doorbell) -> bool:
    """Return whether the doorbell is in a mapped part of its BAR."""
    assert doorbell.location is not None
    offset = doorbell.location.offset
    areas = driver.function.device.region(doorbell.location.bar).areas
    return any(area.offset <= offset < area.offset + area.size for area in areas)


@case(
    "doorbell.DURING_TRANSFER",
    "a ring while a transfer runs is answered, and so is the transfer, with the right data",
    risk=f"{_RINGS}, and writes this host's buffers",
    needs=_DOORBELL,
)
def during_transfer(driver: EpfTest, progress: Progress) -> str:
    """Ring while the endpoint writes to this host: expect both answers and correct data.

    pci_epf_test_doorbell_handler() runs in an interrupt of its own. Its DOORBELL_SUCCESS stays in
    STATUS until the end of the transfer overwrites it, and two interrupts in quick succession may
    arrive as one. So one ring with a visible answer suffices.
    """
    _works(driver)
    function, seen = driver.function, False
    with dma_buffer(driver, _TRANSFER_SIZE) as buffer, Doorbell(driver) as doorbell:
        address = address_registers(Reg.DST_ADDR_LOW, buffer.iova)
        for done in range(1, _TRANSFERS + 1):
            what = f"transfer {done} of {_TRANSFERS}, with a ring"
            driver.count_strays()
            driver.begin(Command.WRITE, {**address, Reg.SIZE: _TRANSFER_SIZE}, Flags(0), 0)
            taken = function.deadline(driver.timeout)
            while driver.read(Reg.COMMAND) and not taken.expired:
                function.pause(_LOOK)
            doorbell.write()
            answered = _answered(driver)
            answer = driver.settle()
            assert answer is not None
            if not answer.answered or not answer.good:
                raise explain(driver, answer, what)
            driver.unanswered = 0  # so that stray counts the ring's
            doorbell.settle()
            interrupts = sum(answer.vectors.values()) + driver.stray
            seen = seen or answered or interrupts == 2 or _rung(driver.read(Reg.STATUS))
            if interrupts > 2 and driver.irq_kind is not IrqKind.INTX:
                raise NotPassed(Reason.IRQ_TWICE, f"{what}: {interrupts} interrupts for the two")
            if driver.read(Reg.CHECKSUM) != crc32(buffer.memory):
                raise NotPassed(Reason.DATA_MISMATCH, f"{what}: its data is wrong")
            progress(done, _TRANSFERS)
        if not seen:
            raise NotPassed(
                Reason.SILENT,
                f"no ring during {_TRANSFERS} transfers was answered; the transfers were",
                hint="does the doorbell's handler wait for a command that runs, or give up?",
            )
        function.pause(_QUIET)  # for rings handled late
        driver.drop_interrupts()
        doorbell.acknowledged("a ring after the transfers")
    return f"{_TRANSFERS} transfers of {_TRANSFER_SIZE} bytes, a ring in each"


def _answered(driver: EpfTest) -> bool:
    """Return whether STATUS briefly shows the answer to a ring while a command runs."""
    deadline = driver.function.deadline(_AT_ANY_RATE)
    while not deadline.expired:
        status = driver.read(Reg.STATUS)
        if _rung(status):
            return True
        if status:  # the transfer has ended
            return False
    return False


def _rung(status: int) -> bool:
    return status != ALL_ONES and bool(status & Status.DOORBELL_SUCCESS)


@case(
    "doorbell.IN_FLIGHT",
    "it can be disabled right behind a ring, and then enabled and rung",
    risk=_RINGS,
    needs=_DOORBELL,
)
def in_flight(driver: EpfTest, progress: Progress) -> str:
    """Disable immediately after a ring, many times; the doorbell must then work as before.

    free_irq() on the endpoint waits for the handler. The ring may be answered or not, and its
    answer must not be taken for that of DISABLE.
    """
    _works(driver)
    for number in range(1, _CYCLES + 1):
        what = f"round {number} of {_CYCLES}, disabled behind a ring"
        with during(what), Doorbell(driver) as doorbell:
            driver.request_irq()
            driver.write(Reg.STATUS, 0)
            doorbell.write()
        progress(number, _CYCLES)
    with Doorbell(driver) as doorbell:
        doorbell.settle()
        doorbell.acknowledged("a ring after that")
    return f"{_CYCLES} rings, each with DISABLE_DOORBELL behind it"


@case(
    "doorbell.VECTORS",
    "a ring is answered by the vector asked for",
    risk=_RINGS,
    needs=f"{_DOORBELL}, MSI or MSI-X",
)
def vectors(driver: EpfTest, progress: Progress) -> str:
    if driver.irq_kind not in (IrqKind.MSI, IrqKind.MSIX):
        raise skip(Reason.NO_VECTORS, f"{driver.irq_name} has no vectors to choose from")
    _works(driver)
    ready = driver.arm(driver.function.device.irq_count(driver.irq_kind))
    with Doorbell(driver) as doorbell:
        for vector in range(ready):
            answer = doorbell.ring(vector)
            if not answer.answered or answer.irq_lost:
                raise explain(driver, answer, f"a ring to be answered by vector {vector + 1}")
            if set(answer.vectors) != {vector}:
                raise NotPassed(
                    Reason.WRONG_VECTOR,
                    f"a ring to be answered by {driver.irq_name} vector {vector + 1}: vector"
                    f" {answer.fired} fired",
                    hint="does the endpoint's handler read IRQ_NUMBER at the ring, or before?",
                )
            progress(vector + 1, ready)
    return f"{ready} vectors"


@case(
    "doorbell.CYCLES",
    f"it can be enabled and disabled {_CYCLES} times",
    risk=_RINGS,
    needs=_DOORBELL,
)
def cycles(driver: EpfTest, progress: Progress) -> str:
    """Enable, ring and disable many times, to find resources that the endpoint leaks."""
    _works(driver)
    for number in range(1, _CYCLES + 1):
        what = f"round {number} of {_CYCLES}"
        try:
            with Doorbell(driver) as doorbell:
                doorbell.acknowledged(what)
        except NotPassed as error:
            if error.reason is Reason.ENABLE_FAILED:
                error.message = f"{what}: {error.message}"
                error.hint = "DISABLE_DOORBELL leaks: an interrupt, or an inbound window, is not"
                error.hint += " given back on the endpoint; it has to be bound anew"
            raise
        progress(number, _CYCLES)
    return f"{_CYCLES} rounds"


CASES = (bursts, vectors, cycles, during_transfer, in_flight)
