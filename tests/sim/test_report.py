"""`rcdrv report` of what the commands really print."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from rcdrv.report.html.source import KINDS
from tests.sim.conftest import rcdrv

COMMANDS = {
    "test": "test MSI_TEST LEGACY_IRQ_TEST --device sim:rk3588",
    "ring": "ring --count 30 --device sim:rk3588",
    "check": "check --device sim:rk3588,fault=irq-lost",
    "info": "info --device sim:rk3588",
    "bench": "bench ring --method poll --count 20 --device sim:rk3588",
    "ping": "ntb ping --count 3 --interval 0 --device sim:rcar-s4-vntb,vntb.peer_delay_ms=0",
    "ping compare": "ntb ping --compare sim:rcar-s4-vntb,vntb.peer_delay_ms=0"
    " sim:rk3588-vntb,vntb.peer_delay_ms=0 --count 3 --interval 0",
    "fuzz layout": "fuzz layout --examples 50 --out OUT",
    "fuzz replay": "fuzz replay tests/fuzz_corpus/copy-undoes-bad-data.toml",
    "fuzz device": "fuzz device --examples 1 --device sim:generic",
    "error": "info --device sim:rk3558",
}


def test_a_page_of_every_command(tmp_path: Path) -> None:
    assert set(COMMANDS) == set(KINDS)
    files = []
    for kind, command in COMMANDS.items():
        files.append(tmp_path / f"{kind}.json")
        result = rcdrv(*command.replace("OUT", str(tmp_path / "out")).split(), "--json")
        files[-1].write_text(result.out)
    files.append(tmp_path / "out/examples.jsonl")
    page = tmp_path / "page.html"
    result = rcdrv("report", *map(str, files), "-o", str(page), "--json")
    assert result.status == 0, result
    kinds = [entry["kind"] for entry in result.document["results"]]
    assert kinds == [*COMMANDS, "fuzz examples"]

    root = ElementTree.fromstring(page.read_text("utf-8").removeprefix("<!DOCTYPE html>\n"))
    text = "\n".join(root.itertext())
    told = ["32 vectors", "30 rings, 30 acknowledged", "Rockchip RK3588", "n = 20"]
    told += [
        "3 sent, 3 answered",
        "ratio of medians",
        "50 layouts",
        "no preset 'rk3558'",
        "interrupts is broken",
    ]
    for part in told:
        assert part in text
    labels = [one.text for one in root.iter("text") if one.get("class") == "label"]
    assert {"test registers", "MSI-X table", "PBA", "doorbell", "memory"} <= set(labels)


def test_a_result_is_not_overwritten_by_its_page(tmp_path: Path) -> None:
    result = tmp_path / "info.json"
    result.write_text(rcdrv("info", "--json", "--device", "sim:generic").out)
    before = result.read_text()
    assert rcdrv("report", str(result), "-o", str(result)).status == 2
    assert result.read_text() == before
