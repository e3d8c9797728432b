"""Write a BAR: one access with exactly the given width.

Only the range is checked: a write to the wrong place can stop the endpoint.
"""

from __future__ import annotations

import argparse

from rcdrv.cli.common import OPENED, RECORD, bar_number, number, open_function, print_json
from rcdrv.mmio import WIDTHS, barrier
from rcdrv.wait import Cancel

COMMON_OPTIONS = (*OPENED, *RECORD)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bar", type=bar_number, metavar="BAR", help="0 to 5")
    parser.add_argument("offset", type=number, metavar="OFFSET", help="bytes from its start")
    parser.add_argument("value", type=number, metavar="VALUE")
    parser.add_argument("--width", type=int, choices=WIDTHS, default=32, help="bits (default 32)")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    with open_function(args, cancel) as function:
        window = function.bar(args.bar)
        barrier()
        window.write(args.width, args.offset, args.value)
    digits = args.width // 4 + 2
    if args.json:
        print_json(
            {
                "device": function.address,
                "bar": args.bar,
                "offset": args.offset,
                "width": args.width,
                "value": args.value,
            }
        )
    else:
        print(f"BAR{args.bar}+{args.offset:#x} {args.value:#0{digits}x} written")
    return 0
