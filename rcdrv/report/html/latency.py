"""Sections of ``rcdrv ring``, ``bench`` and ``ntb ping``: latencies and their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcdrv.report.html.markup import Child, Markup, element, join
from rcdrv.report.html.plot import course, distributions
from rcdrv.report.html.section import (
    Section,
    code,
    explanation,
    facts,
    judged,
    percentile_table,
    row,
    table,
)
from rcdrv.report.html.source import Source
from rcdrv.results.bench import TITLES, Series, distribution, from_document
from rcdrv.results.distribution import Distribution
from rcdrv.results.node import Node
from rcdrv.results.units import duration_text, period_text
from rcdrv.verdict import Verdict


def ring(source: Source) -> Section:
    node = source.node
    device = node.said("device")
    if node.find("soak") is not None:
        return _soak(source, device)
    latencies: list[int | None] = []
    told: list[bool | None] = []
    for one in node["rings"]:
        acknowledged, latency = one.find("acknowledged"), one.find("latency_ns")
        told.append(None if acknowledged is None else acknowledged.flag)
        latencies.append(latency.nanoseconds if told[-1] and latency is not None else None)
    words = f"{len(told)} rings" if len(told) != 1 else "1 ring"
    if all(one is None for one in told):
        words += " written, not verified" if told else ""
    else:
        words += f", {told.count(True)} acknowledged"
    body = [*_judged(node), facts([*_doorbell(node), ("interrupt", node["irq"].text)])]
    measured = [one for one in latencies if one is not None]
    if measured:
        series = Series("ring to answer", Distribution.of(measured))
        words += f", median {_median(series)}"
        each = course(latencies, f"Each ring, {device}", "ring") if len(latencies) > 2 else None
        body += _drawn(series, f"Ring to acknowledgement, {device}", each)
    if node["stray_interrupts"].integer:
        words += f", {node['stray_interrupts'].integer} stray interrupts"
    return judged("ring", source, device, words, join(*body))


def _soak(source: Source, device: str) -> Section:
    """Return the section of ``rcdrv ring --soak``."""
    node, soak = source.node, source.node["soak"]
    count, failed = soak["count"].integer, soak["failed"].integer
    words = f"{count} rings in {period_text(soak['elapsed'].number)}, {failed} failed"
    pairs: list[tuple[str, Child]] = [*_doorbell(node), ("interrupt", node["irq"].text)]
    pairs.append(("cycles", str(soak["cycles"].integer)))
    for drift in soak["drift"]:
        before, after = (duration_text(drift[key].number) for key in ("before", "after"))
        pairs.append((f"drift of p{drift['percentile'].number:g}", f"{before} to {after}"))
    body = [*_judged(node), facts(pairs)]
    if soak["acknowledged"].integer:
        series = Series("ring to answer", distribution(soak))
        words += f", median {_median(series)}"
        parts = [part.find("p50") for part in soak["parts"]]
        medians = [None if one is None else one.nanoseconds for one in parts]
        title = f"Median of each part of the time, {device}"
        each = course(medians, title, "part") if len(medians) > 2 else None
        body += _drawn(series, f"Ring to acknowledgement, {device}", each)
    return judged("ring", source, device, words, join(*body))


def _drawn(series: Series, title: str, each: Markup | None) -> list[Child]:
    """Return the distribution if it is of several, the course, and the numbers."""
    several = series.distribution.count > 1
    hill = distributions([series], title) if several else None
    return [hill, each, percentile_table([series])]


def _doorbell(node: Node) -> list[tuple[str, Child]]:
    place = node.find("doorbell")
    pairs: list[tuple[str, Child]] = []
    if place is not None:
        where = f"BAR{place['bar'].integer}+{place['offset'].integer:#x}"
        pairs = [("doorbell", code(where)), ("data", code(f"{place['data'].integer:#010x}"))]
    if node["doorbell_left_enabled"].flag:
        pairs.append(("after it", "the doorbell may still be enabled"))
    return pairs


def _judged(node: Node) -> list[Child]:
    """Return the explanation of a verdict other than pass."""
    verdict = node["verdict"].verdict
    if verdict is Verdict.PASS:
        return []
    return [
        element(
            "div",
            explanation(node.said("reason"), node.said("message"), node.said("hint")),
            class_=f"judged {verdict.value}",
        )
    ]


def bench(source: Source) -> Section:
    node, result = source.node, from_document(source.node)
    what, series = result.kind, result.series
    has_verdict = node.has("verdict")
    body: list[Child] = _judged(node) if has_verdict else []
    if series:
        body.append(distributions(series, f"{TITLES.get(what, what)}, {result.device}"))
        body.append(percentile_table(series))
    setup = [(name.replace("_", " "), _plain(value)) for name, value in result.setup.items()]
    body.append(facts([(name, value) for name, value in setup if value]))
    first = f"{series[0].name}: median {_median(series[0])}" if series else "nothing was measured"
    count = f" and {len(series) - 1} more" if len(series) > 1 else ""
    if has_verdict:
        return judged(f"bench {what}", source, result.device, first + count, join(*body))
    return Section(f"bench {what}", result.device, source.name, None, first + count, join(*body))


def compared_benches(sources: Sequence[Source]) -> Markup:
    """Compare a benchmark's series in several files, as ratios to the first."""
    runs = [from_document(source.node) for source in sources]
    drawn, looks, rows = [], [], []
    for name in dict.fromkeys(one.name for run in runs for one in run.series):
        first = runs[0].find(name)
        for number, (source, run) in enumerate(zip(sources, runs, strict=True)):
            found = run.find(name)
            if found is None:
                continue
            drawn.append(found._replace(name=f"{name}, {source.name}"))
            looks.append(number)
            cells = [source.name, *(_duration(found, percent) for percent in (50, 99))]
            cells += [_ratio(found, first, percent) for percent in (50, 99)]
            rows.append(row(*cells, name=name))
    heads = ["", "file", "p50", "p99", "p50 / first", "p99 / first"]
    what = runs[0].kind
    return join(
        distributions(drawn, f"{TITLES.get(what, what)}, compared", looks) if drawn else None,
        table(heads, rows, "Each file, and how many times as long as in the first one it takes"),
    )


def _ratio(found: Series, first: Series | None, percent: float) -> str:
    if first is None or first is found:
        return ""
    now, then = (one.distribution.percentile(percent) for one in (found, first))
    return f"{now / max(1, then):.2f}"


def _plain(value: Any) -> str:
    """Return a value of the set-up as text; lists are joined, null is empty."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _duration(series: Series, percent: float) -> str:
    return duration_text(series.distribution.percentile(percent))


def _median(series: Series) -> str:
    return _duration(series, 50)


def ping(source: Source) -> Section:
    node = source.node
    device = node.said("device")
    series = _trips(node, "round trip")
    words = f"{node['transmitted'].integer} sent, {node['received'].integer} answered"
    body = _judged(node)
    if series is not None:
        words += f", median {_median(series)}"
        body += _drawn(series, f"Round trips, {device}", _ping_course(node, device))
    return judged("ntb ping", source, device, words, join(*body))


def _trips(node: Node, name: str) -> Series | None:
    times = [trip["nanoseconds"].nanoseconds for trip in node["trips"]]
    return Series(name, Distribution.of(times)) if times else None


def _ping_course(node: Node, device: str) -> Markup | None:
    """Return points by sequence number, so that lost ones show."""
    found = {trip["sequence"].integer: trip["nanoseconds"].nanoseconds for trip in node["trips"]}
    count = node["transmitted"].integer
    # An impossible sequence number must not make a plot of that length.
    if not found or not 3 <= count <= 10 * max(100, len(found)) or max(found) > count + 1:
        return None
    first = min(1, *found)
    return course(
        [found.get(first + index) for index in range(count)], f"Each ping, {device}", "ping"
    )


def compared_pings(source: Source) -> Section:
    node = source.node
    series = [
        found for end in node["endpoints"] if (found := _trips(end, end["device"].text)) is not None
    ]
    ratio = node["ratio"]["median"].number
    devices = " and ".join(end["device"].text for end in node["endpoints"])
    note = (
        "Both are software endpoints: the poll interval is modelled, the rest is the host's."
        if (model := node.find("model")) is not None and model.flag
        else None
    )
    return Section(
        "ntb ping --compare",
        devices,
        source.name,
        node["verdict"].verdict,
        f"ratio of medians {ratio:.3g}",
        join(
            distributions(series, "Round trips compared") if series else None,
            percentile_table(series) if series else None,
            element("p", note, class_="note") if note else None,
        ),
    )
