"""Find an endpoint again after it rebooted: remove and rescan below its port, and only there.

ADDRESS is the function, present or not, or its port. Functions that were bound to vfio-pci are
bound again, and the notes of `rcdrv bind` stay valid.
"""

from __future__ import annotations

import argparse

from rcdrv.cli.common import FUNCTION, seconds
from rcdrv.cli.host import Steps, add_address
from rcdrv.host.replug import port_above
from rcdrv.host.replug import rescan as rescan_behind
from rcdrv.sysfs import Paths
from rcdrv.wait import Cancel

COMMON_OPTIONS = FUNCTION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address(parser)
    parser.add_argument(
        "--wait",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for the link and the function (default 30)",
    )
    parser.add_argument("--force", action="store_true", help="also if it is in use")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    steps = Steps(args)
    port = port_above(steps.address, Paths())
    wanted = None if port.address == steps.address else steps.address
    found = rescan_behind(
        port,
        steps.binder,
        steps,
        wanted,
        within=args.wait,
        cancel=cancel,
        force=args.force,
    )
    return steps.finish(found, port=port.address)
