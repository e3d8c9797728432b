"""Reset the function; or with --bus everything behind its port, by a hot reset of the link.

The function's own reset goes through VFIO, so it needs no root. --bus shows first what it resets,
and goes on only if nobody uses any of it, or with --force.
"""

from __future__ import annotations

import argparse
import sys

from rcdrv.address import open_function
from rcdrv.cli.common import print_json
from rcdrv.cli.host import Steps, add_address, named_address
from rcdrv.host.function import HostFunction
from rcdrv.host.replug import bus_reset
from rcdrv.sysfs import Paths
from rcdrv.wait import Cancel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address(parser)
    parser.add_argument("--bus", action="store_true", help="hot reset: all behind the same port")
    parser.add_argument("--force", action="store_true", help="with --bus: also what is in use")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    if args.bus:
        return _bus(args)
    with open_function(args.address or args.device, cancel=cancel) as function:
        function.reset()
        function.check_alive()
        if args.json:
            print_json({"device": function.address, "reset": "function"})
        else:
            print(f"{function.address}: reset")
    return 0


def _bus(args: argparse.Namespace) -> int:
    steps, paths = Steps(args), Paths()

    def show(members: list[HostFunction]) -> None:
        for member in members:
            print(f"resets {member}", file=sys.stderr, flush=True)

    function = HostFunction(named_address(args), paths)
    members = bus_reset(function, paths, show=show, force=args.force)
    for member in members:
        steps(f"{member.address}: reset")
    steps.finish(members)
    return 0
