"""Check an endpoint layer by layer, and stop at the first broken layer.

The order is that of a bring-up: link, config space, BARs, commands, interrupts, transfers,
doorbell, and with --destructive a reset. Each layer depends on those before it, so the first broken
one is the one to fix; the last lines name the side and the first thing to examine.

--device may be repeated: the devices are checked in parallel, and the exit status is the worst.

The exit status is 0 if no layer is broken, 1 if the endpoint is at fault, 3 if this host is, and 5
if the device was lost.
"""

from __future__ import annotations

import argparse

from rcdrv.address import default_address
from rcdrv.cli import exit_status
from rcdrv.cli.common import ENDPOINT, RECORD, endpoint, open_function, print_json
from rcdrv.cli.options import spell
from rcdrv.cli.several import each
from rcdrv.epf_test.check import CheckResult, Layer, LayerResult, unopened
from rcdrv.errors import Departed, DeviceLost, EndpointError
from rcdrv.report.text import one_line
from rcdrv.verdict import Verdict
from rcdrv.wait import Cancel

SEVERAL = True

_MARKS = {Verdict.PASS: "ok", Verdict.SKIP: "--"}

COMMON_OPTIONS = (*ENDPOINT, *RECORD)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--destructive",
        action="store_true",
        help="also reset the function, which may destroy the endpoint's set-up",
    )


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    if len(args.devices) > 1:
        return each(args, cancel, run, mixed=False)
    shown = _show if not args.json else lambda _layer: None
    args.device = args.device or default_address()
    try:
        function = open_function(args, cancel)
    except Departed:
        raise
    except (DeviceLost, EndpointError) as error:
        result = unopened(args.device, error)
        for layer in result.layers:
            shown(layer)
    else:
        with endpoint(args, function) as opened:
            if not args.json:
                print(opened.address, flush=True)
            result = opened.check(destructive=args.destructive, done=shown)
    if args.json:
        print_json(result.document())
    else:
        _conclude(result)
    return exit_status(None if result.broken is None else result.broken.error, cancel)


def _show(one: LayerResult) -> None:
    mark, layer = _MARKS.get(one.verdict, "BROKEN"), one.layer
    if one.noticed is not None:  # the link has its line already
        mark, layer = "lost", one.noticed
    print(f"{mark:6}  {layer.value:12}  {one_line(spell(one.message))}".rstrip(), flush=True)
    for note in one.notes:
        print(f"{'':22}note: {one_line(spell(note))}", flush=True)


def _conclude(result: CheckResult) -> None:
    done = {one.noticed or one.layer for one in result.layers} | {Layer.LINK}
    for layer in Layer:
        if layer not in done:
            print(f"{'':6}  {layer.value:12}  not reached")
    print(f"\n{result.picture}")
    if result.side is not None:
        print(f"look at: {result.side.value}")
        print(f"hint: {one_line(spell(result.hint))}")
