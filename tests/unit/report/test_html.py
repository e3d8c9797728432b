"""The page: whatever a result holds, it stays text, and whatever is no result is told."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from datetime import datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.cli import main
from rcdrv.errors import UsageError
from rcdrv.report.html import layout, plot
from rcdrv.report.html.markup import element
from rcdrv.report.html.page import page
from rcdrv.report.html.source import KINDS, Source, read
from rcdrv.report.text import one_line
from rcdrv.results.bench import Series
from rcdrv.results.distribution import Distribution
from rcdrv.results.document import to_document
from rcdrv.results.layout import Bar, Region
from rcdrv.results.node import Node
from rcdrv.results.units import duration_text, size_text
from rcdrv.sim.functions import doorbell_place
from rcdrv.sim.picture import picture

from .samples import a_run, runs, texts

MADE = datetime(2026, 1, 2, 3, 4)

SAID = {"reason": "irq-lost", "message": "no interrupt", "hint": "look at the dmesg"}

RING = {
    "device": "sim:rk3588",
    "doorbell": {"bar": 4, "offset": 0xA0, "data": 0},
    "irq": "msi",
    "rings": [
        {"acknowledged": True, "latency_ns": 90_000, "status": 0x240},
        {"acknowledged": False, "latency_ns": None, "status": 0x240},
        {"acknowledged": True, "latency_ns": 1_200_000, "status": 0x240},
    ],
    "stray_interrupts": 1,
    "doorbell_left_enabled": True,
    "verdict": "fail",
    **SAID,
}
SOAK: dict[str, Any] = {
    **RING,
    "soak": {
        "elapsed": 3600.5,
        "count": 12,
        "acknowledged": 10,
        "failed": 2,
        "cycles": 3,
        "histogram": [[90_000, 9], [1_200_000, 1]],
        "parts": [{"p50": 90_000}, {}, {"p50": 120_000}],
        "drift": [{"percentile": 50.0, "before": 90_000, "after": 120_000.5}],
    },
}
BENCH: dict[str, Any] = {
    "bench": "dma",
    "device": "0000:01:00.0",
    "setup": {"backend": "iommufd", "governor": None, "cpu_nodes": [0, 1], "load": 0.25},
    "doorbell_left_enabled": False,
    "series": [
        {"name": "READ 1K", "size": 1024, "histogram": [[900, 5], [1000, 90], [90_000, 5]]},
        {"name": "a series with a long name", "size": 0, "histogram": [[7, 1]]},
    ],
    "verdict": "pass",
    "reason": None,
    "message": "",
    "hint": "",
}
PING = {
    "device": "vntb",
    "transmitted": 4,
    "received": 3,
    "trips": [{"sequence": n, "nanoseconds": 10**n, "size": 4, "reported": 1} for n in (4, 5, 6)],
    "verdict": "fail",
    **SAID,
}
COMPARE = {
    "endpoints": [{**PING, "device": "polled"}, {**PING, "device": "embedded"}],
    "ratio": {"average": 9.0, "median": 9.5},
    "model": True,
    "verdict": "pass",
}
LAYOUT = {
    "vendor": 0x1D87,
    "msix": 8,
    "bar0": {"type": "resizable"},
    "bar2": {"size": "64K", "wide": True, "prefetchable": True},
    "bar4": {"type": "reserved", "size": 4096},
    "doorbell": {"backend": "embedded", "address": 0x1000_00A0},
    "faults": ["bad-data"],
}
FUZZ = {
    "seed": 0,
    "block": 50,
    "real_time": False,
    "hostile": True,
    "examples": 100,
    "seconds": 2.5,
    "coverage": 0.5,
    "findings": [
        {"kind": "access", "what": "w", "message": "wrote there", "layout": LAYOUT, "file": "a"},
        {"kind": "crash", "what": "w", "message": "", "layout": {"later": 1}, "file": None},
    ],
}
REPLAY = {
    "replayed": [
        {"file": "a.toml", "saved": "once: this", "outcomes": {}, "findings": ["hang: never ends"]},
        {"file": "b.toml", "saved": "", "outcomes": {}, "findings": []},
    ]
}
DEVICE = {
    "device": "d",
    "sequences": 2,
    "steps": 9,
    "finding": "it hangs",
    "flaky": True,
    "script": "enable\nring",
}
INFO = {
    "device": "sim:rk3588",
    "backend": "vfio-user",
    "vendor_id": 0x1D87,
    "device_id": 0x3588,
    "part": "Rockchip RK3588",
    "class": 0xFF0000,
    "reg_bar": 0,
    "bars": [
        {"bar": 0, "size": 1 << 20, "type": "32-bit", "access": "sparse"},
        {"bar": 4, "size": 1 << 16, "type": "64-bit", "access": "trapped"},
    ],
    "interrupts": {"intx": 0, "msi": 32, "msix": 32},
    "msix_table": {"bar": 0, "offset": 0x80, "pba_bar": 0, "pba_offset": 0x280},
    "link": {"speed_gts": 8.0, "width": 4},
}
ERROR = {"device": None, "verdict": "error", **SAID}

DOCUMENTS: dict[str, Any] = {
    "test": to_document(a_run(finished=4)),
    "ring": RING,
    "bench": BENCH,
    "ping": PING,
    "ping compare": COMPARE,
    "fuzz layout": FUZZ,
    "fuzz replay": REPLAY,
    "fuzz device": DEVICE,
    "info": INFO,
    "error": ERROR,
    "check": {
        "device": "0000:01:00.0",
        "description": "Rockchip RK3588, 1d87:3588",
        "layers": [
            {"name": "link", "verdict": "pass", "message": "8 GT/s x4", "notes": ["it can do x8"]},
            {"name": "BARs", "verdict": "fail", "message": "BAR1 differs", "notes": []},
            {"name": "doorbell", "verdict": None, "message": "", "notes": []},
        ],
        "broken": "BARs",
        "side": "endpoint",
        "verdict": "fail",
        "reason": "data-mismatch",
        "message": "BAR1 differs",
        "hint": "is the inbound mapping right?",
    },
}
EXAMPLES = [
    {"seed": 1, "block": 50, "real_time": False, "hostile": True},
    {"layout": LAYOUT, "outcomes": {"a": "pass", "b": "skip no-caps"}, "findings": []},
    {"layout": LAYOUT, "outcomes": {"a": "odd"}, "findings": [["crash", "w", "IndexError"]]},
]


def source(kind: str, document: Any, name: str = "a file.json") -> Source:
    return Source(name, kind, Node(document, name), picture=picture)


def examples(lines: Any = EXAMPLES, name: str = "examples.jsonl") -> Source:
    first, *more = (Node(line, name) for line in lines)
    return Source(name, "fuzz examples", first, more, picture)


def every() -> list[Source]:
    return [*(source(kind, document) for kind, document in DOCUMENTS.items()), examples()]


def parsed(*sources: Source) -> ElementTree.Element:
    """The page as a strict parser sees it, which any text that became markup would upset."""
    text = page(sources, MADE)
    text.encode("utf-8")
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    assert [one.tag for one in root.iter()] == _Tags(text).seen  # a browser sees the same
    return root


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append({"viewbox": "viewBox"}.get(tag, tag))


def words(root: ElementTree.Element) -> str:
    return "\n".join(root.itertext())


# -- nothing but text ----------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a document."""
    yield path
    if isinstance(value, dict | list):
        for key, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(member, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    document = copy.deepcopy(document)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return document


KNOWN_TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "main", "header", "nav", "section"),
    *("article", "h1", "h2", "h3", "p", "span", "b", "small", "code", "pre", "div", "ul", "ol"),
    *("li", "a", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("details", "summary", "svg", "g", "line", "rect", "circle", "path", "text", "desc"),
}
KNOWN_ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "id", "style"),
    *(
        "scope",
        "colspan",
        "rowspan",
        "role",
        "aria-label",
        "aria-hidden",
        "viewBox",
        "x",
        "y",
        "x1",
        "x2",
    ),
    *("y1", "y2", "cx", "cy", "r", "d", "width", "height"),
}


@given(st.data())
def test_no_text_can_break_out_into_markup(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(DOCUMENTS)))
    document = DOCUMENTS[kind]
    strings = [path for path in leaves(document) if _is_free_text(document, path)]
    said = {}
    for path in data.draw(st.lists(st.sampled_from(strings), min_size=1, unique=True)):
        said[path] = data.draw(
            texts | st.sampled_from(["</script><script>", "'\" onload=x", "]]>"])
        )
        document = replaced(document, path, said[path])
    name = data.draw(texts)
    root = parsed(source(kind, document, name), source(kind, DOCUMENTS[kind]))
    for one in root.iter():
        assert one.tag in KNOWN_TAGS
        assert set(one.attrib) <= KNOWN_ATTRIBUTES
        assert one.get("href", "#").startswith(("#", "data:,"))
    shown = words(root)
    for path, text in said.items():
        if kind in ("test", "ring", "ping", "error") and path[-1] in ("message", "hint", "device"):
            assert one_line(text) in shown


def _is_free_text(document: Any, path: tuple[Any, ...]) -> bool:
    value = document
    for key in path:
        value = value[key]
    return isinstance(value, str) and path[-1] != "verdict" and "layout" not in path


@given(runs())
def test_any_run_can_be_shown(run: Any) -> None:
    root = parsed(source("test", to_document(run)))
    rows = [row for row in root.iter("tr") if (row.get("class") or "").startswith("case ")]
    assert len(rows) == len(run.results)


def test_a_browser_is_told_to_load_and_run_nothing() -> None:
    text = page(every(), MADE)
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    assert not re.search(r"https?:|src=|@import|url\(|<script|\bon\w+=", text)


def test_only_element_makes_markup() -> None:
    inner = element("b", "<i>")
    assert inner == "<b>&lt;i&gt;</b>"
    assert element("p", inner, [None, "&"], title='"') == (
        '<p title="&quot;"><b>&lt;i&gt;</b>&amp;</p>'
    )
    # What was put together by hand is text again.
    assert element("p", f"{inner}") == "<p>&lt;b&gt;&amp;lt;i&amp;gt;&lt;/b&gt;</p>"


# -- what is on it -------------------------------------------------------------------------------


def test_a_page_of_everything() -> None:
    root = parsed(*every())
    shown = words(root)
    (heading,) = root.iter("h1")
    assert [badge.text for badge in heading.iter("span")] == ["error"]
    assert "made 2026-01-02 03:04" in shown
    links = [link.get("href", "")[1:] for link in root.iter("a")]
    ids = [one.get("id") for one in root.iter("section")]
    assert len(links) == len(DOCUMENTS) + 1
    assert set(links) <= set(ids)
    for part in ("BAR4+0xa0", "1 stray interrupts", "ratio of medians 9.5", "100 layouts",
                 "saved as a", "hang: never ends", "it hangs", "8 GT/s x4", "not run"):  # fmt: skip
        assert part in shown
    for drawing in root.iter("svg"):
        assert drawing.get("role") == "img"
        assert drawing.get("aria-label")
        assert drawing.find("title") is not None


def test_what_failed_for_one_reason_is_one_entry() -> None:
    document = DOCUMENTS["test"]
    failed = document["results"][3]
    again = {**failed, "name": "again", "test": "OTHER_TEST", "message": "2048 B differ"}
    other = {**failed, "name": "other", "test": "THIRD_TEST", "hint": "elsewhere"}
    document = {**document, "results": [failed, again, other]}
    root = parsed(source("test", document))
    (listed,) = (one for one in root.iter("ol") if one.get("class") == "findings")
    first, second = listed
    assert "2 cases" in words(first)
    assert "OTHER_TEST" in words(first)
    assert "THIRD_TEST" in words(second)


def test_runs_are_compared_where_there_are_several() -> None:
    one = DOCUMENTS["test"]
    other = {**one, "device": "the other", "results": one["results"][:2]}
    root = parsed(source("test", one), source("test", other, "other.json"))
    (matrix,) = (table for table in root.iter("table") if table.get("class") == "matrix")
    heads = [words(head) for head in matrix.iter("th") if head.get("scope") == "col"]
    assert heads[2] == "other.json"
    boards = [words(head) for head in matrix.iter("th") if head.get("scope") == "colgroup"]
    assert boards[1] == "the other"
    differs = [row.get("class") == "differs" for row in matrix.find("tbody") or ()]
    assert differs == [False, False, True, True]
    assert not [table for table in parsed(source("test", one)).iter("table")
                if table.get("class") == "matrix"]  # fmt: skip


def test_runs_of_a_board_stand_side_by_side() -> None:
    """Boards differ by nature; what is marked is a run that differs from one of the same board."""
    one = DOCUMENTS["test"]
    changed = replaced(one, ("results", 0, "verdict"), "fail")
    other = {**one, "device": "b", "results": one["results"][:2]}
    root = parsed(source("test", one), source("test", other, "b.json"), source("test", changed))
    (matrix,) = (table for table in root.iter("table") if table.get("class") == "matrix")
    boards = [head for head in matrix.iter("th") if head.get("scope") == "colgroup"]
    assert [head.get("colspan") for head in boards] == ["2", "1"]
    heads = [words(head) for head in matrix.iter("th") if head.get("scope") == "col"]
    assert heads[3] == "b.json"
    differs = [row.get("class") == "differs" for row in matrix.find("tbody") or ()]
    assert differs == [True, *[False] * (len(differs) - 1)]


def test_an_expected_failure_is_nothing_to_look_at() -> None:
    run = DOCUMENTS["test"]
    index = next(i for i, case in enumerate(run["results"]) if case["verdict"] == "fail")
    case = {**run["results"][index], "change": "same", "before": "fail x", "known_failure": True}
    compared = {**run, "results": [case], "not_run": [], "verdict": "pass"}
    text = words(parsed(source("test", compared)))
    assert "as expected" in text
    assert "What to look at" not in text


def test_benchmarks_are_compared_where_there_are_several() -> None:
    slower = [[2 * value, times] for value, times in BENCH["series"][0]["histogram"]]
    later = replaced(BENCH, ("series", 0, "histogram"), slower)
    another = {**BENCH, "bench": "irq"}
    root = parsed(
        source("bench", BENCH, "before.json"),
        source("bench", another, "another.json"),
        source("bench", later, "later.json"),
    )
    (compared,) = (one for one in root.iter("section") if one.get("id") is None)
    rows = [[words(cell) for cell in row] for row in compared.iter("tr")][1:]
    assert [row[0:2] for row in rows] == [
        *(["READ 1K", file] for file in ("before.json", "later.json")),
        *(["a series with a long name", file] for file in ("before.json", "later.json")),
    ]
    assert [row[4] for row in rows] == ["", "2.00", "", "1.00"]
    assert "another.json" not in words(compared)


def test_the_doorbell_of_a_ring_is_on_the_map_of_its_device() -> None:
    def labels(*sources: Source) -> list[str]:
        return [one.text or "" for one in parsed(*sources).iter("text")]

    assert "doorbell" in labels(source("info", INFO), source("ring", RING))
    assert "doorbell" not in labels(source("info", INFO))
    assert "doorbell" not in labels(
        source("info", INFO), source("ring", {**RING, "device": "another"})
    )


# -- what is no result ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_every_kind_is_recognised(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(DOCUMENTS[kind]))
    assert [one.kind for one in read(str(path), picture)] == [kind]
    assert set(DOCUMENTS) == set(KINDS)


def test_json_lines_of_a_campaign_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(map(json.dumps, EXAMPLES)))
    (found,) = read(str(path), picture)
    assert (found.kind, len(found.lines)) == ("fuzz examples", 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[1, 2]", "no result"),
        (b"{}", "no result"),
        (b'{"values": [1], "bar": 0}', "no result"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"seed": 0}\n{"a": 1', "line 2: not JSON"),
        (b'{"seed": 0}\n{"a": 1}', "2 JSON documents"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "not JSON"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)
def test_what_is_no_result_is_a_usage_error(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read(str(path), picture)
    assert said in raised.value.message
    assert "broken.json" in raised.value.message
    assert "rcdrv report takes what --json" in raised.value.hint


@pytest.mark.parametrize(
    ("kind", "path", "new", "place"),
    [
        ("test", ("results", 1, "verdict"), "perhaps", "f: results[1]: verdict: 'perhaps' is not"),
        (
            "test",
            ("results", 0, "seconds"),
            "1",
            "f: results[0]: seconds: '1' is not a number from 0 on",
        ),
        ("ring", ("rings", 2, "latency_ns"), -1, "f: rings[2]: latency_ns: -1 is not a duration"),
        ("ring", ("rings",), 3, "f: rings: 3 is not a list"),
        ("bench", ("series", 0, "histogram"), [], "f: series[0]: histogram: [] is not"),
        ("info", ("bars", 0, "size"), True, "f: bars[0]: size: True is not an integer"),
    ],
)
def test_what_is_wrong_in_a_result_is_named(
    kind: str, path: tuple[Any, ...], new: Any, place: str
) -> None:
    with pytest.raises(UsageError) as raised:
        page([source(kind, replaced(DOCUMENTS[kind], path, new), "f")], MADE)
    assert raised.value.message.startswith(place)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def refusal(one: Source) -> str:
    """What is said of a result that cannot be shown; ``""`` of one that can, and is well-formed."""
    try:
        parsed(one)
    except UsageError as error:
        return error.message
    return ""


@given(st.sampled_from(sorted(DOCUMENTS)), st.data())
def test_a_damaged_result_is_shown_or_refused(kind: str, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(leaves(DOCUMENTS[kind]))))
    damaged = replaced(DOCUMENTS[kind], path, data.draw(json_values))
    said = refusal(source(kind, damaged))
    assert not said or said.startswith("a file.json: ")


@given(st.sampled_from([path for path in leaves(EXAMPLES) if path]), json_values)
def test_a_damaged_campaign_is_shown_or_refused(path: tuple[Any, ...], value: Any) -> None:
    said = refusal(examples(replaced(EXAMPLES, path, value)))
    assert not said or said.startswith("examples.jsonl: ")


# -- drawings ------------------------------------------------------------------------------------

regions = st.builds(
    Region,
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 20),
    st.sampled_from(["doorbell", "MSI-X table", ""]),
    st.just("msix"),
)


@given(st.integers(1, 1 << 20), st.lists(regions, max_size=5))
def test_the_pieces_of_a_bar_are_all_of_it(size: int, inside: list[Region]) -> None:
    bar = Bar(2, size, "64-bit", tuple(inside))
    pieces = layout.pieces(bar)
    assert (pieces[0].start, pieces[-1].end) == (0, size)
    assert all(one.end == other.start for one, other in pairwise(pieces))
    for region in inside:
        covered = [piece for piece in pieces if region in piece.regions]
        end = min(size, region.offset + region.size)
        assert sum(piece.end - piece.start for piece in covered) >= max(0, end - region.offset) > -1

    root = ElementTree.fromstring(f"<p>{layout.draw([bar], 'map')}</p>")
    strips = [(float(one.get("x", "")), float(one.get("width", ""))) for one in root.iter("rect")]
    assert len(strips) == len(pieces)
    for (x, width), (following, _) in pairwise(strips):
        assert x + width == pytest.approx(following, abs=0.2)
        assert width > 0
    assert strips[-1][0] + strips[-1][1] <= layout.WIDTH


def test_four_bytes_in_a_gigabyte_can_be_read() -> None:
    door = Region(0xA0, 4, "doorbell", "doorbell")
    drawn = layout.draw([Bar(4, 1 << 30, "64-bit", (door,))], "map")
    root = ElementTree.fromstring(f"<p>{drawn}</p>")
    (piece,) = (one for one in root.iter("rect") if one.get("class") == "doorbell")
    assert float(piece.get("width", "")) >= len("doorbell") * 7


@pytest.mark.parametrize("preset", ["rk3588", "rcar-s4", "tegra194", "rk3588-vntb"])
def test_the_presets_have_maps(preset: str) -> None:
    from rcdrv.sim.layout import _read, load_layout

    found = picture(_read(preset), preset)
    assert found is not None
    bars, words_of_doorbell = found
    there = [index for index, bar in enumerate(load_layout(preset).bars) if bar is not None]
    assert [bar.number for bar in bars] == there
    place = doorbell_place(load_layout(preset))
    if place is None:
        assert "no doorbell" in words_of_doorbell
        return
    assert f"BAR{place[0]}+{place[1]:#x}" in words_of_doorbell
    (bar,) = (bar for bar in bars if bar.number == place[0])
    assert [piece.start for piece in layout.pieces(bar) if "doorbell" in piece.label] == [place[1]]


durations = st.lists(st.integers(0, 10**12), min_size=1, max_size=200)


@given(st.lists(durations, min_size=1, max_size=4))
def test_every_duration_is_in_the_drawing(samples: list[list[int]]) -> None:
    series = [Series(f"series {n}", Distribution.of(one)) for n, one in enumerate(samples)]
    root = ElementTree.fromstring(plot.distributions(series, "title"))
    for node in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(node.get(name, 0)) <= plot.WIDTH
    groups = [one for one in root.iter("g") if (one.get("class") or "").startswith("series")]
    for group, found in zip(groups, series, strict=True):
        assert f"n = {found.distribution.count}" in words(group)
        assert duration_text(found.distribution.percentile(50)) in words(group)
        assert len(list(group.iter("rect"))) <= found.distribution.count
    ticks = [one for one in root.iter("line") if one.get("x1") == one.get("x2")]
    assert ticks


@given(st.lists(st.none() | st.integers(0, 10**12), min_size=1, max_size=3000))
def test_every_failure_leaves_its_mark_in_the_course(values: list[int | None]) -> None:
    if all(value is None for value in values):
        values = [*values, 1]
    root = ElementTree.fromstring(plot.course(values, "t", "ring"))
    failed = values.count(None)
    marks = len(list(root.iter("path")))
    assert bool(marks) == bool(failed)
    assert marks <= failed
    if len(values) <= 700:
        assert marks == failed
        assert len(list(root.iter("circle"))) == len(values) - failed
    assert f"{len(values)} in order, {failed} without an answer" in words(root)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1.00 µs"), (83_254, "83.3 µs"), (999_960, "1.00 ms"),
     (1_446_868, "1.45 ms"), (123_456_789, "123 ms"), (2_000_000_000, "2.00 s")],
)  # fmt: skip
def test_durations_have_three_digits(nanoseconds: int, text: str) -> None:
    assert duration_text(nanoseconds) == text


@given(st.integers(0, 10**18))
def test_durations_are_right_to_three_digits(nanoseconds: int) -> None:
    value, unit = duration_text(nanoseconds).split()
    scale = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit]
    assert float(value) * scale == pytest.approx(nanoseconds, rel=0.005)
    assert unit == "s" or float(value) < 1000


@given(st.integers(0, 1 << 60))
def test_sizes_are_exact(size: int) -> None:
    value, unit = size_text(size).split()
    power = ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert int(value) << 10 * power == size


# -- the command ---------------------------------------------------------------------------------


def test_the_command_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for kind, document in DOCUMENTS.items():
        files.append(str(tmp_path / f"{kind}.json"))
        Path(files[-1]).write_text(json.dumps(document))
    target = tmp_path / "out.html"
    assert main(["report", *files, "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert main(["report", *files, "-o", "-"]) == 0
    shown = capsys.readouterr().out
    strip = re.compile(r"made [-0-9: ]+ by")
    assert strip.sub("", shown) == strip.sub("", target.read_text("utf-8"))
    assert main(["report", files[0], "-o", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "report": str(target),
        "results": [{"file": files[0], "kind": "test"}],
    }


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nowhere.json"], 2, "cannot read nowhere.json"),
        (["good.json", "-o", "./good.json"], 2, "good.json is no page"),
        (["good.json", "-o", "broken.json"], 2, "broken.json is no page"),
        (["broken.json"], 2, "broken.json: not JSON"),
        (["-", "-"], 2, "standard input"),
        (["good.json", "--json", "-o", "-"], 2, "stdout"),
        (["good.json", "-o", "no/such/folder.html"], 2, "cannot write no/such/folder.html"),
    ],
)
def test_what_cannot_be_done_has_its_status(
    arguments: list[str], status: int, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    Path("good.json").write_text(json.dumps(RING))
    assert main(["report", *arguments]) == status
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert not list(tmp_path.glob("*.html"))


def test_a_soak_shows_its_drift_and_the_medians_of_its_parts() -> None:
    shown = words(parsed(source("ring", SOAK)))
    for text in ("12 rings in 1h", "2 failed, median 90", "drift of p50", "each part of the time"):
        assert text in shown, text
    wrongs: list[dict[str, Any]] = [{"histogram": []}, {"drift": [{}]}, {"parts": None}]
    for wrong in (*wrongs, {"count": -1}):
        broken = {**SOAK, "soak": {**SOAK["soak"], **wrong}}
        with pytest.raises(UsageError):
            parsed(source("ring", broken))


def test_a_command_on_several_devices_has_a_section_for_each(tmp_path: Path) -> None:
    path = tmp_path / "both.json"
    path.write_text(
        json.dumps({"devices": [RING, {**RING, "device": "another"}], "verdict": "fail"})
    )
    found = read(str(path), picture)
    assert [(one.kind, one.name) for one in found] == [
        ("ring", f"{path}, sim:rk3588"),
        ("ring", f"{path}, another"),
    ]
    for wrong in ({"devices": 3}, {"devices": [3]}, {"devices": [{"device": "x"}]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UsageError):
            read(str(path), picture)
