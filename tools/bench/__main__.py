"""Compare rcdrv with bare Python, C and the kernel's driver, all measured in this run.

Prints a table with each target and whether it is met. ``--json`` writes it to a file. The exit
status is 0 also if a target is missed, as a busy machine alone can be the cause.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rcdrv.errors import RcdrvError
from tools.bench import (
    access,
    growth,
    lab,
    native,
    network,
    ntb_kernel,
    programs,
    render,
    rings,
    traffic,
)
from tools.bench.measure import Cost, Row
from tools.lab.errors import LabError

STATUS_LAB = 125


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit status."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return _run(options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return STATUS_LAB
    except RcdrvError as error:
        print(f"bench: {error.message}", file=sys.stderr)
        return error.exit_status


def _run(options: argparse.Namespace) -> int:
    rows: list[Row] = []
    costs: list[Cost] = []
    load = os.getloadavg()[0]
    quick = options.quick
    if options.what == "ntb" and options.kernel:
        network.check_host()
        return ntb_kernel.run(quick=quick)
    if options.what == "ntb" and (options.all or options.soak):
        return traffic.run(options.soak, quick=quick)
    if options.what == "ntb":
        _collect("the network", rows, network.rows(quick=quick))
        return _show(options, rows, costs, load)
    with tempfile.TemporaryDirectory(prefix="rcdrv-bench-") as folder:
        library = native.build(Path(folder))
        loops = native.Native(library)
        _collect("accesses", rows, access.rows(loops, quick=quick))
        _collect("rings", rows, rings.rows(loops, quick=quick))
        _collect("programs", rows, programs.rows(quick=quick))
        if options.lab:
            _collect("the lab", rows, lab.rows(library, quick=quick))
        _collect("growth", costs, growth.costs(quick=quick))
    return _show(options, rows, costs, load)


def _show(options: argparse.Namespace, rows: list[Row], costs: list[Cost], load: float) -> int:
    loads = (load, os.getloadavg()[0])
    print(render.heading(loads))
    print(render.table(rows))
    if costs:
        print(render.growth(costs), end="")
    if options.json:
        document = render.document(rows, costs, loads)
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _collect(
    what: str, into: list[Row] | list[Cost], found: Iterable[Row] | Iterable[Cost]
) -> None:
    start = time.monotonic()
    into.extend(found)  # type: ignore[arg-type]  # both of the same kind
    print(f"bench: {what} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tools.bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["ntb"],
        help="ntb: ping and TCP over a vNTB instead of all else; needs root, ping and iperf3",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="of ntb: ping, TCP, UDP and HTTP both ways, over a started and a served endpoint",
    )
    parser.add_argument(
        "--kernel",
        action="store_true",
        help="of ntb: ping and HTTP against the kernel's ntb_netdev in the lab's endpoint, of rcdrv"
        " and of the kernel's own driver in a guest",
    )
    parser.add_argument(
        "--soak",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="of ntb: traffic for so long, and whether either side leaks",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes")
    parser.add_argument(
        "--no-lab",
        dest="lab",
        action="store_false",
        help="leave out what needs the kernel's VFIO and driver",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    return parser


if __name__ == "__main__":
    sys.exit(main())
