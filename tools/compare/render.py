"""The comparison as text, as a page of the documentation, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from tools.compare.explanations import EXPLANATIONS, Explanation
from tools.compare.judges import Comparison, Judgement, Square, Timing, left_out
from tools.compare.outcome import Outcome
from tools.compare.rows import Row, Stale, explain, unexplained

COMMAND = "python3 -m tools.compare --markdown docs/fidelity.md"

_PAGE = """\
# Fidelity: the kernel's own driver and endpoint functions judge rcdrv

Two judges, the unmodified `pci_endpoint_test` driver with its unmodified kselftest, and
`rcdrv test` through the kernel's VFIO, judge two endpoints of each preset: the software endpoint of
`rcdrv sim`, and the kernel's unmodified `pci-epf-test` in a [guest of its own](guide/lab.md), whose
controller has what the preset says. All kernels are a stock one ({release}, x86-64, in
QEMU). Made by

    {command}

which fails if a verdict is neither `pass` nor `skip` by both and not accounted for below, if what
is accounted for does not happen, or if a case ends differently on the two endpoints. CI runs the
same comparison, with the kernel's endpoint functions for some of the presets, and fails too if it
does not give the tables of this page.

{verdicts}
{square}
{time}"""

_VERDICTS = """\
## Verdicts on the software endpoint

Both judge it in the same boot. One verdict where both agree; otherwise the kernel's first and then
rcdrv's. Who skips has to skip for the same reason.

{table}

### Differences, all on purpose

{differences}

### Failures that both report

What this hardware cannot do and does not announce, so that both try it.

{failures}
"""

SQUARE_HEADING = "## Verdicts on the kernel's endpoint functions"
_SQUARE = """\
{heading}

The same, with the same explanations. A cell with a `!` is not as on the software endpoint:
{different} of {cells} differ.

{table}
"""

_TIME = """\
## Time

All cases on `{preset}`, fastest of {runs} runs each, in turns, in one guest:

| | kselftest | rcdrv test | ratio |
|---|---:|---:|---:|
| the {cases} cases | {kernel.cases:.2f} s | {rcdrv.cases:.2f} s | {by_cases:.2f} |
| the whole process | {kernel.process:.2f} s | {rcdrv.process:.2f} s | {by_process:.2f} |

On an emulated processor, Python's own part weighs much: its start and imports are in the time of
the process.{left_out}
"""


# -- text ---------------------------------------------------------------------------------------


def table(comparisons: Sequence[Comparison]) -> str:
    """Preset by case, with the numbers of the explanations; ``!`` where there is none."""
    grid = [["", *(comparison.preset for comparison in comparisons)]]
    for case, rows in _by_case(comparisons):
        grid.append([_short(case), *("" if row is None else _cell(row) for row in rows)])
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in grid)
    return "\n".join(lines) + "\n"


def notes(comparisons: Iterable[Comparison]) -> str:
    """The explanations that the table refers to."""
    lines = []
    for entry in _used(comparisons):
        lines.append(f"[{_number(entry)}] kernel {entry.kernel}, rcdrv {entry.rcdrv}:")
        for text in (entry.why, entry.source):
            lines += textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="    ")
    return "".join(f"{line}\n" for line in lines)


def complaints(comparison: Comparison) -> str:
    """The rows that nothing accounts for, with all that may explain them."""
    rows = unexplained(comparison.rows)
    parts = []
    for row in rows:
        parts.append(f"{row.preset} {row.case}: not accounted for")
        for judge, outcome in (("kernel", row.kernel), ("rcdrv", row.rcdrv)):
            parts += [f"    {judge}: {outcome}", *(f"        {line}" for line in outcome.words)]
    if rows:
        for judge, log in (("kernel", comparison.kernel.log), ("rcdrv", comparison.rcdrv.log)):
            parts += [f"{comparison.preset}: {judge}'s log: {line}" for line in log]
    return "".join(f"{part}\n" for part in parts)


def disagreements(square: Square) -> str:
    """The cases that end differently on the two endpoints, with all that may explain them."""
    parts = []
    for pair in square.differing:
        parts.append(f"{square.preset} {pair[0].case}: the endpoints differ")
        for endpoint, row in zip(("software", "kernel's"), pair, strict=True):
            for judge, outcome in (("kernel", row.kernel), ("rcdrv", row.rcdrv)):
                parts.append(f"    {endpoint} endpoint, {judge}: {outcome}")
                parts += [f"        {line}" for line in outcome.words]
    return "".join(f"{part}\n" for part in parts)


def stale_complaint(found: Stale) -> str:
    """An explanation that is not needed any more, or that does not fit."""
    entry = found.explanation
    return (
        f"{found.preset} {found.case}: explanation {_number(entry)} does not apply"
        f" (kernel {entry.kernel}, rcdrv {entry.rcdrv})\n"
    )


def timing_text(timing: Timing) -> str:
    """Case by case, then all together."""
    kernel, rcdrv = timing.kernel, timing.rcdrv
    lines = [
        f"{timing.preset}, fastest of {timing.runs} runs:",
        f"{'':24}{'kselftest':>10}{'rcdrv':>10}",
    ]
    for case, outcome in rcdrv.outcomes.items():
        theirs = kernel.outcomes.get(case)
        before = f"{theirs.seconds:8.3f} s" if theirs else f"{'not run':>10}"
        lines.append(f"{_short(case):24}{before}{outcome.seconds:8.3f} s")
    for what, before_all, ours in (
        ("all cases", kernel.cases, rcdrv.cases),
        ("the whole process", kernel.process, rcdrv.process),
    ):
        ratio = f"rcdrv takes {ours / before_all:.2f} times as long"
        lines.append(f"{what:24}{before_all:8.3f} s{ours:8.3f} s   {ratio}")
    return "\n".join(lines) + "\n"


# -- documentation ------------------------------------------------------------------------------


def page(
    comparisons: Sequence[Comparison], squares: Sequence[Square], timing: Timing, release: str
) -> str:
    """docs/fidelity.md."""
    return _PAGE.format(
        release=release,
        command=COMMAND,
        verdicts=verdicts(comparisons),
        square=square(squares),
        time=_time(timing),
    )


def verdicts(comparisons: Sequence[Comparison]) -> str:
    """The part of the page that must not change from one run to the next."""
    used = list(_used(comparisons))
    return _VERDICTS.format(
        table=_markdown_table(comparisons),
        differences=_list(entry for entry in used if entry.differs),
        failures=_list(entry for entry in used if not entry.differs),
    )


def square(squares: Sequence[Square]) -> str:
    """The section about the kernel's endpoint functions."""
    changed = {(each.preset, pair[0].case) for each in squares for pair in each.differing}
    comparisons = [each.kernel for each in squares]
    return _SQUARE.format(
        heading=SQUARE_HEADING,
        table=_markdown_table(comparisons, changed),
        different=len(changed) or "none",
        cells=sum(len(comparison.rows) for comparison in comparisons),
    )


def columns(text: str, heading: str) -> dict[str, list[str]]:
    """The cells below each preset in the table of a section of the page."""
    section = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return {column[0].strip("`"): list(column[2:]) for column in zip(*lines, strict=True)}


def _markdown_table(
    comparisons: Sequence[Comparison], changed: Container[tuple[str, str]] = ()
) -> str:
    lines = [
        ["case", *(f"`{comparison.preset}`" for comparison in comparisons)],
        ["---"] * (1 + len(comparisons)),
    ]
    for case, rows in _by_case(comparisons):
        cells = (
            ""
            if row is None
            else _markdown_cell(row) + (" !" if (row.preset, case) in changed else "")
            for row in rows
        )
        lines.append([f"`{case}`", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(entries: Iterable[Explanation]) -> str:
    items = (
        f"* **[{_number(entry)}]** kernel `{entry.kernel}`, rcdrv `{entry.rcdrv}`. {entry.why}"
        f" ({entry.source})"
        for entry in entries
    )
    return "\n".join(
        textwrap.fill(item, 99, subsequent_indent="  ", break_on_hyphens=False) for item in items
    )


def _time(timing: Timing) -> str:
    kernel, rcdrv = timing.kernel, timing.rcdrv
    missing = [_short(case) for case in rcdrv.outcomes if case not in kernel.outcomes]
    return _TIME.format(
        preset=timing.preset,
        runs=timing.runs,
        cases=len(rcdrv.outcomes),
        kernel=kernel,
        rcdrv=rcdrv,
        by_cases=rcdrv.cases / kernel.cases,
        by_process=rcdrv.process / kernel.process,
        left_out=f"\nThe kselftest did not run {', '.join(missing)}." if missing else "",
    )


# -- JSON ---------------------------------------------------------------------------------------


def document(
    comparisons: Sequence[Comparison],
    squares: Iterable[Square],
    outdated: Iterable[Stale],
    timing: Timing,
    release: str,
) -> dict[str, Any]:
    """All that is known, as plain JSON types."""
    return {
        "kernel": release,
        "rows": [_row(row) for comparison in comparisons for row in comparison.rows],
        "kernel_endpoint_rows": [_row(row) for each in squares for row in each.kernel.rows],
        "explanations": {
            _number(entry): {
                "kernel": entry.kernel,
                "rcdrv": entry.rcdrv,
                "why": entry.why,
                "source": entry.source,
            }
            for entry in EXPLANATIONS
        },
        "stale": [
            {"explanation": _number(each.explanation), "preset": each.preset, "case": each.case}
            for each in outdated
        ],
        "presets": {
            comparison.preset: {
                "left_out": list(left_out(comparison.preset)),
                "kernel_log": list(comparison.kernel.log),
                "rcdrv_log": list(comparison.rcdrv.log),
            }
            for comparison in comparisons
        },
        "timing": {
            "preset": timing.preset,
            "runs": timing.runs,
            "kernel": _seconds(timing.kernel),
            "rcdrv": _seconds(timing.rcdrv),
        },
    }


def _row(row: Row) -> dict[str, Any]:
    entry = explain(row)
    return {
        "preset": row.preset,
        "case": row.case,
        "kernel": _outcome(row.kernel),
        "rcdrv": _outcome(row.rcdrv),
        "differs": row.differs,
        "accounted_for": row.fine or entry is not None,
        "explanation": _number(entry) if entry else None,
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "verdict": outcome.verdict,
        "cause": outcome.cause,
        "words": list(outcome.words),
        "seconds": outcome.seconds,
    }


def _seconds(judgement: Judgement) -> dict[str, Any]:
    by_case = {case: outcome.seconds for case, outcome in judgement.outcomes.items()}
    return {"process": judgement.process, "cases": judgement.cases, "by_case": by_case}


# -- parts --------------------------------------------------------------------------------------


def _by_case(comparisons: Sequence[Comparison]) -> Iterator[tuple[str, list[Row | None]]]:
    """Each case with its row on every preset; None where no judge knows it there."""
    rows = {(row.preset, row.case): row for each in comparisons for row in each.rows}
    for case in dict.fromkeys(case for _, case in rows):
        yield case, [rows.get((each.preset, case)) for each in comparisons]


def _cell(row: Row) -> str:
    text = f"{row.kernel.verdict}/{row.rcdrv.verdict}" if row.differs else row.kernel.verdict
    return f"{text}{_mark(row)}"


def _markdown_cell(row: Row) -> str:
    if row.differs:
        return f"**{row.kernel.verdict} / {row.rcdrv.verdict}**{_mark(row)}"
    return f"{row.kernel.verdict}{_mark(row)}"


def _mark(row: Row) -> str:
    if row.fine:
        return ""
    entry = explain(row)
    return f" [{_number(entry) if entry else '!'}]"


def _number(entry: Explanation) -> int:
    return 1 + EXPLANATIONS.index(entry)


def _used(comparisons: Iterable[Comparison]) -> Iterator[Explanation]:
    used = [explain(row) for comparison in comparisons for row in comparison.rows]
    return (entry for entry in EXPLANATIONS if entry in used)


def _short(case: str) -> str:
    """Without the fixture, which the rest makes clear."""
    return case.partition(".")[2]
