"""rcdrv bench as its users run it: few operations, and no word on how long they may take."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sim.conftest import Endpoint, bound, finish, rcdrv, start

KEYS = {"bench", "device", "setup", "series", "doorbell_left_enabled"}
SETUP = {"backend", "irq", "governor", "numa_node", "cpu_nodes", "python", "kernel", "clock_ns"}
FIGURES = ("min", "p50", "p90", "p99", "p99.9", "max")


def bench(what: str, spec: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = rcdrv("bench", what, "--device", f"sim:{spec}", "--json", *arguments)
    return result.status, result.document


def check_document(document: dict[str, Any]) -> list[str]:
    """That its figures fit together; the names of its series."""
    assert set(document) >= KEYS
    assert set(document["setup"]) >= SETUP
    assert not document["doorbell_left_enabled"]
    for series in document["series"]:
        values = [series[figure] for figure in FIGURES]
        assert values == sorted(values)
        assert series["min"] <= series["mean"] <= series["max"]
        assert series["unit"] == "ns"
        assert sum(times for _, times in series["histogram"]) == series["count"]
    return [series["name"] for series in document["series"]]


@pytest.mark.parametrize(
    ("what", "spec", "arguments", "names"),
    [
        ("ring", "rk3588", [], ["interrupt", "spin", "poll", "write", "burst"]),
        ("ring", "rcar-s4", ["--irq", "poll"], ["poll", "write", "burst"]),
        ("ring", "generic", ["--irq", "intx", "--method", "interrupt"], ["interrupt"]),
        ("dma", "generic", ["--size", "4K"],
         ["memcpy READ 4096", "memcpy WRITE 4096", "memcpy COPY 4096"]),
        ("dma", "generic", ["--dma", "--size", "64", "--direction", "READ"], ["dma READ 64"]),
        ("irq", "rcar-s4", [], ["msi on this host", "msi of the endpoint"]),
        ("irq", "generic", ["--irq", "msix", "--vectors", "4"],
         ["msix on this host", "msix of the endpoint, 4 vectors"]),
        ("irq", "generic", ["--irq", "intx"], ["intx of the endpoint"]),
        ("irq", "rk3588", ["--irq", "poll"], ["poll of the endpoint"]),
    ],
)  # fmt: skip
def test_it_measures_what_it_names(
    what: str, spec: str, arguments: list[str], names: list[str]
) -> None:
    status, document = bench(what, spec, "--count", "12", *arguments)
    assert (status, document["verdict"], document["reason"]) == (0, "pass", None)
    assert check_document(document) == names
    assert document["bench"] == what


def test_mmio_measures_registers_and_memory_of_the_first_bar_that_may_be_written() -> None:
    status, document = bench("mmio", "rk3588", "--count", "20")
    assert status == 0
    names = check_document(document)
    assert names[:3] == ["register read 32", "register write 32", "register write 32 + read"]
    widths = [f"BAR1 {access} {width}" for width in (8, 16, 32, 64) for access in ("read", "write")]
    assert names[3:] == [*widths, "BAR1 fill", "BAR1 read block"]
    assert document["series"][-1]["size"] == 1 << 16


def test_mmio_puts_the_memory_back(endpoint: Callable[..., Endpoint]) -> None:
    board = endpoint("rk3588")
    assert rcdrv("poke", "2", "4", "0x12345678", "--device", board.address).status == 0
    result = rcdrv("bench", "mmio", "--bar", "2", "--count", "5", "--device", board.address)
    assert result.status == 0, result.err
    again = rcdrv("peek", "2", "4", "--device", board.address, "--json")
    assert again.document["values"] == [0x12345678]


def test_writes_and_bursts_are_as_many_writes_as_they_count(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rk3588")
    methods = ["--method", "write", "--method", "burst"]
    result = rcdrv("bench", "ring", "--count", "20", *methods, "--device", board.address, "--json")
    assert check_document(result.document) == ["write", "burst"]
    rung = [line for line in board.log() if line.get("region") == "BAR4"]
    # 2 to warm up, 20, and one burst of 64: each one 32-bit write.
    assert [(line["op"], line["offset"], line["size"]) for line in rung] == [
        ("write", 0xA0, 4)
    ] * 86


@pytest.mark.parametrize(
    ("what", "spec", "arguments", "status", "reason", "measured"),
    [
        ("ring", "j721e", [], 4, "no-caps", []),
        ("ring", "am654", [], 1, "enable-failed", []),
        ("ring", "rcar-s4", ["--bar", "4"], 1, "wrong-bar", []),
        ("ring", "rk3588", ["--irq", "intx"], 1, "irq-lost", []),
        ("irq", "generic", ["--vectors", "33"], 4, "no-vectors", ["msi on this host"]),
        ("dma", "j721e", ["--dma", "--size", "1K"], 1, "silent", []),
        ("mmio", "rk3588", ["--bar", "4"], 4, "bar-reserved", []),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_has_its_verdict_behind_what_could(
    what: str, spec: str, arguments: list[str], status: int, reason: str, measured: list[str]
) -> None:
    timeout = ("--timeout", bound(reason == "silent"))
    found, document = bench(what, spec, "--count", "5", *timeout, *arguments)
    assert (found, document["reason"]) == (status, reason)
    assert document["message"]
    assert check_document(document) == measured


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["ring", "--count", "0"], 2, "at least one"),
        (["ring", "--method", "guess"], 2, "'guess' (choose from"),
        (["dma", "--size", "5M"], 2, "is not 1 to"),
        (["mmio", "--bar", "0"], 2, "holds the test registers"),
        (["mmio", "--plot", "it.gif"], 2, "has to end in .svg"),
        (["mmio", "--against", "gone.json"], 2, "cannot read gone.json"),
    ],
)
def test_usage_is_checked(arguments: list[str], status: int, words: str) -> None:
    result = rcdrv("bench", *arguments, "--device", "sim:generic")
    assert result.status == status
    assert words in result.err


def test_two_runs_are_compared_in_text_and_in_a_picture(tmp_path: Path) -> None:
    before, picture = tmp_path / "before.json", tmp_path / "ring.svg"
    status, document = bench("ring", "rk3588", "--count", "10", "--method", "interrupt")
    assert status == 0
    before.write_text(json.dumps(document))
    result = rcdrv(
        *("bench", "ring", "--device", "sim:rcar-s4", "--count", "10"),
        *("--method", "interrupt", "--method", "poll"),
        *("--against", str(before), "--plot", str(picture)),
    )
    assert result.status == 0, result.err
    assert [line.split()[0] for line in result.out.splitlines()[-4:]] == [
        *("interrupt", "before", "ratio", "poll")
    ]
    assert "before: sim:rk3588" in result.out
    text = picture.read_text()
    assert "sim:rcar-s4" in text
    assert "before: sim:rk3588" in text
    other = rcdrv("bench", "mmio", "--device", "sim:rk3588", "--against", str(before))
    assert other.status == 2
    assert "rcdrv bench ring" in other.err


def test_a_signal_ends_it_with_the_doorbell_disabled(endpoint: Callable[..., Endpoint]) -> None:
    board = endpoint("rcar-s4")
    run = start("bench", "ring", "--count", "1000000", "--device", board.address, "--verbose")
    assert run.stderr is not None
    while "ring  BAR2" not in run.stderr.readline():
        pass
    run.send_signal(signal.SIGINT)
    result = finish(run)
    assert result.status == 130
    commands = [
        line["value"]
        for line in board.log()
        if (line.get("region"), line.get("op"), line.get("offset")) == ("BAR0", "write", 4)
    ]
    assert commands == [0x40, 0x80]


def test_an_unanswered_disable_is_the_last_line() -> None:
    result = rcdrv(
        *("bench", "ring", "--device", "sim:rk3588,fault=disable-silent", "--timeout", bound(True)),
        *("--method", "interrupt", "--count", "2"),
    )
    assert result.status == 1
    assert "may still be enabled" in result.err.splitlines()[-1]


def test_make_bench_measures_what_needs_no_lab(tmp_path: Path) -> None:
    """All of it at its quickest; what it costs is for its table to say, and for no test."""
    path = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench", "--no-lab", "--quick", "--json", str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(path.read_text())
    rows = {row["what"]: row for row in document["rows"]}
    assert {what for what, row in rows.items() if row["target"]} == {
        "checked store, register[0] = value",
        "checked load, register[0]",
        "each store of a burst",
        "BAR fill + verify, per MiB",
        "one vfio-user message, sim:rk3588",
        "start-up of rcdrv ring",
        "fuzz, a layout with 1 worker",
    }
    assert all(row["ours"] > 0 and row["theirs"] > 0 for row in rows.values())
    assert all(row["what"] in done.stdout for row in document["rows"])
    curves = {point["what"] for point in document["growth"]}
    assert len(curves) == 6
    assert all(what in done.stdout for what in curves)
