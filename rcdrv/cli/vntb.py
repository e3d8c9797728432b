"""The vNTB of a command line: its BARs and its driver."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from rcdrv.cli.common import bar_number, tracer
from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.registers import choose_map
from rcdrv.function import Function


def bar_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("where the parts are (default: by the ID)")
    group.add_argument("--ctrl-bar", type=bar_number, metavar="N", help="control block")
    group.add_argument("--db-bar", type=bar_number, metavar="N", help="doorbells")
    group.add_argument("--spad-bar", type=bar_number, metavar="N", help="peer scratchpads")
    group.add_argument(
        "--mw-bar", type=bar_number, action="append", metavar="N", help="a window; repeat for more"
    )
    return options


@contextlib.contextmanager
def bridge(args: argparse.Namespace, function: Function) -> Iterator[Vntb]:
    """Open the vNTB of a function with the options of the command line, and close it."""
    config = function.config
    bars = choose_map(
        config.vendor_id,
        config.device_id,
        control=args.ctrl_bar,
        doorbell=args.db_bar,
        peer_spad=args.spad_bar,
        windows=tuple(args.mw_bar or ()),
    )
    vntb = Vntb(function, bars, timeout=args.timeout, trace=tracer(args))
    try:
        yield vntb
    finally:
        with function.cancel.deferred():
            vntb.close()
