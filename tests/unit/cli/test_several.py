"""Several devices: what they are called, which take turns, and what they come to together."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
from pathlib import Path

import pytest

from rcdrv.cli import main, several
from rcdrv.cli.several import labels, lanes, together, worst_of
from rcdrv.errors import UsageError
from rcdrv.report.terminal import side_by_side
from rcdrv.results.result import Run
from rcdrv.sysfs import Paths
from rcdrv.wait import Cancel
from tests.unit.report.samples import a_run

FUNCTIONS = ["0000:01:00.0", "01:00.1", "0000:02:00.0", "sim:rk3588", "0000:03:00.0", "sim:rk3588"]


def test_labels_tell_devices_apart() -> None:
    assert labels(FUNCTIONS) == [
        *("0000:01:00.0", "0000:01:00.1", "0000:02:00.0", "sim:rk3588"),
        *("0000:03:00.0", "sim:rk3588 #2"),
    ]


@pytest.mark.parametrize(
    "twice", [["01:00.0", "0000:01:00.0"], ["vfio-user:/a", "vfio-user:/a"], ["sim:x", "nonsense"]]
)
def test_a_function_that_is_named_twice_is_refused(twice: list[str]) -> None:
    with pytest.raises(UsageError):
        labels(twice)


def test_one_that_cannot_end_keeps_nobody_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that is stopped, or waits in the kernel, heeds no signal."""
    monkeypatch.setattr(several, "_LONGEST", 0.2)
    args = argparse.Namespace(devices=["sim:a", "sim:b"])

    def body(one: argparse.Namespace, _cancel: Cancel) -> int:
        print(os.getpid(), flush=True)
        if one.device == "sim:a":
            os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    pids: dict[int, int] = {}
    with contextlib.closing(Cancel()) as cancel:

        def receive(number: int, line: str) -> None:
            pids[number] = int(line)
            if len(pids) == 2:
                os.waitid(os.P_PID, pids[0], os.WSTOPPED)
                os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOWAIT)
                cancel.hurry()

        try:
            statuses = several.side_by_side(args, cancel, body, receive)
        finally:
            os.kill(pids[0], signal.SIGKILL)
            os.waitpid(pids[0], 0)
    assert statuses == [3, 0]
    assert f"process {pids[0]} does not end" in capsys.readouterr().err


def test_a_lost_reader_is_not_kept_by_a_process_that_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(several, "_LONGEST", 0.2)
    args = argparse.Namespace(devices=["sim:a"])

    def body(_one: argparse.Namespace, _cancel: Cancel) -> int:
        print(os.getpid(), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    stopped = []

    def receive(_number: int, line: str) -> None:
        stopped.append(int(line))
        os.waitid(os.P_PID, stopped[0], os.WSTOPPED)
        raise BrokenPipeError

    with contextlib.closing(Cancel()) as cancel, pytest.raises(BrokenPipeError):
        several.side_by_side(args, cancel, body, receive)
    os.kill(stopped[0], signal.SIGKILL)
    os.waitpid(stopped[0], 0)


def test_functions_of_one_group_take_turns(tmp_path: Path) -> None:
    """iommu_device_claim_dma_owner(): a group belongs to one process."""
    for bdf, group in (("01:00.0", 7), ("01:00.1", 7), ("02:00.0", 8)):
        folder = tmp_path / f"bus/pci/devices/0000:{bdf}"
        folder.mkdir(parents=True)
        (folder / "iommu_group").symlink_to(f"../../kernel/iommu_groups/{group}")
    paths = Paths(sys=tmp_path)
    assert lanes(FUNCTIONS, paths) == [[0, 1], [2], [3], [4], [5]]
    virtual = ["01:00.0", "02:00.0", "0000:02:00.5"]  # each a group of its own, or none
    assert lanes(virtual, paths) == [[0], [1], [2]]
    # A reset of the bus takes all functions behind the port.
    assert lanes(virtual, paths, one_bus=True) == [[0], [1, 2]]
    # And a group without ACS spans buses.
    link = tmp_path / "bus/pci/devices/0000:02:00.5/iommu_group"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../kernel/iommu_groups/7")
    assert lanes(virtual, paths) == [[0, 2], [1]]
    assert lanes(virtual, paths, one_bus=True) == [[0, 1, 2]]


def test_functions_that_came_as_descriptors_take_no_turns(tmp_path: Path) -> None:
    """All processes have copies of them, so each stays open until the last one ends."""
    nodes = (Path("/dev/null"), Path("/dev/zero"), Path("/dev/full"))  # stand-ins: 1:3, 1:5, 1:7
    for node, bdf, group in zip(nodes, ("01:00.0", "01:00.1", "02:00.0"), (7, 7, 8), strict=True):
        folder = tmp_path / f"bus/pci/devices/0000:{bdf}"
        (folder / "vfio").mkdir(parents=True)
        (folder / "vfio/device").symlink_to("..")
        (folder / "vfio/subsystem").symlink_to(tmp_path / "class/vfio-dev")
        (folder / "iommu_group").symlink_to(f"../../kernel/iommu_groups/{group}")
        number = node.stat().st_rdev
        link = tmp_path / f"dev/char/{os.major(number)}:{os.minor(number)}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder / "vfio")
    paths = Paths(sys=tmp_path)
    with contextlib.ExitStack() as stack:
        one, same, other = (f"fd:{stack.enter_context(node.open('rb')).fileno()}" for node in nodes)
        assert lanes([one, other, "sim:a"], paths) == [[0], [1], [2]]
        assert lanes([one, "fd:999999"], paths) == [[0], [1]]
        for pair in ([one, same], [one, "01:00.1"], ["01:00.1", f"{one},9"]):
            with pytest.raises(UsageError, match=f"{pair[0]} and {pair[1]} are of one IOMMU group"):
                lanes(pair, paths)


def test_the_worst_counts() -> None:
    with contextlib.closing(Cancel()) as cancel:
        assert worst_of([0, 4], cancel) == 4
        assert worst_of([4, 1, 0], cancel) == 1
        assert worst_of([1, 2], cancel) == 2
        assert worst_of([2, 3, 1], cancel) == 3
        assert worst_of([3, 5, 1], cancel) == 5
        assert worst_of([5, 70], cancel) == 70
        cancel.request(signal.SIGTERM)
        assert worst_of([5, 0], cancel) == 143


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "skip", "unverified"], "skip"),
        (["fail", "skip"], "fail"),
        (["error", "fail", "lost"], "lost"),
        (["pass", None], "error"),
    ],
)
def test_the_document_of_all_has_the_worst_verdict(verdicts: list[str], worst: str) -> None:
    assert together([{"verdict": verdict} for verdict in verdicts])["verdict"] == worst


@pytest.mark.parametrize("command", ["info", "regs", "bench ring", "peek 0 0", "pcitest -b 0"])
def test_other_commands_take_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    devices = ["--device", "sim:rk3588", "--device", "sim:imx95"]
    words = command.split()
    for line in ([*words, *devices], [*devices, *words]):
        assert main(line) == 2
        assert "takes one --device, not 2" in capsys.readouterr().err


def test_the_table_has_a_column_for_each() -> None:
    first, second = a_run(), a_run(finished=1)
    second.device = "another"
    lines = list(side_by_side([first, second, Run("third", planned=first.planned)]))
    assert lines[0].split() == ["1", "2", "3"]
    name, *cells = lines[1].split()
    assert name == str(first.planned[0])
    assert cells == [first.results[0].verdict.value, second.results[0].verdict.value, "-"]
    assert lines[2].split()[2:] == ["-", "-"]
    assert lines[-3].startswith(f"1  {first.device}: ")
    assert lines[-1].startswith(f"3  third: {len(first.planned)} not run")


def test_a_host_without_room_for_processes_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """fork() has EAGAIN at the limit of processes, of a user or of a container."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    assert main(["-d", "sim:rk3588", "-d", "sim:imx95", "ring"]) == 3
    assert "this host has no more to give" in capsys.readouterr().err
