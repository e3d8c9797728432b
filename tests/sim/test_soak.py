"""`rcdrv ring --soak`: how it ends, and that neither side leaks."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from rcdrv.cli import main
from tests.sim.conftest import LIMIT, Endpoint, finish, rcdrv, start
from tests.sim.test_ring import db_bar
from tools import soak as tool

SUMMARY = re.compile(r"(\S+): (\d+) rings?, (\d+) failed, (\d+) cycles?")


def test_it_ends_when_the_time_is_up() -> None:
    result = rcdrv("ring", "--soak", "500ms", "--count", "5", "--device", "sim:rk3588")
    assert (result.status, result.err) == (0, "")
    first, *_ = lines = result.out.splitlines()
    assert first == "doorbell BAR4+0xa0 data 0x00000000, msi"
    found = SUMMARY.fullmatch(lines[1])
    assert found
    assert found[3] == "0"
    assert 5 * int(found[4]) - 5 < int(found[2]) <= 5 * int(found[4])
    assert lines[2].startswith("latency p50 ")
    assert lines[-1].startswith("rcdrv held after the first and the last cycle: ")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary(
    endpoint: Callable[..., Endpoint], signum: signal.Signals
) -> None:
    board = endpoint("rcar-s4")
    run = start("ring", "--soak", "1h", "--device", board.address)
    assert run.stdout is not None
    assert run.stdout.readline().startswith("doorbell BAR2")
    run.send_signal(signum)
    result = finish(run)
    assert result.status == 128 + signum
    assert SUMMARY.match(result.out)
    assert db_bar(board.address) == 0xFFFFFFFF


def test_an_endpoint_that_is_lost_is_status_5() -> None:
    result = rcdrv("ring", "--soak", "1h", "--json", "--device", "sim:rk3588,fault=vanish=400")
    assert result.status == 5
    document = result.document
    assert (document["verdict"], document["reason"]) == ("lost", "device-lost")
    soaked = document["soak"]
    assert soaked["count"] > 5
    assert sum(times for _, times in soaked["histogram"]) == soaked["acknowledged"]
    assert len(document["rings"]) == soaked["failed"] <= 1


def test_failed_rings_are_status_1() -> None:
    device = "sim:rk3588,fault=doorbell-dead"
    result = rcdrv("ring", "--soak", "1", "--timeout", "0.2", "--device", device)
    assert result.status == 1
    assert result.err.startswith("rcdrv: ")
    assert "doorbell: no answer in time" in result.err
    found = SUMMARY.match(result.out.splitlines()[1])
    assert found
    assert found[2] == found[3] != "0"
    assert "latency" not in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--soak", "0"],
        ["--soak", "1x"],
        ["--soak", "101d"],
        ["--soak", "-1"],
        ["--soak", "nan"],
        ["--soak", ""],
        ["--soak", "1h", "--cycles", "2"],
        ["--soak", "1h", "--no-wait"],
    ],
)
def test_what_a_soak_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ring", "--device", "sim:rk3588", *arguments]) == 2
    assert "--soak" in capsys.readouterr().err


def test_a_terminal_has_one_line_that_is_rewritten() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rcdrv", "ring", "--soak", "1.2s", "--device", "sim:rk3588"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as run:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # of a terminal whose last user has gone
            pass
        assert run.wait(LIMIT) == 0
    os.close(ours)
    line = r"\r\x1b\[K\S+ of 1\.2s: \d+ rings?, 0 failed, p50 [^\r\n]*"
    assert re.search(line, shown.decode())


def test_neither_side_leaks() -> None:
    """Sessions of rings and transfers; python3 -m tools.soak --time 1h is the long one."""
    found, good = tool.run("rk3588", 2.5, 0.0)
    assert good, found
    assert found["sessions"] >= 12
    for side in ("rcdrv", "endpoint"):
        for name in ("descriptors", "shared mappings"):
            assert len({one[side][name] for one in found["counts"]}) == 1, found["counts"]


def test_a_leak_is_named() -> None:
    held = {"descriptors": 9, "pages": 5000}
    counts = [
        tool.Count(10, held, {"descriptors": 20, "pages": 5000}),
        tool.Count(30, held, {"descriptors": 40, "pages": 5900}),
        tool.Count(50, held, {"descriptors": 60, "pages": 9900}),
    ]
    assert list(tool.leaks(counts)) == [("endpoint: descriptors", [20, 40, 60])]
