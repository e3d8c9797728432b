"""Bind a PCI function to vfio-pci (driver_override, never new_id), so that rcdrv can open it.

The previous driver is noted under /run/rcdrv; `rcdrv unbind` returns the function to it. VFIO needs
the whole IOMMU group: if another member has a driver, nothing is done unless --group takes that one
too. A failure midway restores the previous state.
"""

from __future__ import annotations

import argparse

from rcdrv.cli.common import FUNCTION
from rcdrv.cli.host import Steps, add_address
from rcdrv.wait import Cancel

COMMON_OPTIONS = FUNCTION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address(parser)
    add = parser.add_argument
    add("--group", action="store_true", help="all functions of its IOMMU group")
    add(
        "--no-reset",
        action="store_true",
        help="prevent VFIO from resetting it at every open and close, which takes down the link of"
        " an endpoint without FLR; unbind, or bind without this, undoes it",
    )
    add("--force", action="store_true", help="also take storage and network devices in use")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    del cancel  # a change of the host is not left half-done
    steps = Steps(args)
    taken = steps.binder.bind(
        steps.function, whole_group=args.group, no_reset=args.no_reset, force=args.force
    )
    return steps.finish(taken)
