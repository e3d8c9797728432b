"""Hand a PCI function to vfio-pci (driver_override, never new_id), so that rcdrv can open it.

The driver that had it is noted under /run/rcdrv, and `rcdrv unbind` gives the function back to it.
VFIO needs the whole IOMMU group: where another member has a driver, nothing is done unless --group
takes that one too. If something fails midway, everything is as before.
"""

from __future__ import annotations

import argparse

from rcdrv.cli.common import FUNCTION
from rcdrv.cli.host import Steps, add_address, named_address
from rcdrv.host.binding import Binder
from rcdrv.host.function import HostFunction
from rcdrv.sysfs import Paths
from rcdrv.wait import Cancel

COMMON_OPTIONS = FUNCTION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address(parser)
    add = parser.add_argument
    add("--group", action="store_true", help="all functions of its IOMMU group")
    add(
        "--no-reset",
        action="store_true",
        help="keep VFIO from resetting it at every open and close, which bounces the link of an"
        " endpoint without FLR; unbind, or bind without this, undoes it",
    )
    add("--force", action="store_true", help="take storage and network devices in use, too")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    del cancel  # a half-done change of the host helps nobody
    steps, paths = Steps(args), Paths()
    function = HostFunction(named_address(args), paths)
    taken = Binder(paths, steps).bind(
        function, whole_group=args.group, no_reset=args.no_reset, force=args.force
    )
    steps.finish(taken)
    return 0
