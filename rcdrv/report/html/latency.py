"""Sections of ``rcdrv ring``, ``bench`` and ``ntb ping``: latencies and their distribution."""

from __future__ import annotations

from collections.abc import Sequence

from rcdrv.report.html.markup import Child, Markup, element, join
from rcdrv.report.html.plot import Point, Series, course, distributions
from rcdrv.report.html.section import (
    Section,
    code,
    explanation,
    facts,
    finding,
    percentile_table,
    row,
    table,
)
from rcdrv.report.html.source import Source
from rcdrv.results.bench import TITLES, distribution
from rcdrv.results.distribution import Distribution
from rcdrv.results.node import Node
from rcdrv.results.units import duration_text, period_text
from rcdrv.verdict import Verdict


def ring(source: Source) -> Section:
    node = source.node
    device = node.said("device")
    points, told = [], []
    for one in node["rings"]:
        acknowledged = one.find("acknowledged")
        latency = one.find("latency_ns")
        good = acknowledged is not None and acknowledged.flag and latency is not None
        points.append(Point(latency.nanoseconds if good and latency is not None else None))
        told.append(None if acknowledged is None else acknowledged.flag)
    measured = [one.nanoseconds for one in points if one.nanoseconds is not None]
    verdict = node["verdict"].verdict
    if node.find("soak") is not None:
        return _soak(source, device)
    failed = sum(one is False for one in told)
    words = f"{len(points)} rings" if len(points) != 1 else "1 ring"
    if all(one is None for one in told):
        words += " written, not verified" if told else ""
    else:
        words += f", {len(points) - failed - told.count(None)} acknowledged"
    body: list[Child] = [facts([*_doorbell(node), ("interrupt", node["irq"].text)])]
    if measured:
        series = [Series("ring to answer", Distribution.of(measured))]
        words += f", median {_median(series[0])}"
        if len(measured) > 1:
            body.append(distributions(series, f"Ring to acknowledgement, {device}"))
        if len(points) > 2:
            body.append(course(points, f"Each ring, {device}", "ring"))
        body.append(percentile_table(series))
    body = [*_judged(node), *body]
    if node["stray_interrupts"].integer:
        words += f", {node['stray_interrupts'].integer} stray interrupts"
    return Section("ring", device, source.name, verdict, words, join(*body), finding(node, device))


def _soak(source: Source, device: str) -> Section:
    """What ``rcdrv ring --soak`` printed."""
    node, soak = source.node, source.node["soak"]
    count, failed = soak["count"].integer, soak["failed"].integer
    words = f"{count} rings in {period_text(soak['elapsed'].number)}, {failed} failed"
    pairs: list[tuple[str, Child]] = [*_doorbell(node), ("interrupt", node["irq"].text)]
    pairs.append(("cycles", str(soak["cycles"].integer)))
    for drift in soak["drift"]:
        before, after = (duration_text(drift[key].number) for key in ("before", "after"))
        pairs.append((f"drift of p{drift['percentile'].number:g}", f"{before} to {after}"))
    body: list[Child] = [*_judged(node), facts(pairs)]
    if soak["acknowledged"].integer:
        series = [Series("ring to answer", distribution(soak))]
        words += f", median {_median(series[0])}"
        medians = [part.find("p50") for part in soak["parts"]]
        points = [Point(None if one is None else one.nanoseconds) for one in medians]
        body.append(distributions(series, f"Ring to acknowledgement, {device}"))
        if len(points) > 2:
            body.append(course(points, f"Median of each part of the time, {device}", "part"))
        body.append(percentile_table(series))
    verdict = node["verdict"].verdict
    return Section("ring", device, source.name, verdict, words, join(*body), finding(node, device))


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
    node = source.node
    what, device = node["bench"].text, node["device"].text
    series, sizes = [], []
    for entry in node["series"]:
        series.append(Series(entry["name"].text, distribution(entry)))
        sizes.append(entry["size"].integer)
    setup = [(name.replace("_", " "), _plain(value)) for name, value in node["setup"].items()]
    body: list[Child] = [*(_judged(node) if node.has("verdict") else [])]
    if series:
        body.append(distributions(series, f"{TITLES.get(what, what)}, {device}"))
        body.append(percentile_table(series, sizes))
    body.append(facts([(name, value) for name, value in setup if value]))
    first = f"{series[0].name}: median {_median(series[0])}" if series else "nothing was measured"
    count = f" and {len(series) - 1} more" if len(series) > 1 else ""
    return Section(
        f"bench {what}",
        device,
        source.name,
        node["verdict"].verdict if node.has("verdict") else None,
        first + count,
        join(*body),
        finding(node, device) if node.has("verdict") else (),
    )


def compared_benches(sources: Sequence[Source]) -> Markup:
    """Compare a benchmark's series in several files, as ratios to the first."""
    runs = [
        {entry["name"].text: distribution(entry) for entry in source.node["series"]}
        for source in sources
    ]
    drawn, rows = [], []
    for name in dict.fromkeys(name for run in runs for name in run):
        first = runs[0].get(name)
        for number, (source, run) in enumerate(zip(sources, runs, strict=True)):
            found = run.get(name)
            if found is None:
                continue
            drawn.append(Series(f"{name}, {source.name}", found, number))
            cells = [source.name, *(duration_text(found.percentile(p)) for p in (50, 99))]
            cells += [_ratio(found, first, percent) for percent in (50, 99)]
            rows.append(row(*cells, name=name))
    heads = ["", "file", "p50", "p99", "p50 / first", "p99 / first"]
    what = sources[0].node["bench"].text
    return join(
        distributions(drawn, f"{TITLES.get(what, what)}, compared") if drawn else None,
        table(heads, rows, "Each file, and how many times as long as in the first one it takes"),
    )


def _ratio(found: Distribution, first: Distribution | None, percent: float) -> str:
    if first is None or first is found:
        return ""
    return f"{found.percentile(percent) / max(1, first.percentile(percent)):.2f}"


def _plain(value: Node) -> str:
    """Return a value of the set-up as text; lists are joined, null is empty."""
    if value.value is None:
        return ""
    if isinstance(value.value, list):
        return ", ".join(_plain(one) for one in value)
    if isinstance(value.value, bool):
        return "yes" if value.value else "no"
    return f"{value.value:.3g}" if isinstance(value.value, float) else str(value.value)


def _median(series: Series) -> str:
    return duration_text(series.distribution.percentile(50))


def ping(source: Source) -> Section:
    node = source.node
    device = node.said("device")
    series = _trips(node, "round trip")
    body: list[Child] = [*_judged(node)]
    if series is not None:
        if series.distribution.count > 1:
            body.append(distributions([series], f"Round trips, {device}"))
        body.append(_ping_course(node, device))
        body.append(percentile_table([series]))
    return Section(
        "ntb ping",
        device,
        source.name,
        node["verdict"].verdict,
        _ping_words(node) + (f", median {_median(series)}" if series else ""),
        join(*body),
        finding(node, device),
    )


def _trips(node: Node, name: str) -> Series | None:
    times = [trip["nanoseconds"].nanoseconds for trip in node["trips"]]
    return Series(name, Distribution.of(times)) if times else None


def _ping_words(node: Node) -> str:
    return f"{node['transmitted'].integer} sent, {node['received'].integer} answered"


def _ping_course(node: Node, device: str) -> Markup | None:
    """Return points by sequence number, so that lost ones show."""
    found = {trip["sequence"].integer: trip["nanoseconds"].nanoseconds for trip in node["trips"]}
    count = node["transmitted"].integer
    # An impossible sequence number must not make a plot of that length.
    if not found or not 3 <= count <= 10 * max(100, len(found)) or max(found) > count + 1:
        return None
    first = min(1, *found)
    points = [Point(found.get(first + index)) for index in range(count)]
    return course(points, f"Each ping, {device}", "ping")


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
