"""Common parts of the subcommands that change the host: the function, and the steps done."""

from __future__ import annotations

import argparse
from typing import Any

from rcdrv.address import default_address
from rcdrv.cli.common import print_json
from rcdrv.host.binding import Binder
from rcdrv.host.function import HostFunction
from rcdrv.sysfs import Paths, canonical_address


def add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="0000:01:00.0 (default: --device, else the only endpoint on this host)",
    )


def named_address(args: argparse.Namespace) -> str:
    """Return the canonical PCI address that the command line names."""
    return canonical_address(args.address or args.device or default_address())


class Steps:
    """A command on the host: its function, and the steps, printed at once or kept for JSON."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.address = named_address(args)
        self.binder = Binder(Paths(), self)
        self._json: bool = args.json
        self._said: list[str] = []

    @property
    def function(self) -> HostFunction:
        return HostFunction(self.address, Paths())

    def __call__(self, line: str) -> None:
        self._said.append(line)
        if not self._json:
            print(line, flush=True)

    def finish(self, functions: list[HostFunction], **more: Any) -> int:
        if self._json:
            found = [{"address": one.address, "driver": one.driver} for one in functions]
            print_json({"functions": found, "steps": self._said, **more})
        return 0
