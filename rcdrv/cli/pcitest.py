"""Accept the options of the kernel's former pcitest program, for scripts that call it.

Each test runs once and prints one line, OKAY or NOT OKAY. -D names the device as --device does.
`rcdrv test` has the newer names, reasons and reports.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

from rcdrv.cli import print_error
from rcdrv.cli.common import ENDPOINT, RECORD, bar_number, drive, number, open_function
from rcdrv.epf_test import bars, irqs, transfer
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.doorbell import free_stale_doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.transfer import Direction, Placement
from rcdrv.errors import RcdrvError, UsageError
from rcdrv.verdict import NotPassed
from rcdrv.wait import Cancel

_TYPES = (IrqChoice.INTX, IrqChoice.MSI, IrqChoice.MSIX)
_TYPE_NAMES = ("LEGACY", "MSI", "MSI-X")

COMMON_OPTIONS = (*(name for name in ENDPOINT if name != "json"), *RECORD)  # it prints lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-D", dest="device", default=argparse.SUPPRESS, metavar="ADDRESS", help="the device")
    add("-b", dest="bar", type=bar_number, metavar="BAR", help="BAR test (0 to 5)")
    add("-B", dest="all_bars", action="store_true", help="consecutive BAR test")
    add("-m", dest="msi", type=int, metavar="NUMBER", help="MSI test (1 to 32)")
    add("-x", dest="msix", type=int, metavar="NUMBER", help="MSI-X test (1 to 2048)")
    add("-i", dest="irq_type", type=int, choices=(0, 1, 2), help="0 legacy, 1 MSI, 2 MSI-X")
    add("-e", dest="clear_irq", action="store_true", help="clear IRQ")
    add("-I", dest="get_irq", action="store_true", help="get current IRQ type")
    add("-d", dest="dma", action="store_true", help="use DMA")
    add("-l", dest="legacy", action="store_true", help="legacy IRQ test")
    add("-r", dest="read", action="store_true", help="read buffer test")
    add("-w", dest="write", action="store_true", help="write buffer test")
    add("-c", dest="copy", action="store_true", help="copy buffer test")
    add("-s", dest="size", type=number, default=0x19000, help="size of buffer (default 100K)")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    for name, value, most in (("-m", args.msi, 32), ("-x", args.msix, 2048)):
        if value is not None and not 1 <= value <= most:
            raise UsageError(f"{name} {value} is not 1 to {most}")
    asked = (args.bar, args.msi, args.msix, args.irq_type)
    tests = (args.all_bars, args.clear_irq, args.get_irq, args.legacy)
    transfers = (args.read, args.write, args.copy)
    if not any(tests + transfers) and all(one is None for one in asked):
        raise UsageError(
            "no test is asked for: -d and -s are none",
            hint="-b 0 is the test of BAR0; rcdrv pcitest --help lists them",
        )
    with open_function(args, cancel) as function:
        driver = drive(args, function)
        free_stale_doorbell(driver)
        passed = True
        for label, body in _tests(args, driver):
            print(label, end="", flush=True)
            try:
                body()
            except NotPassed as failure:
                passed = False
                print("NOT OKAY", flush=True)
                print_error(failure)
            except RcdrvError:
                print(flush=True)
                raise
            else:
                print("OKAY", flush=True)
    return 0 if passed else 1


def _tests(args: argparse.Namespace, driver: EpfTest) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the requested tests in the order of pcitest."""
    if args.bar is not None:
        yield f"BAR{args.bar}:\t\t", partial(bars.bar_test, args.bar, driver)
    if args.all_bars:
        yield "Consecutive BAR test:\t\t", partial(bars.consecutive_bar_test, driver)
    if args.irq_type is not None:
        label = f"SET IRQ TYPE TO {_TYPE_NAMES[args.irq_type]}:\t\t"
        yield label, partial(driver.use_irq, _TYPES[args.irq_type])
    if args.get_irq:
        yield f"GET IRQ TYPE:\t\t{_TYPE_NAMES[driver.irq_type]} ", lambda: None
    if args.clear_irq:
        yield "CLEAR IRQ:\t\t", driver.disarm
    if args.legacy:
        yield "LEGACY IRQ:\t", partial(irqs.intx_test, driver)
    for name, kind, count in (
        ("MSI", IrqChoice.MSI, args.msi),
        ("MSI-X", IrqChoice.MSIX, args.msix),
    ):
        if count is not None:
            yield f"{name}{count}:\t\t", partial(irqs.one_vector, kind, count, driver)

    def placements(_driver: EpfTest) -> list[Placement]:
        return [Placement(args.size)]

    for wanted, direction in (
        (args.write, Direction.WRITE),
        (args.read, Direction.READ),
        (args.copy, Direction.COPY),
    ):
        if wanted:
            label = f"{direction.value} ({args.size:7} bytes):\t\t"
            body = partial(transfer.transfer_test, direction, args.dma, placements, driver)
            yield label, body
