"""Several endpoints at once: `--device` more than once, for ring, check and test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.sim.conftest import LIMIT, Endpoint, finish, rcdrv, start
from tests.sim.test_ring import db_bar

TWO = ("--device", "sim:rk3588", "--device", "sim:imx95")


def test_rings_side_by_side() -> None:
    result = rcdrv("ring", *TWO, "--count", "2")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[-2:] == ["sim:rk3588  pass", "sim:imx95   pass"]
    for name, place in (("sim:rk3588", "BAR4+0xa0"), ("sim:imx95 ", "BAR1+0x40")):
        mine = [line.removeprefix(f"{name}  ") for line in lines[:-2] if line.startswith(name)]
        assert mine[0].startswith(f"doorbell {place}")
        assert [one[:7] for one in mine[1:]] == ["ring 1:", "ring 2:", "2 rings"]


def test_documents_are_kept_apart() -> None:
    result = rcdrv("-d", "sim:rk3588", "-d", "sim:am654", "-d", "sim:rk3588", "--json", "ring")
    assert result.status == 1
    document = result.document
    assert document["verdict"] == "fail"
    assert [(one["device"], one["verdict"], one["reason"]) for one in document["devices"]] == [
        ("sim:rk3588", "pass", None),
        ("sim:am654", "fail", "enable-failed"),
        ("sim:rk3588 #2", "pass", None),
    ]


def test_those_behind_the_command_replace_those_before() -> None:
    result = rcdrv("-d", "sim:rk3588", "ring", "--device", "sim:imx95", "--json")
    assert result.document["device"] == "sim:imx95"


def test_one_that_is_lost_or_missing_does_not_stop_the_others() -> None:
    devices = [*TWO, "--device", "vfio-user:/nonexistent"]
    document = rcdrv("check", *devices, "--json").document
    assert [one["verdict"] for one in document["devices"]] == ["pass", "pass", "error"]
    assert document["devices"][2]["reason"] == "host"
    result = rcdrv("ring", *TWO, "--device", "sim:rk3588,fault=vanish=20")
    assert result.status == 5
    assert [line.split()[-1] for line in result.out.splitlines()[-3:]] == ["pass", "pass", "lost"]
    assert all(line.startswith("sim:rk3588,fault=vanish=20  ") for line in result.err.splitlines())


def test_a_closed_stream_is_not_replaced_by_what_opens_next() -> None:
    """The parent's stand-in closed descriptor 1 when a child's stream took its place."""
    command = f"{sys.executable} -m rcdrv -d sim:rk3588 -d sim:rk3588 ring >&-"
    shell = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (shell.returncode, shell.stdout, shell.stderr) == (0, "", "")


def test_suites_have_one_report_of_each_kind(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    cases = ("-f", "pci_ep_basic", "-f", "pcie_ep_doorbell", "--junit", str(junit))
    result = rcdrv("test", *TWO, *cases)
    assert (result.status, result.err) == (1, "")  # neither controller raises INTx
    lines = result.out.splitlines()
    assert lines[:2] == ["TAP version 13", "1..10"]
    points = [line for line in lines if line.startswith(("ok ", "not ok "))]
    assert [int(line.removeprefix("not ").split()[1]) for line in points] == list(range(1, 11))
    for name in ("sim:rk3588", "sim:imx95"):
        assert sum(f" {name} pci" in line for line in points) == 5
        assert any(f" {name} pci_ep_basic.LEGACY_IRQ_TEST" in line for line in points)
        assert f"# {name} LEGACY_IRQ_TEST: Test failed" in lines
    assert "# pci_ep_basic.LEGACY_IRQ_TEST       fail   fail" in lines
    assert lines[-1] == "# Totals: pass:6 fail:2 xfail:0 xpass:0 skip:2 error:0"
    suites = ET.parse(junit).getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["rcdrv sim:rk3588", "rcdrv sim:imx95"]
    assert [(suite.get("tests"), suite.get("failures")) for suite in suites] == [("5", "1")] * 2
    document = rcdrv("test", *TWO, *cases[:4], "--json", "--baseline", "rk3588").document
    assert [one["device"] for one in document["devices"]] == ["sim:rk3588", "sim:imx95"]
    assert [len(one["results"]) for one in document["devices"]] == [5, 5]
    assert document["devices"][0]["baseline"]["known_failures"] == ["pci_ep_basic.LEGACY_IRQ_TEST"]
    assert document["verdict"] == "pass"


def test_a_suite_that_cannot_begin_is_not_run_and_said_once() -> None:
    devices = ("--device", "sim:rk3588", "--device", "vfio-user:/nonexistent")
    result = rcdrv("test", *devices, "MSI_TEST", "--json")
    assert result.status == 3
    assert [one["verdict"] for one in result.document["devices"]] == ["pass", "error"]
    assert result.document["devices"][1]["not_run"] == ["pci_ep_basic.MSI_TEST"]
    assert result.err.startswith("vfio-user:/nonexistent  rcdrv: ")
    assert rcdrv("test", *TWO, "NO_SUCH").err.count("no test is called") == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cleans_all_of_them_up(
    endpoint: Callable[..., Endpoint], tmp_path: Path, signum: signal.Signals
) -> None:
    boards = [endpoint("rcar-s4")]
    (tmp_path / "second").mkdir()
    boards.append(Endpoint("imx95", tmp_path / "second"))
    devices = [word for board in boards for word in ("--device", board.address)]
    run = start("ring", "--count", "0", "--interval", "0.01", *devices, start_new_session=True)
    assert run.stdout is not None
    seen: set[str] = set()
    while len(seen) < 2:
        seen.add(run.stdout.readline().split("  ")[0])
    # As a terminal does: to every process of the group, so that each gets it twice.
    os.killpg(run.pid, signum) if signum == signal.SIGINT else run.send_signal(signum)
    assert finish(run).status == 128 + signum
    assert [db_bar(board.address) for board in boards] == [0xFFFFFFFF] * 2
    assert boards[1].stop().status == 0


def test_a_reader_that_goes_away_leaves_the_doorbells_disabled(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rcar-s4")
    run = start("ring", "--count", "0", "--device", board.address, "--device", "sim:rk3588")
    assert run.stdout is not None
    while not run.stdout.readline().startswith(board.address):
        pass
    os.close(run.stdout.fileno())
    run.stdout = None
    assert finish(run).status == 128 + signal.SIGPIPE
    assert db_bar(board.address) == 0xFFFFFFFF


def test_when_the_parent_is_killed_the_doorbells_are_disabled(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rcar-s4")
    devices = ("--device", board.address, "--device", "sim:rk3588")
    run = start("ring", "--count", "0", "--interval", "0.01", *devices)
    assert run.stdout is not None
    while not run.stdout.readline().startswith(board.address):
        pass
    run.kill()
    run.wait()
    deadline = time.monotonic() + LIMIT
    while db_bar(board.address) != 0xFFFFFFFF and time.monotonic() < deadline:
        pass
    assert db_bar(board.address) == 0xFFFFFFFF
    run.stdout.close()
    assert run.stderr is not None
    run.stderr.close()


def test_the_report_shows_both(tmp_path: Path) -> None:
    both = tmp_path / "both.json"
    both.write_text(rcdrv("check", *TWO, "--json").out)
    found = rcdrv("report", str(both), "-o", str(tmp_path / "page.html"), "--json").document
    named = [one["file"].rpartition(", ")[2] for one in found["results"]]
    assert named == ["sim:rk3588", "sim:imx95"]
