"""Campaigns: the same findings whoever runs them, a record that can be taken up again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rcdrv.cli import main
from rcdrv.epf_test import bars
from rcdrv.errors import HostError, UsageError
from rcdrv.fuzz import campaign
from rcdrv.fuzz.campaign import BLOCK, Plan, run, run_block
from rcdrv.fuzz.coverage import Coverage
from rcdrv.fuzz.finding import Finding, dump_table, reason_of, save, saved_files, shrink
from rcdrv.fuzz.trial import run_layout
from rcdrv.sim.layout import load_layout

CORPUS = Path(__file__).parents[2] / "fuzz_corpus"

TABLE = {
    "msi": 4,
    "faults": ["irq-lost=all", "slow"],
    "bar0": {"type": "fixed", "size": 4096, "wide": True},
    "bar2": {},
}


@pytest.mark.parametrize("path", list(saved_files(CORPUS)), ids=lambda path: path.stem)
def test_corpus(path: Path) -> None:
    assert reason_of(path)
    assert run_layout(load_layout(str(path))).findings == []


def test_nothing_is_found() -> None:
    progress = run(Plan(seed=1, examples=2 * BLOCK))
    assert progress.examples == 2 * BLOCK
    assert progress.findings == []
    assert 0 < progress.coverage.share < 1


def test_workers_make_no_difference(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for workers, folder in enumerate(folders, 1):
        run(Plan(seed=2, examples=2 * BLOCK, workers=workers, folder=folder))
    one, two = ((folder / "examples.jsonl").read_text() for folder in folders)
    assert one == two


def test_is_taken_up_again(tmp_path: Path) -> None:
    plan = Plan(seed=3, examples=2 * BLOCK, folder=tmp_path)
    run(plan)
    path = tmp_path / "examples.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[: BLOCK + 10]))
    again = run(plan)
    assert (again.examples, again.resumed) == (2 * BLOCK, BLOCK)
    assert path.read_text() == whole
    with pytest.raises(UsageError, match="another campaign"):
        run(Plan(seed=4, folder=tmp_path))


GOOD: dict[str, Any] = {"layout": {"bar0": {"size": 4096}}, "outcomes": {}, "findings": []}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON: "),
        ("[]", "line 2: [] is not an object"),
        ({}, "line 2: layout is missing"),
        ({**GOOD, "layout": 5}, "line 2: layout: 5 is not an object"),
        ({**GOOD, "layout": {"bar0": 1}}, "line 2: layout: bar0: 1 is not an object"),
        ({**GOOD, "layout": {"bar1": {"size": "x"}}}, "bar1: size: 'x' is not an integer"),
        ({**GOOD, "layout": {"bar1": {"type": []}}}, "bar1: type: [] is not a text"),
        ({**GOOD, "layout": {"doorbell": {"backend": {}}}}, "backend: {} is not a text"),
        ({**GOOD, "layout": {"faults": [1]}}, "layout: faults[0]: 1 is not a text"),
        ({**GOOD, "outcomes": []}, "line 2: outcomes: [] is not an object"),
        ({**GOOD, "findings": [["a", "b"]]}, "findings[0]: ['a', 'b'] is not a list of 3"),
        ({**GOOD, "findings": [[1, 2, 3]]}, "line 2: findings[0][0]: 1 is not a text"),
    ],
)
def test_a_bad_line_of_the_record_is_named(tmp_path: Path, line: Any, said: str) -> None:
    plan = Plan(examples=BLOCK, folder=tmp_path)
    bad = line if isinstance(line, str) else json.dumps(line)
    lines = [json.dumps(plan.identity), bad, *[json.dumps(GOOD)] * (BLOCK - 1)]
    record = tmp_path / "examples.jsonl"
    record.write_text("\n".join([*lines, ""]))
    with pytest.raises(UsageError) as caught:
        run(plan)
    assert caught.value.message.startswith(f"{record}: ")
    assert said in caught.value.message
    record.write_text("\n".join([*lines[:1], *lines[2:], lines[2], ""]))
    assert run(plan).resumed == BLOCK


def test_a_finding_is_saved_and_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bars, "offset_pattern", lambda index, offset, length: bytes(length + 4))
        assert main(["fuzz", "layout", "--examples", "50", "--out", str(tmp_path)]) == 1
        assert main(["fuzz", "replay", str(tmp_path)]) == 1
    capsys.readouterr()
    assert main(["fuzz", "replay", str(tmp_path), "--json"]) == 0
    replayed = json.loads(capsys.readouterr().out)["replayed"]
    assert replayed
    assert all(entry["saved"] and not entry["findings"] for entry in replayed)


def test_blocks_are_reproducible() -> None:
    one, two = ([e.table for e in run_block(Plan(seed=5), 7)] for _ in range(2))
    assert one == two
    assert one != [example.table for example in run_block(Plan(seed=5), 8)]


# -- shrinking and saving ------------------------------------------------------------------------


def test_shrinks_to_what_is_needed() -> None:
    def shows(table: dict[str, Any]) -> bool:
        return any("irq-lost" in fault for fault in table.get("faults", [])) and "bar0" in table

    assert shrink(TABLE, shows) == {"faults": ["irq-lost"], "bar0": {}}


def test_what_cannot_shrink_is_left() -> None:
    assert shrink(TABLE, lambda _table: False) == TABLE


def test_saved_table_is_read_back(tmp_path: Path) -> None:
    path = save(tmp_path, Finding("verdict", "X_TEST: fail", "two\nlines"), TABLE)
    assert path.name == "verdict-x-test-fail.toml"
    assert reason_of(path) == "verdict: two lines"
    layout = load_layout(str(path))
    assert (layout.msi, layout.faults) == (4, ("irq-lost=all", "slow"))
    assert layout.bar(0).wide
    assert layout.bar(2).size == 128 << 10
    assert dump_table({"bar0": {}}) == "[bar0]\n"


def test_nothing_to_replay(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "absent.toml"):
        with pytest.raises(UsageError):
            list(saved_files(where))


def test_coverage_counts_cells() -> None:
    coverage = Coverage()
    for _ in range(10):
        coverage.add({"bar1": {"type": "fixed", "size": 16}, "doorbell": {"backend": "msi"}})
    lines = coverage.picture().splitlines()
    (line,) = [text for text in lines if text.startswith("fixed        msi")]
    assert line.split()[2] == "1"
    assert coverage.share == pytest.approx(1 / 464)


def test_coverage_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "coverage.svg"
    arguments = ["fuzz", "layout", "--examples", "50", "--json", "--picture", str(picture)]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    cells = [
        int(title.text.rpartition(" ")[2])
        for title in ElementTree.parse(picture).getroot().iter("{http://www.w3.org/2000/svg}title")
        if title.text
    ]
    tried = sum(count > 0 for count in cells)
    assert tried / len(cells) == pytest.approx(document["coverage"])
    bars = [
        bar
        for example in run_block(Plan(), 0)
        for key, bar in example.table.items()
        if key.startswith("bar")
    ]
    assert sum(cells) == len(bars)
    absent = tmp_path / "absent" / "coverage.svg"
    assert main([*arguments[:-1], str(absent)]) == 2


def test_tables_that_are_no_layout_have_no_outcome() -> None:
    assert campaign.try_table({"bar5": {"wide": True}}).outcomes == {}


# -- elsewhere -------------------------------------------------------------------------------------


def test_dask_makes_no_difference(tmp_path: Path) -> None:
    distributed: Any = import_module("distributed")  # it has no types
    plans = [
        Plan(seed=2, examples=3 * BLOCK, folder=tmp_path / "here"),
        Plan(seed=2, examples=3 * BLOCK, folder=tmp_path / "there"),
    ]
    run(plans[0])
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        run(replace(plans[1], dask=cluster.scheduler_address))
    here, there = ((tmp_path / name / "examples.jsonl").read_text() for name in ("here", "there"))
    assert here == there


def test_no_dask_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "DASK_TIMEOUT", 0.5)
    with pytest.raises(HostError, match="no dask scheduler at tcp://127"):
        run(Plan(examples=BLOCK, dask="tcp://127.0.0.1:1"))


def test_nothing_is_left_where_hypothesis_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(HostError, match="needs hypothesis"):
        run(Plan(examples=BLOCK, folder=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
