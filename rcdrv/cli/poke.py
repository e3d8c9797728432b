"""Write a BAR: one access with exactly the given width.

Only the range is checked: a write to the wrong place can stop the endpoint.
"""

from __future__ import annotations

import argparse

from rcdrv.cli.common import OPENED, RECORD, add_place, open_function, show
from rcdrv.mmio import barrier
from rcdrv.wait import Cancel

COMMON_OPTIONS = (*OPENED, *RECORD)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_place(parser, "value")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    with open_function(args, cancel) as function:
        window = function.bar(args.bar)
        barrier()
        window.write(args.width, args.offset, args.value)
    digits = args.width // 4 + 2
    place = {name: getattr(args, name) for name in ("bar", "offset", "width", "value")}
    line = f"BAR{args.bar}+{args.offset:#x} {args.value:#0{digits}x} written"
    return show(args, {"device": function.address, **place}, [line])
