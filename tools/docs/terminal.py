"""A terminal session as an SVG picture: commands run for real, with the colours a person sees.

The picture loads nothing: rich's own template fetches a font, this one does not.
"""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).parents[2]
COLUMNS, LINES = 96, 60
LIMIT = 120.0
"""Seconds for one command; far more than any takes."""

_TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def draw(commands: Sequence[str], path: Path) -> None:
    """Run the commands, and draw what the terminal shows after them.

    :param commands: shell command lines, each in an empty folder's terminal
    :raises RuntimeError: one of them failed
    """
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for command in commands:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        for line in _screen(command):
            console.print(line)
    svg = console.export_svg(title="", code_format=_TEMPLATE, unique_id="rcdrv")
    path.write_text(svg, encoding="utf-8")


def _screen(command: str) -> list[Text]:
    """Run a command in a terminal of its own; return the lines that it leaves there."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "COLUMNS": str(COLUMNS),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        ["sh", "-c", command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # EIO: the last writer closed its end
            break
        if not data:
            break
        stream.feed(data)
    os.close(ours)
    if process.wait(LIMIT):
        raise RuntimeError(f"{command}: exit status {process.returncode}")
    lines = []
    for number in range(screen.cursor.y):
        line = Text()
        for column in range(COLUMNS):
            cell = screen.buffer[number][column]
            colour = None if cell.fg == "default" else cell.fg.replace("brown", "yellow")
            line.append(cell.data, Style(color=colour, bold=cell.bold))
        line.rstrip()
        lines.append(line)
    return lines
