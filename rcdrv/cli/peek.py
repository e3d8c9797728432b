"""Read a BAR: each access once, with exactly the given width.

A read may have side effects on the endpoint, for example on the interrupt controller's registers
that an enabled doorbell maps.
"""

from __future__ import annotations

import argparse

from rcdrv.cli.common import OPENED, RECORD, add_place, number, open_function, show
from rcdrv.errors import UsageError
from rcdrv.wait import Cancel

COMMON_OPTIONS = (*OPENED, *RECORD)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_place(parser)
    parser.add_argument(
        "--count", type=number, default=1, metavar="N", help="words one after the other (default 1)"
    )


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    if args.count < 1:
        raise UsageError("--count has to be at least 1")
    step = args.width // 8
    with open_function(args, cancel) as function:
        window = function.bar(args.bar)
        if args.offset + args.count * step > window.size:
            # Before the first read, which may have side effects.
            raise UsageError(
                f"{args.count} words of {args.width} bits at {args.offset:#x} are outside"
                f" BAR{args.bar}, which has {window.size:#x} bytes"
            )
        values = []
        for index in range(args.count):
            function.check()
            values.append(window.read(args.width, args.offset + index * step))
    place = {name: getattr(args, name) for name in ("bar", "offset", "width")}
    lines = (
        f"BAR{args.bar}+{args.offset + index * step:#x} {value:#0{2 * step + 2}x}"
        for index, value in enumerate(values)
    )
    return show(args, {"device": function.address, **place, "values": values}, lines)
