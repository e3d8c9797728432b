"""The examples of the manual: found, run, and compared with what the page shows.

A block of the language ``console`` is a session: ``$ command``, and what it printed. It is run in a
shell of its own, in an empty folder, with this source tree's ``rcdrv``. Every command has to
succeed, unless ``$ echo $?`` asks for its status next. A line ``...`` stands for any lines; times
and rates are compared as such, not by their value.

A block of the language ``sh`` is what to type on a board or as root, and is not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIMIT = 120.0
"""Seconds for one session; far more than any takes."""

_FENCE = re.compile(r"^```([^`\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_MEASURED = (
    (re.compile(r"\d+(?:\.\d+)?(?= ?(?:ns|us|ms|s|seconds)\b)"), "#"),
    (re.compile(r"[\d.]+(?=/s\b| [KMG]?B/s)"), "#"),
    (re.compile(r"\b\d+\.\d+(?:/\d+\.\d+)+"), "#"),
    (re.compile(r"(?<=ratio of medians )\S+ of averages \S+"), "#"),
    (re.compile(r'(?<="latency_ns": )\d+|(?<="t": )\d+'), "#"),
    (re.compile(r"pci:\S+|/tmp/\S+"), "#"),
)


class Step(NamedTuple):
    """A command, and the lines that it is shown to print."""

    command: str
    shown: list[str]


def blocks(text: str, language: str) -> Iterator[tuple[int, str]]:
    """(line number, contents) of every fenced block of a language."""
    for match in _FENCE.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start()) + 1, match[2]


def session(block: str) -> list[Step]:
    """The steps of a console block."""
    steps: list[Step] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], []))
        elif line.startswith("> ") and steps and not steps[-1].shown:
            steps[-1] = Step(f"{steps[-1].command}\n{line[2:]}", [])
        elif steps:
            steps[-1].shown.append(line)
        else:
            raise ValueError(f"a session begins with a command, not with {line!r}")
    return steps


def run(steps: Sequence[Step]) -> list[list[str]]:
    """What each command prints.

    :raises RuntimeError: a command failed, and the example does not show its status
    """
    lines = ["exec 2>&1", "status=0"]
    for step in steps:
        command = step.command
        if command.endswith("&"):
            # Its output could come at any time.
            command = f"{command[:-1]} >/dev/null 2>&1 &"
        lines += ["printf '\\036'", '(exit "$status")', command, "status=$?"]
        socket = re.search(r"--socket (\S+).*&$", command)
        if socket:
            lines.append(f"until test -S {socket[1]}; do sleep 0.02; done")
        lines.append("printf '\\037%s' $status")
    lines.append("kill $(jobs -p) 2>/dev/null; wait")
    with tempfile.TemporaryDirectory() as programs, tempfile.TemporaryDirectory() as folder:
        program = Path(programs) / "rcdrv"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rcdrv "$@"\n')
        program.chmod(0o755)
        done = subprocess.run(
            ["bash", "-c", "\n".join(lines)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=LIMIT,
            cwd=folder,
            env={
                **{name: value for name, value in os.environ.items() if name[:6] != "RCDRV_"},
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "COLUMNS": "100",
            },
        )
    printed = []
    pieces = done.stdout.split("\036")[1:]
    for number, (step, piece) in enumerate(zip(steps, pieces, strict=True)):
        output, _, rest = piece.rpartition("\037")
        asked = number + 1 < len(steps) and steps[number + 1].command == "echo $?"
        if rest.split()[0] != "0" and not asked:
            raise RuntimeError(f"{step.command!r} ended with {rest}:\n{output}")
        printed.append(output.splitlines())
    return printed


def agree(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether what a page shows is what a command prints, but for measured values."""
    pattern = "".join(
        r"(?:.*\n)*" if line == "..." else re.escape(_without_values(line)) + "\n" for line in shown
    )
    return bool(re.fullmatch(pattern, "".join(f"{_without_values(line)}\n" for line in printed)))


def _without_values(line: str) -> str:
    for measured, sign in _MEASURED:
        line = measured.sub(sign, line)
    return line.rstrip()


def updated(text: str) -> str:
    """A page with what its examples print now, where that is not what it shows."""

    def renewed(match: re.Match[str]) -> str:
        if match[1] != "console":
            return match[0]
        steps = session(match[2])
        lines = []
        for step, printed in zip(steps, run(steps), strict=True):
            lines.append("$ " + step.command.replace("\n", "\n> "))
            lines += step.shown if agree(step.shown, printed) else printed
        return "```console\n" + "".join(f"{line}\n" for line in lines) + "```"

    return _FENCE.sub(renewed, text)
