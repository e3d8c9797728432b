"""Sections of ``rcdrv fuzz``: coverage and findings, each finding with its BAR map."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from rcdrv.report.html import layout
from rcdrv.report.html.markup import Child, Markup, element, join
from rcdrv.report.html.section import Finding, Section, badge, code, facts, row, table, wide_table
from rcdrv.report.html.source import Picture, Source
from rcdrv.results.node import Node
from rcdrv.results.result import CASE_VERDICTS
from rcdrv.verdict import Verdict

_MAPS = 40
"""Maximum number of findings with a map. The rest is listed."""


def campaign(source: Source) -> Section:
    node = source.node
    findings = [
        (one["kind"].text, one["message"].text, one["layout"], one.said("file"))
        for one in node["findings"]
    ]
    seconds = node["seconds"].number
    examples = node["examples"].integer
    return Section(
        "fuzz layout",
        f"seed {node['seed'].integer}",
        source.name,
        Verdict.FAIL if findings else Verdict.PASS,
        f"{examples} layouts, {_findings(len(findings))}",
        join(
            facts(
                [
                    ("layouts", str(examples)),
                    ("time", f"{seconds:.1f} s"),
                    ("rate", f"{examples / seconds:.0f}/s" if seconds > 0 else ""),
                    ("of types, sizes and backends tried", f"{node['coverage'].number:.0%}"),
                    ("hostile layouts", "yes" if node["hostile"].flag else "no"),
                    ("time is", "real" if node["real_time"].flag else "virtual"),
                ]
            ),
            _maps(findings, source.picture),
        ),
        [
            Finding(Verdict.FAIL, "fuzz layout", "", kind, message, file and f"saved as {file}")
            for kind, message, _, file in findings
        ],
    )  # fmt: skip


def _findings(count: int) -> str:
    return "1 finding" if count == 1 else f"{count or 'no'} findings"


def _maps(findings: Sequence[tuple[str, str, Node, str]], picture: Picture) -> Markup:
    shown = [_finding(*one, picture) for one in findings[:_MAPS]]
    rest = [
        element("li", element("b", kind), f": {message}")
        for kind, message, _, _ in findings[_MAPS:]
    ]
    return join(
        shown,
        element("p", f"{len(rest)} more, without their maps:", class_="note") if rest else None,
        element("ul", rest) if rest else None,
    )


def _finding(kind: str, message: str, node: Node, file: str, picture: Picture) -> Markup:
    found = picture(node.value, node.where)
    drawn: list[Child] = []
    if found is not None:
        bars, doorbell = found
        drawn = [
            layout.draw(bars, "The layout of this finding", doorbell),
            layout.table(bars),
        ]
    faults = node.value.get("faults") if found is not None else None
    return element(
        "article",
        element("h3", badge(Verdict.FAIL), element("span", kind, class_="reason"), message),
        element("p", f"faults: {', '.join(map(str, faults))}", class_="note") if faults else None,
        drawn,
        element(
            "details",
            element("summary", "The layout", f", saved as {file}" if file else ""),
            element("pre", _lines(node)),
        ),
        class_="finding",
    )


def _lines(node: Node) -> list[Markup]:
    return [element("span", line) for line in json.dumps(node.value, indent=2).splitlines()]


def examples(source: Source) -> Section:
    """Return the section of a campaign's ``examples.jsonl``: outcomes of each case."""
    outcomes: dict[str, Counter[str]] = {}
    found: dict[tuple[str, str], tuple[str, str, Node, str]] = {}
    for line in source.lines:
        for case, outcome in line["outcomes"].items():
            outcomes.setdefault(case, Counter())[outcome.text.partition(" ")[0]] += 1
        for one in line["findings"]:
            kind, what, message = (part.text for part in one.entries(3))
            found.setdefault((kind, what), (kind, message, line["layout"], ""))
    verdicts = [verdict.value for verdict in CASE_VERDICTS]
    others = sorted({word for counts in outcomes.values() for word in counts} - {*verdicts})
    columns = [word for word in [*verdicts, *others] if any(c[word] for c in outcomes.values())]
    rows = [
        row(*(str(counts[word] or "") for word in columns), name=code(case))
        for case, counts in outcomes.items()
    ]
    caption = f"Outcomes of each case over {len(source.lines)} layouts"
    return Section(
        "fuzz examples",
        f"seed {source.node['seed'].integer}",
        source.name,
        Verdict.FAIL if found else Verdict.PASS,
        f"{len(source.lines)} layouts, {_findings(len(found))}",
        join(_maps(list(found.values()), source.picture), table(["case", *columns], rows, caption)),
        [Finding(Verdict.FAIL, "fuzz", "", kind, text, "") for kind, text, _, _ in found.values()],
    )  # fmt: skip


def replay(source: Source) -> Section:
    rows, findings, replayed = [], [], 0
    for one in source.node["replayed"]:
        replayed += 1
        file, wrong = one["file"].text, [text.text for text in one["findings"]]
        findings += [Finding(Verdict.FAIL, file, "", "", text, "") for text in wrong]
        mark = badge(Verdict.FAIL if wrong else Verdict.PASS)
        saved = element("p", one.said("saved"), class_="note")
        rows.append(row(mark, code(file), (saved, "; ".join(wrong))))
    heads = ("verdict", "file", "what was saved, and what is seen now")
    return Section(
        "fuzz replay",
        f"{replayed} files",
        source.name,
        Verdict.FAIL if findings else Verdict.PASS,
        _findings(len(findings)),
        wide_table(heads, element("tbody", rows)),
        findings,
    )


def device(source: Source) -> Section:
    node = source.node
    message, script = node.said("finding"), node.said("script")
    lines = [element("span", line) for line in script.splitlines()]
    flaky = (said := node.find("flaky")) is not None and said.flag
    return Section(
        "fuzz device",
        node["device"].text,
        source.name,
        Verdict.FAIL if message else Verdict.PASS,
        f"{node['sequences'].integer} sequences, {node['steps'].integer} commands,"
        f" {'1 finding' if message else 'no finding'}",
        join(
            element("p", message, class_="message") if message else None,
            element("p", "It was not seen again when the same was done again.", class_="note")
            if flaky
            else None,
            element("pre", lines) if lines else None,
        ),
        [Finding(Verdict.FAIL, node["device"].text, "", "", message, "")] if message else (),
    )
