"""Text for a person: each case as it ends, then the failures with their hints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from typing import TextIO

from rcdrv.report.text import details, headline, one_line
from rcdrv.results.baseline import differences
from rcdrv.results.observer import Observer
from rcdrv.results.result import CASE_VERDICTS, CaseName, CaseResult, Run
from rcdrv.verdict import Verdict

Part = tuple[str, str]
"""Text and its style in rich's terms; ``""`` is unstyled."""

STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.SKIP: "yellow",
    Verdict.LOST: "bold magenta",
    Verdict.ERROR: "bold red",
}

MARK_WIDTH = max(len(verdict.value) for verdict in CASE_VERDICTS)


class Plain(Observer):
    """Plain lines, without terminal control."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def start(self, run: Run) -> None:
        self._print((one_line(run.device), "bold"), (f"  {one_line(run.description)}", ""))

    def case_finished(self, result: CaseResult) -> None:
        self._print(
            (one_line(str(result.name)), ""),
            (f"  {_seconds(result.seconds)}", "dim"),
            ("  expected failure:" if result.known_failure else "", "dim"),
            (f"  {headline(result)}", ""),
            mark=result.verdict,
        )

    def finish(self, run: Run) -> None:
        self._print()
        for result in run.results:
            if result.failed:
                self._print((one_line(str(result.name)), "bold"), mark=result.verdict)
                for line in (headline(result), *details(result)):
                    self._print((line, ""), indent=True)
                self._print()
        self._summary(run)

    def _summary(self, run: Run) -> None:
        for line in differences(run):
            self._print((one_line(line), ""))
        spent = _seconds(sum(result.seconds for result in run.results))
        self._print((f"{_counts(run)} in {spent}", "bold"))

    def _print(self, *parts: Part, mark: Verdict | None = None, indent: bool = False) -> None:
        """Print a line, after a mark or indented like one."""
        margin = " " * (MARK_WIDTH + 1) if indent else ""
        if mark:
            margin = f"{mark.value.upper():<{MARK_WIDTH}} "
        self._stream.write(f"{margin}{''.join(text for text, _ in parts)}".rstrip() + "\n")
        self._stream.flush()


_CODES = {
    "bold": "1",
    "dim": "2",
    "green": "32",
    "yellow": "33",
    "bold red": "1;31",
    "bold magenta": "1;35",
}
"""Select Graphic Rendition (ECMA-48) of the styles in use."""


class Coloured(Plain):
    """The lines of :class:`Plain` in colour, with the running case below, without rich."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._place = ""
        self._started = self._planned = 0

    def start(self, run: Run) -> None:
        super().start(run)
        self._planned = len(run.planned)

    def case_started(self, name: CaseName) -> None:
        self._started += 1
        self._place = f"{self._started}/{self._planned} {one_line(str(name))}"
        rewrite(self._stream, self._place)

    def progress(self, name: CaseName, done: int, total: int, what: str) -> None:
        rewrite(self._stream, f"{self._place}  {done}/{total} {one_line(what)}")

    def _print(self, *parts: Part, mark: Verdict | None = None, indent: bool = False) -> None:
        margin = " " * (MARK_WIDTH + 1) if indent else ""
        if mark:
            margin = _styled(f"{mark.value.upper():<{MARK_WIDTH}}", STYLES[mark]) + " "
        self._stream.write(f"\r\x1b[K{margin}{''.join(_styled(*part) for part in parts)}\n")
        self._stream.flush()


def side_by_side(runs: Sequence[Run]) -> Iterator[str]:
    """Make one table of the runs of several devices: a row for each case, a column for each run."""
    results = [{str(result.name): result for result in run.results} for run in runs]
    names = list(dict.fromkeys(str(name) for run in runs for name in run.planned))
    width = max((len(name) for name in names), default=0)
    cells = [f"{number:<{MARK_WIDTH}}" for number in range(1, len(runs) + 1)]
    yield f"{'':{width}}  {'  '.join(cells)}".rstrip()
    for name in names:
        cells = []
        for found in results:
            result = found.get(name)
            said = (
                "-" if result is None else "xfail" if result.known_failure else result.verdict.value
            )
            cells.append(f"{said:<{MARK_WIDTH}}")
        yield f"{one_line(name):{width}}  {'  '.join(cells)}".rstrip()
    yield ""
    for number, run in enumerate(runs, 1):
        yield one_line(f"{number}  {run.device}: {_counts(run)}  {run.description}").rstrip()


def rewrite(stream: TextIO, text: str = "") -> None:
    """Replace a terminal's last line, with room for the echo of ^C."""
    width = shutil.get_terminal_size().columns - len("^C^C")
    stream.write(f"\r\x1b[K{text[: max(1, width)]}")
    stream.flush()


def _styled(text: str, style: str) -> str:
    return f"\x1b[{_CODES[style]}m{text}\x1b[m" if style else text


def has_colours(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with colours that the user wants."""
    dumb = os.environ.get("TERM", "dumb") == "dumb" or os.environ.get("NO_COLOR")
    return stream.isatty() and not dumb


def tally(run: Run) -> dict[str, int]:
    """Return the number of cases of each verdict, without zeros."""
    counts = {verdict.value: count for verdict, count in run.totals.items()}
    counts["not run"] = len(run.not_run)
    return {what: count for what, count in counts.items() if count}


def _counts(run: Run) -> str:
    return ", ".join(f"{count} {what}" for what, count in tally(run).items()) or "no tests"


def _seconds(value: float) -> str:
    return f"{value:.2f}s"  # without a space, where a narrow terminal would break the line
