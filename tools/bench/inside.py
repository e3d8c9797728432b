"""Measure rcdrv, C and the kernel's driver at the same work, in the guest.

Arguments are ``rcdrv ADDRESS`` or ``kernel``. Prints a JSON document, {operation: [nanoseconds]}.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter_ns

from rcdrv.address import open_function
from rcdrv.device import IrqKind, SetIrqs
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.bars import bar_test
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.irqs import raise_vector
from rcdrv.epf_test.transfer import Direction, Placement, transfers
from tools.bench.native import LIBRARY, Native

NODE = "/dev/pci-endpoint-test.0"
RINGS, CYCLES, BARS, TRANSFERS, RAISES = 60, 5, 5, 2, 10
BAR = 2  # never has a doorbell, so it stays mapped
SIZE = 1024000
"""Size of a transfer in bytes, one of the kselftest's."""


def by_rcdrv(address: str) -> dict[str, Sequence[int]]:
    """Measure rcdrv through VFIO, and C loops on the same mappings and eventfd."""
    native = Native(Path(__file__).parent / LIBRARY)
    found: dict[str, Sequence[int]] = {}
    with open_function(address) as function:
        driver = EpfTest(function, irq=IrqChoice.MSI)

        def rings(doorbell: Doorbell) -> list[int]:
            answers = [doorbell.ring() for _ in range(RINGS)]
            assert all(doorbell.judge(answer) is None for answer in answers)
            return [answer.latency_ns or 0 for answer in answers]

        def cycle() -> None:
            with Doorbell(driver) as doorbell:
                assert doorbell.judge(doorbell.ring()) is None

        def transfer(direction: Direction) -> None:
            placement = Placement(SIZE)
            with transfers(driver, direction, False, [placement]) as once:
                once(placement)

        with Doorbell(driver) as doorbell:
            found["ring interrupt"] = rings(doorbell)
            driver.spin = True
            found["ring spin"] = rings(doorbell)
            driver.spin = False
            driver.use_irq(IrqChoice.POLL)
            found["ring poll"] = rings(doorbell)
            driver.use_irq(IrqChoice.MSI)
            driver.disarm()
            found.update(c_rings(native, driver, doorbell))
        driver.arm()
        found["doorbell cycle"] = timed(cycle, CYCLES)
        found["raise MSI"] = timed(partial(raise_vector, driver, IrqChoice.MSI, 0), RAISES)
        (area,) = function.device.region(BAR).areas
        mapping = function.device.map(BAR, area)
        found["BAR bytes"] = [area.size]
        found["BAR"] = timed(partial(bar_test, BAR, driver), BARS)
        found["C BAR"] = [native.fill_and_verify(mapping, 0xA0 + BAR) for _ in range(BARS)]
        for direction in Direction:
            found[direction.value] = timed(partial(transfer, direction), TRANSFERS)
    return found


def c_rings(native: Native, driver: EpfTest, doorbell: Doorbell) -> dict[str, Sequence[int]]:
    """Measure C on the enabled doorbell, with a separate eventfd for vector 1."""
    device, place = driver.function.device, doorbell.location
    assert place is not None
    bar, registers = (
        device.map(index, device.region(index).areas[0]) for index in (place.bar, driver.reg_bar)
    )
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    device.set_irqs(IrqKind.MSI, SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER, 0, 1, [eventfd])
    ways = (("interrupt", Native.SLEEP), ("spin", Native.SPIN), ("poll", Native.POLL))
    try:
        return {
            f"C ring {name}": native.rings(
                bar, place.offset, place.data, registers, eventfd, how, RINGS
            )
            for name, how in ways
        }
    finally:
        device.set_irqs(IrqKind.MSI, SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER, 0, 0)
        os.close(eventfd)


def by_kernel() -> dict[str, Sequence[int]]:
    """Measure the ioctls of pci_endpoint_test (include/uapi/linux/pcitest.h)."""
    bar, doorbell, msi, irq_type = _io(1), _io(0xB), _iow(3, 4), _iow(8, 4)
    requests = {"READ": _iow(5, 8), "WRITE": _iow(4, 8), "COPY": _iow(6, 8)}
    parameters = struct.pack("LB7x", SIZE, 0)
    with open(NODE, "rb+", buffering=0) as node:  # noqa: PTH123 - a device, unbuffered

        def call(request: int, argument: int | bytes = 0) -> None:
            fcntl.ioctl(node, request, argument)

        call(irq_type, 1)
        return {
            "doorbell cycle": timed(partial(call, doorbell), CYCLES),
            "raise MSI": timed(partial(call, msi, 1), RAISES),
            "BAR": timed(partial(call, bar, BAR), BARS),
            **{
                name: timed(partial(call, request, parameters), TRANSFERS)
                for name, request in requests.items()
            },
        }


def timed(operation: Callable[[], object], times: int) -> list[int]:
    """Return the duration of each call in nanoseconds."""
    samples = []
    for _ in range(times):
        start = perf_counter_ns()
        operation()
        samples.append(perf_counter_ns() - start)
    return samples


def _io(number: int) -> int:
    return ord("P") << 8 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _io(number)


if __name__ == "__main__":
    who, *rest = sys.argv[1:]
    work = by_rcdrv(*rest) if who == "rcdrv" else by_kernel()
    print(json.dumps(work))
