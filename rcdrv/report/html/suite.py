"""Sections of ``rcdrv test`` and ``check``: the verdict of each case, or layer; runs compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from typing import NamedTuple

from rcdrv.report.html.markup import Markup, element, join
from rcdrv.report.html.section import (
    Finding,
    Section,
    badge,
    code,
    explanation,
    judged,
    row,
    wide_table,
)
from rcdrv.report.html.source import Source
from rcdrv.results.node import Node
from rcdrv.results.result import CASE_VERDICTS
from rcdrv.results.units import duration_text
from rcdrv.verdict import Verdict

_FINE = (Verdict.PASS, Verdict.SKIP)


class _Case(NamedTuple):
    fixture: str
    name: str
    """Without the fixture."""
    verdict: Verdict
    reason: str
    message: str
    hint: str
    diagnostics: tuple[str, ...]
    seconds: float
    change: str
    """``worse``, ``better``, ``new`` or ``same``; empty without a baseline."""
    known: bool
    """Whether the baseline has the same failure."""

    @property
    def failed(self) -> bool:
        return self.change == "worse" or (self.verdict not in _FINE and not self.known)

    @property
    def full_name(self) -> str:
        return f"{self.fixture}.{self.name}" if self.fixture else self.name


def section(source: Source) -> Section:
    node = source.node
    cases = [_case(result) for result in node["results"]]
    missing = [name.text for name in node["not_run"]]
    device = node["device"].text
    findings = [
        Finding(case.verdict, device, case.full_name, case.reason, case.message, case.hint)
        for case in cases
        if case.failed
    ]
    seconds = sum(case.seconds for case in cases)
    counts = [
        f"{count} {_WORDS[verdict]}"
        for verdict in CASE_VERDICTS
        if (count := sum(case.verdict is verdict for case in cases))
    ]
    if missing:
        counts.append(f"{len(missing)} not run")
    if any(case.known for case in cases):
        counts.append(f"{sum(case.known for case in cases)} as expected")
    return Section(
        "test",
        device,
        source.name,
        node["verdict"].verdict,
        f"{', '.join(counts) or 'no cases'}, in {seconds:.2f} s",
        join(
            element("p", node.said("description"), class_="note"),
            _bar(cases, len(missing)),
            _table(cases, missing),
        ),
        findings,
    )


_WORDS = {
    Verdict.PASS: "passed",
    Verdict.FAIL: "failed",
    Verdict.SKIP: "skipped",
    Verdict.LOST: "lost",
    Verdict.ERROR: "in error",
}


def _case(node: Node) -> _Case:
    fixture, variant, test = (node[key].text for key in ("fixture", "variant", "test"))
    verdict = node["verdict"]
    if verdict.verdict not in CASE_VERDICTS:
        verdict.wrong("the verdict of a case")
    lines = [line for text in node["diagnostics"] for line in text.text.splitlines()]
    return _Case(
        fixture,
        ".".join(part for part in (variant, test) if part),
        verdict.verdict,
        node.said("reason"),
        node.said("message"),
        node.said("hint"),
        tuple(lines),
        node["seconds"].number,
        node.said("change"),
        (known := node.find("known_failure")) is not None and known.flag,
    )


def _bar(cases: Sequence[_Case], missing: int) -> Markup | None:
    """Draw the totals as a bar; the headline has the numbers."""
    parts = [(verdict.value, sum(case.verdict is verdict for case in cases)) for verdict in Verdict]
    parts.append(("not-run", missing))
    if not any(count for _, count in parts):
        return None
    return element(
        "div",
        [
            element("span", class_=f"part {what}", style=f"flex-grow:{count}")
            for what, count in parts
            if count
        ],
        class_="totals",
        aria_hidden="true",
    )


def _table(cases: Sequence[_Case], missing: Sequence[str]) -> Markup:
    bodies = []
    for fixture, group in groupby(cases, key=lambda case: case.fixture):
        bodies.append(_group(fixture, map(_row, group)))
    if missing:
        rows = [
            row(_not_run("not run"), code(name), "the run ended before it", "") for name in missing
        ]
        bodies.append(_group("not run", rows))
    heads = ("verdict", "case", "what was seen", "time")
    return wide_table(heads, bodies)


def _group(name: str, rows: Iterable[Markup]) -> Markup:
    heading = element("tr", element("th", name, colspan=4, scope="rowgroup"), class_="group")
    return element("tbody", heading, rows)


def _not_run(said: str) -> Markup:
    return element("span", said, class_="badge not-run")


def _row(case: _Case) -> Markup:
    told = explanation(case.reason, case.message, case.hint, case.diagnostics)
    return element(
        "tr",
        element("td", badge(case.verdict), _since(case)),
        element("td", code(case.name)),
        element("td", told),
        element("td", duration_text(case.seconds * 1e9), class_="right"),
        class_=f"case {case.verdict.value}",
    )


def _since(case: _Case) -> Markup | None:
    """Return a case's change since the baseline, if any."""
    said = "as expected" if case.known else case.change
    return element("small", said) if said not in ("", "same") else None


def comparison(sources: Sequence[Source]) -> Markup:
    """Return the verdicts of several runs, one column each, grouped by board.

    Rows in which the runs of one board differ are marked; with one run per board, rows in which
    the boards differ.
    """
    boards: dict[str, list[Source]] = {}
    for source in sources:
        boards.setdefault(source.node["device"].text, []).append(source)
    sources = [source for runs in boards.values() for source in runs]
    sizes = [len(runs) for runs in boards.values()]
    if max(sizes) == 1:
        sizes = [len(sources)]
    runs = [
        {case.full_name: case for case in map(_case, source.node["results"])} for source in sources
    ]
    names = dict.fromkeys(name for run in runs for name in run)
    rows = []
    for name in names:
        found = [run.get(name) for run in runs]
        differs = _differ(found, sizes)
        rows.append(row(*map(_cell, found), name=code(name), class_="differs" if differs else None))
    heads = [
        element("th", device, colspan=len(of_board), scope="colgroup")
        for device, of_board in boards.items()
    ]
    names_of_runs = [
        element("th", element("small", source.name), scope="col") for source in sources
    ]
    return element(
        "div",
        element(
            "table",
            element(
                "thead",
                element("tr", element("th", "case", rowspan=2, scope="col"), heads),
                element("tr", names_of_runs),
            ),
            element("tbody", rows),
            class_="matrix",
        ),
        class_="wide",
    )


def _cell(case: _Case | None) -> list[Markup]:
    if case is None:
        return [_not_run("not run")]
    reason = [] if case.verdict in _FINE else [element("span", case.reason, class_="reason")]
    return [badge(case.verdict), *reason, *([said] if (said := _since(case)) else [])]


def _differ(found: Sequence[_Case | None], sizes: Sequence[int]) -> bool:
    """Return whether verdicts differ within a group; groups are consecutive, of these sizes."""
    verdicts = iter([case.verdict if case else None for case in found])
    return any(len(set(islice(verdicts, size))) > 1 for size in sizes)


def check(source: Source) -> Section:
    node = source.node
    broken, side = node.said("broken"), node.said("side")
    device = node["device"].text
    rows = [_layer(one, node) for one in node["layers"]]
    heads = ("verdict", "layer", "what was seen")
    headline = f"{broken} is broken, look at: {side}" if broken else "no layer is broken"
    described = element("p", node.said("description"), class_="note")
    body = join(described, wide_table(heads, element("tbody", rows)))
    return judged("check", source, device, headline, body)


def _layer(layer: Node, document: Node) -> Markup:
    name = layer["name"].text
    told = layer.find("verdict")
    mark = badge(told.verdict) if told else _not_run("not reached")
    is_broken = name == document.said("broken")
    reason, hint = (document.said(key) if is_broken else "" for key in ("reason", "hint"))
    seen = explanation(reason, layer.said("message"), hint)
    seen += [element("p", note.text, class_="note") for note in layer["notes"]]
    return row(mark, name, seen, class_=f"case {told.verdict.value}" if told else "case")
