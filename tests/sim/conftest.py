"""Running rcdrv as its users do, against software endpoints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.access_log import entries

LIMIT = 120.0
"""Seconds; far beyond what any run here takes, so that a hang is a failure and not a wait."""


def bound(waited_for: bool) -> str:
    """Return --timeout's value: short only where it passes in full, as a busy host is slow."""
    return "1" if waited_for else "30"


@dataclass(frozen=True)
class Result:
    """What a run of rcdrv came to."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document


def start(*arguments: str, **more: Any) -> subprocess.Popen[str]:
    """Start rcdrv, output captured."""
    return subprocess.Popen(
        [sys.executable, "-m", "rcdrv", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("RCDRV_")},
        **more,
    )


def finish(process: subprocess.Popen[str]) -> Result:
    """Wait for a run; no run may ever show a traceback."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"hangs: {process.args!r}\n{out}\n{err}")
    out, err = out or "", err or ""  # a test may have closed one of them
    assert "Traceback" not in err, err
    assert "bug in rcdrv" not in err, err
    return Result(process.returncode, out, err)


def rcdrv(*arguments: str) -> Result:
    """Run rcdrv to its end."""
    return finish(start(*arguments))


def listening(path: Path) -> bool:
    """Whether a server takes clients there: its socket exists a moment before it does."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Endpoint:
    """A software endpoint that runs in another process, as a user starts it."""

    def __init__(self, spec: str, folder: Path, *options: str) -> None:
        self.socket = folder / "endpoint.sock"
        self.log_path = folder / "access.log"
        self.process = start(
            "sim",
            spec,
            "--socket",
            str(self.socket),
            "--access-log",
            str(self.log_path),
            *options,
        )
        deadline = time.monotonic() + LIMIT
        while not listening(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{spec} did not start: {finish(self.process)}")
            time.sleep(0.005)

    @property
    def address(self) -> str:
        return f"vfio-user:{self.socket}"

    def log(self) -> list[dict[str, Any]]:
        """Everything that the endpoint has noted so far."""
        return entries(self.log_path)

    def stop(self) -> Result:
        self.process.send_signal(signal.SIGTERM)
        return finish(self.process)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Callable[..., Endpoint]]:
    """A function that starts endpoints, which end with the test."""
    running: list[Endpoint] = []

    def make(spec: str, *options: str) -> Endpoint:
        folder = tmp_path / f"endpoint{len(running)}"
        folder.mkdir()
        running.append(Endpoint(spec, folder, *options))
        return running[-1]

    yield make
    for one in running:
        if one.process.poll() is None:
            one.stop()
