"""Return a PCI function to the driver from which `rcdrv bind` took it.

If no driver is noted, because a udev rule or another program bound the function, the kernel probes
for one.
"""

from __future__ import annotations

import argparse

from rcdrv.cli.common import FUNCTION
from rcdrv.cli.host import Steps, add_address
from rcdrv.wait import Cancel

COMMON_OPTIONS = FUNCTION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address(parser)
    parser.add_argument("--group", action="store_true", help="all functions of its IOMMU group")
    parser.add_argument(
        "--force", action="store_true", help="also if in use: its users must close it"
    )


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    del cancel  # a change of the host is not left half-done
    steps = Steps(args)
    given = steps.binder.unbind(steps.function, whole_group=args.group, force=args.force)
    return steps.finish(given)
