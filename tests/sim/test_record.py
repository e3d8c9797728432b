"""``--record`` and ``replay:`` by the command line, in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rcdrv.replay.recording import Recording

LIMIT = 120
SIM = ("--device", "sim:rk3588")


def rcdrv(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rcdrv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)


def test_a_ring_is_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "ring.gz"
    command = ("ring", "--count", "3", "--irq", "msix", "--json")
    first = rcdrv("--record", path, *SIM, *command)
    assert first.returncode == 0, first.stderr
    again = rcdrv("--device", f"replay:{path}", *command)
    one, other = json.loads(first.stdout), json.loads(again.stdout)
    assert [one[key] for key in ("doorbell", "irq", "verdict")] == [
        other[key] for key in ("doorbell", "irq", "verdict")
    ]
    assert [ring["status"] for ring in one["rings"]] == [ring["status"] for ring in other["rings"]]
    info = json.loads(rcdrv("--device", f"replay:{path}", "info", "--json").stdout)["recording"]
    assert info["verdicts"] == [["", "pass", ""]]
    assert {"count=3", "irq=msix"} <= set(info["command"])
    changed = rcdrv("--device", f"replay:{path}", "ring", "--count", "4", "--irq", "msix")
    assert changed.returncode == 5
    assert "ring 3: acknowledged" in changed.stdout
    assert "departs from the recording at line" in changed.stderr


def test_a_run_that_is_stopped_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ring.gz"
    command = [sys.executable, "-m", "rcdrv", "--record", str(path), *SIM, "ring", "--count", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(LIMIT) == 130
    recording = Recording.read(str(path))
    assert recording.verdicts() == [("", "error", "interrupted")]
    assert [event.fields for event in recording.events if event.op == "w"][-2:] == [
        (0, 4, 4, 0x80),  # DISABLE_DOORBELL
        (7, 4, 2, 0),
    ]


def test_a_run_that_is_killed_is_kept_too(tmp_path: Path) -> None:
    path = tmp_path / "ring.gz"
    ring = [*SIM, "ring", "--count", "0", "--interval", "0.05"]
    command = [sys.executable, "-m", "rcdrv", "--record", str(path), *ring]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        process.kill()
        process.wait(LIMIT)
    again = rcdrv("--device", f"replay:{path}", "ring", "--count", "100")
    assert again.stdout.count("acknowledged in") >= 2  # of the last, 10 ms may be missing
    assert again.returncode == 5
    told = rcdrv("--device", f"replay:{path}", "info")
    assert "cut off: the run was killed" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ring", *SIM, "--reconnect"), "--record keeps one session, and --reconnect may make"),
        (("ring", *SIM, *SIM), "--record keeps one session, and several devices make several"),
        (("ring", *SIM, "--soak", "1s"), "--record keeps what can be replayed, and --soak ends"),
        (("ntb", "ping", "--compare"), "--record keeps one session, and --compare makes two"),
        (
            ("ring", "--device", "replay:x.gz"),
            "replay:x.gz is a recording already, and is not recor",
        ),
        (("list",), "list has no use for --record"),
        (("bench", "ring", *SIM), "bench has no use for --record"),
    ],
)
def test_what_cannot_be_recorded(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = rcdrv("--record", tmp_path / "x.gz", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "x.gz").exists()
