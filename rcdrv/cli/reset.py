"""Reset the function, or with --bus everything below its port, by a hot reset of the link.

The function's own reset goes through VFIO, so it needs no root. --bus first lists what it will
reset, and continues only if none of it is in use, or with --force.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from rcdrv.address import open_function
from rcdrv.cli.common import OPENED, show
from rcdrv.cli.host import Steps, add_address
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import KNOWN_CAPS, Command, Reg
from rcdrv.errors import HostError, UsageError
from rcdrv.function import Function, lost_by_reset
from rcdrv.host.function import HostFunction
from rcdrv.host.replug import bus_reset
from rcdrv.pci import BASE_CLASS_OTHERS
from rcdrv.sysfs import Paths, canonical_address
from rcdrv.verdict import NotPassed
from rcdrv.wait import Cancel

COMMON_OPTIONS = OPENED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address(parser)
    parser.add_argument("--bus", action="store_true", help="hot reset: all below the same port")
    parser.add_argument("--force", action="store_true", help="with --bus: also if in use")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    if args.bus:
        return _bus(args)
    with open_function(
        args.address or args.device, cancel=cancel, vf_token=args.vf_token
    ) as function:
        _reset(function)
        document = {"device": function.address, "reset": "function"}
        return show(args, document, [f"{function.address}: reset"])


def _reset(function: Function) -> None:
    """Reset it, and check that everything that worked before still works.

    :raises NotPassed: ``lost-by-reset``
    """
    driver = None
    if function.config.class_code >> 16 == BASE_CLASS_OTHERS:
        with contextlib.suppress(UsageError):  # no test registers
            driver = EpfTest(function)
    worked = driver is not None and _interrupts(driver)
    function.reset()
    lost = []
    with contextlib.suppress(UsageError, HostError):  # not a function of this host
        # VFIO emulates the BAR registers, with the values from when the function was opened.
        gone = HostFunction(canonical_address(function.address), Paths()).lost_bars
        lost = [f"BAR{bar}" for bar in gone]
    if driver is not None and worked and not lost and not _interrupts(driver):
        lost = [driver.irq_name.upper()]
    if lost:
        raise lost_by_reset(function.address, lost)


def _interrupts(driver: EpfTest) -> bool:
    """Return whether an endpoint that takes commands answers one with its interrupt."""
    try:
        if driver.irq_kind is None or driver.read(Reg.COMMAND) or not driver.caps & KNOWN_CAPS:
            return False
        # IRQ_TYPE decides what is raised.
        return driver.command(Command.RAISE_MSI_IRQ).interrupted
    except NotPassed:
        return False
    finally:
        driver.disarm()


def _bus(args: argparse.Namespace) -> int:
    steps = Steps(args)

    def show(members: list[HostFunction]) -> None:
        for member in members:
            print(f"resets {member}", file=sys.stderr, flush=True)

    members = bus_reset(steps.function, Paths(), show=show, force=args.force)
    for member in members:
        steps(f"{member.address}: reset")
    steps.finish(members)
    for member in members:
        if member.lost_bars:
            raise lost_by_reset(member.address, [f"BAR{bar}" for bar in member.lost_bars])
    return 0
