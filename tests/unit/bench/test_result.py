"""A run survives its JSON document, and a file that is none is refused with a cure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.bench.text import duration, table
from rcdrv.errors import UsageError
from rcdrv.results.bench import Result, Series, from_document, load, to_document
from rcdrv.results.distribution import PERCENTILES, Distribution
from rcdrv.results.node import parse

durations = st.lists(st.integers(1, 10**9), min_size=1, max_size=200)


def made(series: dict[str, list[int]], kind: str = "ring", size: int = 0) -> Result:
    result = Result(kind, "sim:generic", {"backend": "vfio-user", "irq": "msi", "numa_node": None})
    for name, samples in series.items():
        result.series.append(Series(name, Distribution.of(samples), size))
    return result


@given(series=st.dictionaries(st.sampled_from(["interrupt", "spin", "poll"]), durations))
def test_a_run_comes_back_from_its_document_to_three_digits(series: dict[str, list[int]]) -> None:
    result = made(series, size=4096)
    again = from_document(parse(json.dumps(to_document(result)), "earlier.json", "hint"))
    assert (again.kind, again.device, again.setup) == (result.kind, result.device, result.setup)
    assert [one.name for one in again.series] == list(series)
    for one, other in zip(result.series, again.series, strict=True):
        assert (one.size, one.distribution.count) == (other.size, other.distribution.count)
        for percent in (*PERCENTILES, 100):
            exact = one.distribution.percentile(percent)
            assert other.distribution.percentile(percent) == pytest.approx(exact, rel=0.0051)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("[1, 2]", "is not an object"),
        ("{}", "setup is missing"),
        ('{"bench": "ring", "device": "x", "setup": {}, "series": [{}]}', "name is missing"),
        (
            '{"bench": "ring", "device": "x", "setup": {},'
            ' "series": [{"name": "a", "size": 0, "histogram": []}]}',
            "not a histogram with anything in it",
        ),
        ('{"bench": "mmio", "device": "x", "setup": {}, "series": []}', "rcdrv bench mmio"),
        ('{"bench": "ring", "device": "x", "setup": {}, "series": []}', "no measurements"),
    ],
)
def test_a_file_that_is_no_such_run_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "earlier.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=problem):
        load(path, "ring")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.json: No such file"):
        load(tmp_path / "gone.json", "ring")


def test_a_table_of_two_runs_has_both_and_their_ratio() -> None:
    now = made({"interrupt": [2000], "spin": [500]})
    before = made({"interrupt": [4000], "poll": [700]})
    lines = table(now, before).splitlines()
    assert [line.split() for line in lines if line.startswith(("interrupt", "  before", "  ratio"))]
    rows = [line.split() for line in lines[lines.index("") + 1 :]]
    assert rows == [
        ["us", "count", "p50", "p90", "p99", "p99.9", "max"],
        ["interrupt", "1", *["2.00"] * 5],
        ["before", "1", *["4.00"] * 5],
        ["ratio", *["0.50"] * 5],
        ["spin", "1", *["0.500"] * 5],
    ]


def test_a_table_shows_the_rate_at_the_median() -> None:
    line = table(made({"fill": [1000, 2000, 8000]}, "mmio", size=4000)).splitlines()[-1]
    assert line.split()[-1] == "2000.0"


@given(nanoseconds=st.integers(0, 10**10))
def test_durations_are_shown_to_half_a_percent_or_a_nanosecond(nanoseconds: int) -> None:
    assert float(duration(nanoseconds)) * 1e3 == pytest.approx(nanoseconds, rel=0.0051, abs=0.5)
