"""A section of the page, for one result file, and elements that several kinds share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rcdrv.report.html.markup import Child, Markup, element
from rcdrv.report.html.source import Source
from rcdrv.results.bench import Series
from rcdrv.results.distribution import PERCENTILES
from rcdrv.results.units import duration_text
from rcdrv.verdict import Verdict


class Finding(NamedTuple):
    """A failure, for the top of the page."""

    verdict: Verdict
    device: str
    case: str
    """Case; ``""`` if the command has none."""
    reason: str
    message: str
    hint: str


class Section(NamedTuple):
    """The section of one result file."""

    kind: str
    """The command, such as ``test``."""
    device: str
    file: str
    verdict: Verdict | None
    """None if the command has no verdict, as ``info``."""
    headline: str
    """Outcome in one line."""
    body: Markup
    findings: Sequence[Finding] = ()


def judged(
    kind: str, source: Source, device: str, headline: str, body: Markup, subject: str = ""
) -> Section:
    """Return the section of a document with ``verdict``, ``reason``, ``message`` and ``hint``.

    :param subject: what its finding is about, if not the device
    """
    node = source.node
    verdict = node["verdict"].verdict
    findings = []
    if verdict not in (Verdict.PASS, Verdict.SKIP):
        said = (node.said(key) for key in ("reason", "message", "hint"))
        findings = [Finding(verdict, subject or device, "", *said)]
    return Section(kind, device, source.name, verdict, headline, body, findings)


def badge(verdict: Verdict) -> Markup:
    """Return the verdict as a coloured word."""
    return element("span", verdict.value, class_=f"badge {verdict.value}")


def head(names: Sequence[str]) -> Markup:
    """Return the head of a table."""
    return element("thead", element("tr", [element("th", one, scope="col") for one in names]))


def row(*cells: Child, name: Child = None, class_: str | None = None) -> Markup:
    """Return a row of a table; its name, if any, is in a cell before the others."""
    first = None if name is None else element("th", name, scope="row")
    return element("tr", first, [element("td", cell) for cell in cells], class_=class_)


def wide_table(heads: Sequence[str], bodies: Child) -> Markup:
    """Return a table of cases that scrolls on a narrow page."""
    return element("div", element("table", head(heads), bodies, class_="cases"), class_="wide")


def code(text: str) -> Markup:
    return element("code", text)


def explanation(reason: str, message: str, hint: str, lines: Sequence[str] = ()) -> list[Child]:
    why = element("span", reason, class_="reason") if reason else None
    return [
        element("p", why, message, class_="message") if reason or message else None,
        element("pre", [element("span", line) for line in lines]) if lines else None,
        element("p", hint, class_="hint") if hint else None,
    ]


def facts(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Return names with values, side by side."""
    return element(
        "dl",
        [element("div", element("dt", name), element("dd", value)) for name, value in pairs],
        class_="facts",
    )


def table(heads: Sequence[str], rows: Sequence[Markup], caption: str) -> Markup:
    """Return a table that may be wider than the page; all but the first column are numbers."""
    parts = (element("caption", caption), head(heads), element("tbody", rows))
    return element("div", element("table", *parts, class_="numbers"), class_="wide")


_COLUMNS = ("count", "min", *(f"p{share:g}" for share in PERCENTILES), "max")


def percentile_table(series: Sequence[Series]) -> Markup:
    """Return the distributions as numbers, with the rates at p50 of those that have one."""
    moving = any(one.size for one in series)
    rows = []
    for one in series:
        found = one.distribution
        shares = [found.percentile(share) for share in PERCENTILES]
        cells = [str(found.count), *map(duration_text, (found.minimum, *shares, found.maximum))]
        if moving:
            rate = one.rate(found.percentile(50))
            cells.append(f"{rate:.3g} MB/s" if one.size else "")
        rows.append(row(*cells, name=one.name))
    heads = ["", *_COLUMNS, *(["at p50"] if moving else [])]
    return table(heads, rows, "Percentiles")
