"""See :mod:`tools.docs`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.docs import examples

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.docs")
    commands = parser.add_subparsers(dest="command", required=True)
    build_parser = commands.add_parser("build", help="make the HTML; any warning is an error")
    build_parser.add_argument("folder", type=Path)
    update_parser = commands.add_parser("update", help="write down what the examples print now")
    update_parser.add_argument("files", type=Path, nargs="+")
    terminal_parser = commands.add_parser("terminal", help="draw a terminal session as SVG")
    terminal_parser.add_argument("picture", type=Path)
    terminal_parser.add_argument("command_lines", nargs="+", metavar="COMMAND")
    args = parser.parse_args()
    if args.command == "build":
        return build(args.folder)
    if args.command == "terminal":
        from tools.docs import terminal

        terminal.draw(args.command_lines, args.picture)
        return 0
    for file in args.files:
        text = file.read_text(encoding="utf-8")
        file.write_text(examples.updated(text), encoding="utf-8")
    return 0


def build(folder: Path) -> int:
    """Make the manual's HTML in ``folder``; 0 if there was nothing to warn of."""
    from sphinx.cmd.build import main as sphinx_build

    # -n: every reference is looked at. -E: warnings of pages that did not change count, too.
    return sphinx_build(["-q", "-W", "--keep-going", "-n", "-E", str(ROOT / "docs"), str(folder)])


if __name__ == "__main__":
    sys.exit(main())
