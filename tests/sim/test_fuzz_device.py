"""`rcdrv fuzz device` as its users run it: over a socket, at the endpoint's own tick."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sim.conftest import LIMIT, Endpoint, finish, rcdrv, start

REPOSITORY = Path(__file__).parents[2]
SHORT = ("--examples", "2", "--steps", "15")


def run_script(path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """As a user runs it."""
    shim = path.with_name("rcdrv")
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m rcdrv "$@"\n')
    shim.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RCDRV_")}
    environment = {
        **kept,
        "PATH": f"{path.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        **more,
    }
    return subprocess.run(
        [str(path)], capture_output=True, text=True, env=environment, timeout=LIMIT, check=False
    )


@pytest.mark.parametrize("spec", ["rcar-s4", "am654"])
def test_nothing_is_found_over_a_socket(endpoint: Callable[..., Endpoint], spec: str) -> None:
    board = endpoint(spec)
    result = rcdrv("fuzz", "device", "--device", board.address, "--json", *SHORT)
    assert result.status == 0, result
    document = result.document
    assert (document["sequences"], document["finding"]) == (2, None)
    assert document["steps"] >= 30
    events = {line["event"] for line in board.log() if "event" in line}
    assert "command" in events
    assert not events & {"harm", "oops", "stray"}


def test_a_finding_is_saved_and_its_script_shows_it(
    endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    faulty, healthy = endpoint("rk3588,fault=irq-twice=all"), endpoint("rk3588")
    folder = tmp_path / "found"
    result = rcdrv(
        *("fuzz", "device", "--device", faulty.address, "--seed", "3"),
        *("--out", str(folder), "--irq", "msix"),
    )
    assert result.status == 1, result
    (path,) = folder.glob("*.sh")
    text = path.read_text()
    assert text in result.out
    assert "--seed 3" in text
    sequences = [json.loads(line) for line in (folder / "sequences.jsonl").open()]
    assert sequences[-1]["finding"]
    assert text.count("\n    ") == 1, "one step is enough"
    shown = run_script(path)
    assert shown.returncode == 1, shown
    assert text.splitlines()[1] in shown.stdout
    assert run_script(path, RCDRV_DEVICE=healthy.address).returncode == 0


def test_rings_of_two_threads_all_arrive(endpoint: Callable[..., Endpoint]) -> None:
    board = endpoint("generic")
    result = rcdrv("fuzz", "device", "--device", board.address, "enable", "threads,count=8")
    assert result.status == 0, result
    rings = [line for line in board.log() if line.get("op") == "write" and line["region"] == "BAR1"]
    assert len(rings) == 16
    assert {(line["offset"], line["size"]) for line in rings} == {(rings[0]["offset"], 4)}


def test_a_signal_leaves_nothing_behind(endpoint: Callable[..., Endpoint]) -> None:
    board = endpoint("generic")
    run = start("fuzz", "device", "--device", board.address, "--seconds", "60")
    deadline = time.monotonic() + LIMIT
    while sum(line.get("event") == "doorbell" for line in board.log()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    assert finish(run).status == 130
    log = board.log()
    shows = {line["bar"]: line["shows"] for line in log if line.get("event") == "inbound"}
    assert set(shows.values()) == {"memory"}
    answers = [line["status"] for line in log if line.get("event") == "answer"]
    enabled, disabled = (
        max((n for n, status in enumerate(answers) if status & bit), default=-1)
        for bit in (1 << 10, 1 << 12)
    )
    assert disabled > enabled >= 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dance"], "no step 'dance'"),
        (["disable"], "may harm"),
        (["--destructive", "everything"], "no class 'everything'"),
        (["--steps", "0"], "at least one"),
        (["reset", "--device", "sim:generic,reset=none"], "no reset"),
    ],
)
def test_what_is_asked_for_in_vain(arguments: list[str], said: str) -> None:
    device = [] if "--device" in arguments else ["--device", "sim:generic"]
    result = rcdrv("fuzz", "device", *device, *arguments)
    assert result.status == 2
    assert said in result.err


def test_a_lost_device_is_a_finding() -> None:
    result = rcdrv("fuzz", "device", "--device", "sim:generic,fault=vanish=400", "--json")
    assert result.status == 5
    assert "is gone" in result.document["finding"]


def test_the_classes_of_harm_are_listed() -> None:
    result = rcdrv("fuzz", "device", "--destructive", "list")
    assert result.status == 0
    assert "disable-without-enable" in result.out
