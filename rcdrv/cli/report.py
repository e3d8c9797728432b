"""Make one HTML page of results.

FILE is the output of --json of these commands: test, check, ring, bench, info, ntb ping, fuzz
layout, fuzz replay and fuzz device; or the examples.jsonl of a fuzz campaign; or - for standard
input. The page is self-contained and has no scripts, so it can be mailed, printed and archived.

    rcdrv test --json > test.json; rcdrv ring --count 1000 --json > ring.json
    rcdrv report test.json ring.json -o board.html

The exit status is 0 if the page is written, whatever its results are.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

from rcdrv.cli.common import HOST, show
from rcdrv.errors import UsageError
from rcdrv.wait import Cancel

COMMON_OPTIONS = HOST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a result, or - for stdin")
    parser.add_argument(
        "-o",
        "--output",
        default="rcdrv-report.html",
        metavar="FILE",
        help="the page, or - for stdout (default rcdrv-report.html)",
    )


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    from rcdrv.files import is_stream, replace_file
    from rcdrv.report.html.page import page
    from rcdrv.report.html.source import read
    from rcdrv.sim.picture import picture

    if args.files.count("-") > 1:
        raise UsageError("standard input can be read once only")
    if args.json and args.output == "-":
        raise UsageError("--json and the page cannot both go to stdout", hint="-o FILE")
    path = Path(args.output)
    if args.output != "-" and path.is_file() and not _is_page(path):
        raise UsageError(
            f"{path} is no page: one would take its place", hint="-o FILE, with another name"
        )
    sources = []
    for name in args.files:
        cancel.check()
        sources += read(name, picture, cancel)
    text = page(sources, datetime.now()).encode("utf-8")
    if args.output == "-":
        sys.stdout.buffer.write(text)
        return 0
    replace_file(path, text)
    results = [{"file": source.name, "kind": source.kind} for source in sources]
    lines = [] if is_stream(path) else [str(path)]  # into the page it must not go
    return show(args, {"report": str(path), "results": results}, lines)


def _is_page(path: Path) -> bool:
    try:
        with path.open("rb") as found:
            return found.read(9) in (b"<!DOCTYPE", b"")
    except OSError:
        return True  # writing it says why it cannot be written
