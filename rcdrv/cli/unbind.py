"""Give a PCI function back to the driver that `rcdrv bind` took it from.

Where nothing is noted, because a udev rule or somebody else bound it, whichever driver wants it
gets it.
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
    parser.add_argument("--group", action="store_true", help="all functions of its IOMMU group")
    parser.add_argument(
        "--force", action="store_true", help="also when in use: whoever has it open has to let go"
    )


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    del cancel  # a half-done change of the host helps nobody
    steps, paths = Steps(args), Paths()
    function = HostFunction(named_address(args), paths)
    given = Binder(paths, steps).unbind(function, whole_group=args.group, force=args.force)
    steps.finish(given)
    return 0
