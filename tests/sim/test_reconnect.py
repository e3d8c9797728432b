"""--reconnect, with an endpoint whose process ends and starts again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rcdrv.api import case_names
from rcdrv.cli.reconnect import wait_until_back
from rcdrv.errors import DeviceLost, HostError
from rcdrv.wait import Cancel
from tests.sim.conftest import LIMIT
from tests.verdicts import EXPECTED


def rcdrv(*arguments: str, out: int, err: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rcdrv", *arguments]
    return subprocess.Popen(command, stdout=out, stderr=err)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started = []

    def start() -> subprocess.Popen[bytes]:
        path = tmp_path / "ep.sock"
        process = rcdrv(
            "sim", "rk3588", "--socket", str(path), out=subprocess.DEVNULL, err=subprocess.PIPE
        )
        started.append(process)
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"serving")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(log: Path, text: str, times: int = 1) -> None:
    deadline = time.monotonic() + LIMIT
    while log.read_text().count(text) < times:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


COMMANDS = pytest.mark.parametrize(
    ("command", "alive"),
    [
        (["ring", "--count", "0", "--interval", "0.01"], "acknowledged"),
        (["regs", "--watch"], "CAPS"),
    ],
)


@COMMANDS
def test_goes_on_when_it_is_back(
    command: list[str],
    alive: str,
    tmp_path: Path,
    start: Callable[[], subprocess.Popen[bytes]],
) -> None:
    log = tmp_path / "log"
    endpoint = start()
    with log.open("wb") as output:
        process = rcdrv(
            *("--device", f"vfio-user:{tmp_path / 'ep.sock'}", *command, "--reconnect"),
            out=output.fileno(),
            err=output.fileno(),
        )
    wait_for(log, alive)
    endpoint.kill()
    endpoint.wait()
    wait_for(log, "rcdrv: waiting for vfio-user:")
    before = log.read_text().count(alive)
    (tmp_path / "ep.sock").unlink(missing_ok=True)
    start()
    wait_for(log, " is back")
    wait_for(log, alive, before + 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT) == 130


@pytest.mark.parametrize("options", [[], ["--reconnect"]])
def test_the_suite_loses_the_endpoint_midway(
    options: list[str], tmp_path: Path, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """The case that was under way is lost; with --reconnect it is the only one."""
    out, err, report = tmp_path / "out", tmp_path / "err", tmp_path / "report.xml"
    endpoint = start()
    with out.open("wb") as output, err.open("wb") as errors:
        process = rcdrv(
            *("--device", f"vfio-user:{tmp_path / 'ep.sock'}", "test", *options),
            *("--tap", "--junit", str(report)),
            out=output.fileno(),
            err=errors.fileno(),
        )
    wait_for(out, "ok 3 ")
    endpoint.kill()
    endpoint.wait()
    if options:
        wait_for(err, "rcdrv: waiting for vfio-user:")
        (tmp_path / "ep.sock").unlink(missing_ok=True)
        start()
    assert process.wait(LIMIT) == 5
    assert err.read_text().count(" is back") == len(options)
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        verdict = next((one.get("type") for one in case if one.get("type")), None)
        found[f"{case.get('classname')}.{case.get('name')}"] = verdict
    assert len(found) == len(case_names())
    lost = [name for name, verdict in found.items() if verdict == "device-lost"]
    names = list(found)
    first = names.index(lost[0])
    assert first >= 3
    assert lost == names[first : first + 1 if options else None]
    rest = {name: verdict for name, verdict in found.items() if name not in lost and verdict}
    expected = {name: reason for name, (_, reason) in EXPECTED["rk3588"].items()}
    assert rest == {name: reason for name, reason in expected.items() if name not in lost}


@COMMANDS
def test_without_it_a_lost_device_is_the_end(
    command: list[str], alive: str, tmp_path: Path, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    log = tmp_path / "log"
    endpoint = start()
    with log.open("wb") as output:
        process = rcdrv(
            *("--device", f"vfio-user:{tmp_path / 'ep.sock'}", *command),
            out=output.fileno(),
            err=output.fileno(),
        )
    wait_for(log, alive)
    endpoint.kill()
    assert process.wait(LIMIT) == 5
    # Idle, or in the midst of a request: "is gone", "is gone before its answer to ...".
    assert re.search(r"^rcdrv: vfio-user:\S+: .*\bgone\b", log.read_text(), re.MULTILINE)


def test_the_wait_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"waited 0\.1 s for vfio-user:"):
        wait_until_back(f"vfio-user:{tmp_path}/none", Cancel(), DeviceLost("gone"), within=0.1)


# -- the child that SIGBUS may kill ---------------------------------------------------------------

GUARDED = """
import os, signal, sys, time
from rcdrv.cli.guard import continue_in_child
from rcdrv.errors import DeviceLost
print("before")
try:
    continue_in_child("0000:01:00.0")
except DeviceLost as error:
    print(error.message)
    sys.exit(error.exit_status)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
print("in child", flush=True)
{body}
"""


def guarded(body: str) -> subprocess.Popen[bytes]:
    script = GUARDED.format(body=body)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_the_childs_outcome_is_the_parents(body: str, status: int) -> None:
    process = guarded(body)
    assert process.communicate(timeout=LIMIT)[0] == b"before\nin child\n"
    assert process.returncode == status


def test_sigbus_is_told() -> None:
    process = guarded("os.kill(os.getpid(), signal.SIGBUS)")
    assert b"(SIGBUS)" in process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 5


def test_signals_reach_the_child() -> None:
    process = guarded("time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.read(16) == b"before\nin child\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 42
    process.stdout.close()


def test_the_child_ends_in_order_when_its_parent_is_killed(tmp_path: Path) -> None:
    done = tmp_path / "done"
    process = guarded(
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        f"finally:\n    open({str(done)!r}, 'w').close()"
    )
    assert process.stdout is not None
    assert process.stdout.read(22) == b"before\nin child\nready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + LIMIT
    while not done.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.stdout.close()
