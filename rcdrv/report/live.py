"""Live display of the running case and its progress. The only module that needs rich.

Rich handles colours, widths, ``NO_COLOR`` and limited terminals.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from typing import TextIO

from rich import live
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rcdrv.report.terminal import MARK_WIDTH, STYLES, Part, Plain, tally
from rcdrv.report.text import one_line
from rcdrv.results.result import CaseName, CaseResult, Run
from rcdrv.verdict import Verdict


@dataclass(frozen=True)
class _Running:
    """The running case. Immutable, as rich draws it from a thread of its own."""

    name: CaseName
    place: str
    """Number of the case, such as ``3/23``."""
    since: float
    done: int = 0
    total: int = 0
    """0 until the case reports progress."""
    what: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Table.grid(expand=True, padding=(0, 1))
        line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        line.add_column(no_wrap=True, justify="right")
        elapsed = f"{time.monotonic() - self.since:.1f}s"
        line.add_row(self.place, Text(one_line(str(self.name)), "bold"), elapsed)
        display = Group(line)
        if self.total:
            bar = Table.grid()
            bar.add_column(width=len(self.place) + 1)
            bar.add_column(width=16)
            bar.add_column(no_wrap=True, overflow="ellipsis")
            so_far = Text(f" {self.done}/{self.total} {one_line(self.what)}")
            bar.add_row("", ProgressBar(total=self.total, completed=self.done), so_far)
            display.renderables.append(bar)
        # Leave room for the terminal's echo of ^C: if it wrapped, rich would erase a line too few.
        room = options.update_width(max(1, options.max_width - len("^C^C")))
        yield from console.render(display, room)


class Live(Plain):
    """The lines of :class:`Plain` in colour, the running case below, a table at the end."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._console = Console(file=stream, highlight=False)
        self._running: _Running | None = None
        self._started = self._planned = 0
        self._live = live.Live(
            console=self._console,
            get_renderable=lambda: self._running or Text(),
            transient=True,
            # Register accesses (--verbose) go to stderr. On a terminal they scroll above the
            # display; a file gets them unchanged.
            redirect_stderr=sys.stderr.isatty(),
        )

    def start(self, run: Run) -> None:
        super().start(run)
        self._planned = len(run.planned)
        self._live.start()

    def case_started(self, name: CaseName) -> None:
        self._started += 1
        place = f"{self._started}/{self._planned}"
        self._running = _Running(name, place, time.monotonic())
        self._live.refresh()

    def progress(self, name: CaseName, done: int, total: int, what: str) -> None:
        if self._running:
            self._running = replace(self._running, done=done, total=total, what=what)

    def case_finished(self, result: CaseResult) -> None:
        self._running = None
        super().case_finished(result)

    def finish(self, run: Run) -> None:
        self._live.stop()  # gives the cursor back
        super().finish(run)

    def _summary(self, run: Run) -> None:
        outcomes = tally(run)
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        table.add_column("fixture", no_wrap=True)
        for what in outcomes:
            table.add_column(what, justify="right")
        for fixture in dict.fromkeys(name.fixture for name in run.planned):
            counts = tally(_only(run, fixture))
            cells = [str(counts.get(what, "")) for what in outcomes]
            table.add_row(Text(one_line(fixture)), *cells)
        self._console.print(table)
        super()._summary(run)

    def _print(self, *parts: Part, mark: Verdict | None = None, indent: bool = False) -> None:
        body = Text.assemble(*parts, overflow="fold")
        body.rstrip()
        if mark is None and not indent:
            self._console.print(body)
            return
        # Wrapped text is indented under its own beginning, not under the mark.
        line = Table.grid()
        line.add_column(width=MARK_WIDTH + 1)
        line.add_column(overflow="fold")
        line.add_row(Text(mark.value.upper(), STYLES[mark]) if mark else "", body)
        self._console.print(line)


def _only(run: Run, fixture: str) -> Run:
    """Return the part of a run that belongs to a fixture."""
    return Run(
        device=run.device,
        planned=tuple(name for name in run.planned if name.fixture == fixture),
        results=[result for result in run.results if result.name.fixture == fixture],
    )
