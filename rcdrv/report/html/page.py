"""The page: one self-contained file that loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.resources import files

from rcdrv import __version__
from rcdrv.report.html import fuzzed, latency, layout, suite
from rcdrv.report.html.markup import Markup, element, join, style
from rcdrv.report.html.section import Finding, Section, badge, explanation, facts, judged
from rcdrv.report.html.source import Source
from rcdrv.results.layout import Region
from rcdrv.verdict import Verdict

_WORST = (
    Verdict.LOST,
    Verdict.ERROR,
    Verdict.FAIL,
    Verdict.UNVERIFIED,
    Verdict.PASS,
    Verdict.SKIP,
)
"""Verdicts in order of severity; the page has the worst."""

# Even if a result became markup, a browser would load and run nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(sources: Sequence[Source], made: datetime) -> str:
    """Return the whole page.

    :param made: date and version line
    :raises UsageError: malformed document; the message names the place
    """
    sections = [
        _info(source, sources) if source.kind == "info" else _SECTIONS[source.kind](source)
        for source in sources
    ]
    verdicts = [one.verdict for one in sections if one.verdict is not None]
    worst = next((verdict for verdict in _WORST if verdict in verdicts), None)
    devices = list(dict.fromkeys(one.device for one in sections if one.device))
    subject = devices[0] if devices else "Results"
    if len(devices) > 1:
        subject += f" and {len(devices) - 1} more"
    suites = [source for source in sources if source.kind == "test"]
    body = [
        element(
            "header",
            element("p", "rcdrv report", class_="over"),
            element("h1", subject, badge(worst) if worst else None),
            element(
                "p",
                f"{len(sources)} result{'s' if len(sources) > 1 else ''},"
                f" made {made:%Y-%m-%d %H:%M} by rcdrv {__version__}",
                class_="note",
            ),
        ),
        _contents(sections) if len(sections) > 1 else None,
        _findings(sections),
        element("section", element("h2", "The runs compared"), suite.comparison(suites), id="runs")
        if len(suites) > 1
        else None,
        [_compared(what, runs) for what, runs in _benches(sources).items() if len(runs) > 1],
        [_section(one, number) for number, one in enumerate(sections, 1)],
    ]
    sheet = files("rcdrv.report.html").joinpath("style.css").read_text("utf-8")
    return "<!DOCTYPE html>\n" + element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("link", rel="icon", href="data:,"),
            element("title", f"rcdrv: {subject}"),
            style(sheet),
        ),
        element("body", element("main", body)),
        lang="en",
    )  # fmt: skip


def _benches(sources: Sequence[Source]) -> dict[str, list[Source]]:
    found: dict[str, list[Source]] = {}
    for source in sources:
        if source.kind == "bench":
            found.setdefault(source.node["bench"].text, []).append(source)
    return found


def _compared(what: str, runs: Sequence[Source]) -> Markup:
    heading = element("h2", f"bench {what}, compared")
    return element("section", heading, latency.compared_benches(runs))


def _contents(sections: Sequence[Section]) -> Markup:
    """Return the table of contents: one row per result, with its verdict."""
    return element(
        "nav",
        element(
            "ul",
            [
                element(
                    "li",
                    element(
                        "a",
                        element("span", badge(one.verdict) if one.verdict else "", class_="mark"),
                        element("span", one.kind, class_="kind"),
                        element("span", one.device, class_="device"),
                        element("span", one.headline, class_="headline"),
                        href=f"#result-{number}",
                    ),
                )
                for number, one in enumerate(sections, 1)
            ],
        ),
        aria_label="Results",
    )


def _findings(sections: Sequence[Section]) -> Markup | None:
    """Return failures with what to check next, for the top of the page.

    Cases with the same likely cause share one entry.
    """
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for number, section in enumerate(sections):
        for one in section.findings:
            alike = (one.reason, one.hint) if one.case and one.hint else object()
            groups.setdefault((number, one.verdict, alike), []).append(one)
    alone = len(sections) == 1 and not any(one.case for one in sections[0].findings)
    if not groups or alone:  # alone, the one section begins with the same words
        return None
    return element(
        "section",
        element("h2", "What to look at"),
        element("ol", [_group(found) for found in groups.values()], class_="findings"),
        id="findings",
    )


def _group(found: Sequence[Finding]) -> Markup:
    first = found[0]
    cases = [one.case for one in found if one.case]
    where = first.device
    if cases:
        where += f": {cases[0] if len(cases) == 1 else f'{len(cases)} cases'}"
    listed = [(element("code", case), " ") for case in cases] if len(cases) > 1 else None
    return element(
        "li",
        element("p", badge(first.verdict), element("b", where)),
        explanation(first.reason, first.message, first.hint),
        element("p", listed, class_="also") if listed else None,
        class_=first.verdict.value,
    )


def _section(one: Section, number: int) -> Markup:
    return element(
        "section",
        element("p", one.kind, class_="over"),
        element(
            "h2", one.device or one.file, badge(one.verdict) if one.verdict is not None else None
        ),
        element("p", element("b", one.headline), element("span", one.file, class_="file")),
        one.body,
        id=f"result-{number}",
        class_="result",
    )


def _info(source: Source, sources: Sequence[Source]) -> Section:
    """Return the section of ``rcdrv info``, with the doorbell found by a ring of the device."""
    node = source.node
    device = node["device"].text
    doorbell, bar = None, -1
    for other in sources:
        if other.kind == "ring" and other.node.said("device") == device:
            place = other.node.find("doorbell")
            if place is not None:
                bar = place["bar"].integer
                doorbell = Region(place["offset"].integer, 4, "doorbell", "doorbell")
    bars = layout.of_info(node, doorbell, bar)
    vectors = ", ".join(
        f"{name} {count.integer}" for name, count in node["interrupts"].items() if count.integer
    )
    pairs = [
        ("part", node["part"].text),
        ("ID", f"{node['vendor_id'].integer:04x}:{node['device_id'].integer:04x}"),
        ("reached by", node["backend"].text),
        ("interrupts", vectors or "none"),
    ]
    link = node.find("link")
    if link is not None:
        pairs.append(("link", f"{link['speed_gts'].number:g} GT/s x{link['width'].integer}"))
    return Section(
        "info",
        device,
        source.name,
        None,
        f"{len(bars)} BARs",
        join(
            facts(pairs),
            layout.draw(bars, f"The BARs of {device}"),
            layout.table(bars),
        ),
    )


def _error(source: Source) -> Section:
    """Return the section of a command that failed before it began."""
    node = source.node
    device, reason = node.said("device"), node.said("reason")
    body = join(*explanation(reason, node["message"].text, node["hint"].text))
    return judged("error", source, device, reason, body, device or source.name)


_SECTIONS: dict[str, Callable[[Source], Section]] = {
    "check": suite.check,
    "test": suite.section,
    "ring": latency.ring,
    "bench": latency.bench,
    "ping": latency.ping,
    "ping compare": latency.compared_pings,
    "fuzz layout": fuzzed.campaign,
    "fuzz examples": fuzzed.examples,
    "fuzz replay": fuzzed.replay,
    "fuzz device": fuzzed.device,
    "error": _error,
}
"""Each kind but ``info``, which also shows what others have found."""
