"""The lab itself: what it promises to the other tests."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.lab.errors import CommandTimeout, LabError
from tools.lab.guest import Guest

REPOSITORY = Path(__file__).parents[2]
LAB = [sys.executable, "-m", "tools.lab"]


def children() -> set[int]:
    """The processes that this one started and that still are."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Fail if a process or a file is left; returns the folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = children()
    yield tmp_path
    assert children() == before
    assert list(tmp_path.iterdir()) == []


def wait_for(condition: Callable[[], bool], timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_exit_status_and_both_streams_come_back(bare_guest: Guest) -> None:
    result = bare_guest.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (result.status, result.stdout, result.stderr) == (7, "out\n", "err\n")


def test_a_command_that_is_not_there(bare_guest: Guest) -> None:
    result = bare_guest.run(["no-such-command"])
    assert result.status == 127
    assert "no-such-command" in result.stderr


def test_large_output_is_complete(bare_guest: Guest) -> None:
    result = bare_guest.run(["sh", "-c", "seq 100000; seq 100000 >&2"])
    numbers = "".join(f"{number}\n" for number in range(1, 100001))
    assert result.stdout == numbers
    assert result.stderr == numbers


def test_stdin(bare_guest: Guest) -> None:
    assert bare_guest.run(["wc", "-c"], stdin=b"x" * 300_000).stdout.strip() == "300000"


def test_files_go_in_and_come_out(bare_guest: Guest) -> None:
    data = os.urandom(1_000_001)
    bare_guest.put("/tmp/deep/er/file", data)
    assert bare_guest.get("/tmp/deep/er/file") == data


def test_reading_a_missing_file_is_an_error(bare_guest: Guest) -> None:
    with pytest.raises(LabError, match="cannot read /nowhere"):
        bare_guest.get("/nowhere")


def test_a_signal_reaches_the_command(bare_guest: Guest) -> None:
    script = "import time\ntry:\n print('up'); time.sleep(60)\nexcept KeyboardInterrupt: exit(42)"
    process = bare_guest.start(["python3", "-c", script])
    process.wait_output("up")
    process.signal(signal.SIGINT)
    assert bare_guest.wait(process).status == 42


def test_a_killed_command_says_so(bare_guest: Guest) -> None:
    process = bare_guest.start(["sleep", "60"])
    process.signal(signal.SIGTERM)
    assert bare_guest.wait(process).status == -signal.SIGTERM


def test_a_hanging_command_is_ended_and_the_guest_lives_on(bare_guest: Guest) -> None:
    # The shell ignores all but SIGKILL, and its child must go with it.
    script = "trap '' INT TERM; echo before; sleep 4321; sleep 4321"
    started = time.monotonic()
    with pytest.raises(CommandTimeout, match="before"):
        bare_guest.run(["sh", "-c", script], timeout=1.0)
    assert time.monotonic() - started < 1000
    assert "4321" not in bare_guest.run(["ps"]).stdout


def test_what_a_command_leaves_in_the_background_holds_nothing_up(bare_guest: Guest) -> None:
    result = bare_guest.run(["sh", "-c", "sleep 1234 & echo done"], timeout=20.0)
    assert result.stdout == "done\n"
    bare_guest.run(["pkill", "-f", "sleep 1234"])


def test_commands_run_side_by_side(bare_guest: Guest) -> None:
    waits = bare_guest.start(["cat"])
    assert bare_guest.run(["echo", "meanwhile"]).stdout == "meanwhile\n"
    waits.write(b"the end")
    waits.close_stdin()
    assert bare_guest.wait(waits).stdout == "the end"


def test_an_ordinary_user(bare_guest: Guest) -> None:
    assert bare_guest.run(["id", "-u"], user="user").stdout == "1000\n"
    group = f"/dev/vfio/{bare_guest.devices[0].group}"
    assert "denied" in bare_guest.run(["cat", group], user="user").stderr


def test_a_terminal(bare_guest: Guest) -> None:
    result = bare_guest.wait(bare_guest.start(["sh", "-c", "tty; stty size"], terminal=(33, 99)))
    assert re.fullmatch(r"/dev/pts/\d+\r\n33 99\r\n", result.stdout)


def test_the_working_tree_and_nothing_that_python_does_not_bring(bare_guest: Guest) -> None:
    script = "import rcdrv; print(rcdrv.__file__)"
    assert bare_guest.run(["python3", "-c", script]).stdout == "/opt/rcdrv/rcdrv/__init__.py\n"
    assert bare_guest.run(["python3", "-c", "import numpy"]).status == 1


def test_the_device_is_bound_to_vfio_in_a_group_of_its_own(bare_guest: Guest) -> None:
    device = bare_guest.devices[0]
    assert bare_guest.get(f"/sys/bus/pci/devices/{device.address}/vendor") == b"0x1234\n"
    script = f"ls -l /sys/bus/pci/devices/{device.address}/driver /dev/vfio/{device.group}"
    assert "vfio-pci" in bare_guest.run(["sh", "-c", script]).stdout
    group = f"/sys/kernel/iommu_groups/{device.group}/devices"
    assert bare_guest.run(["ls", group]).stdout == device.address + "\n"


def test_a_function_that_is_left_alone_has_no_driver(nothing_left: Path) -> None:
    with Guest(devices=["edu"], bind=False) as guest:
        device = guest.devices[0].address
        assert guest.run(["test", "-e", f"/sys/bus/pci/devices/{device}/driver"]).status == 1


def test_a_guest_that_hangs_is_ended(nothing_left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.lab.channel.GRACE", 1.0)
    with Guest(logs=None) as guest:
        agent = guest.run(["pidof", "python3"]).stdout.strip()
        with pytest.raises(LabError, match=r"guest hangs.*\n(.*\n)*.*console"):
            guest.run(["sh", "-c", f"kill -STOP {agent}; sleep 1"], timeout=1.0)
        with pytest.raises(LabError, match="ended"):
            guest.run(["true"])


def test_a_guest_that_panics_is_reported(nothing_left: Path) -> None:
    with Guest() as guest, pytest.raises(LabError, match="Kernel panic"):
        guest.run(["sh", "-c", "echo c >/proc/sysrq-trigger"])


def test_a_guest_that_does_not_boot_is_ended(nothing_left: Path) -> None:
    with pytest.raises(LabError, match=r"did not boot in time\n(.*\n)*.*console"):
        Guest(append=["rdinit=/usr/bin/python3"], boot_timeout=6.0).__enter__()


def test_an_endpoint_that_does_not_start_is_reported(nothing_left: Path) -> None:
    with pytest.raises(LabError, match="no-such-preset"):
        Guest(endpoints=["no-such-preset"]).__enter__()


def test_the_death_of_an_endpoint_is_told_and_the_guest_lives_on(nothing_left: Path) -> None:
    with Guest(endpoints=["generic", "rk3588"]) as guest:
        assert guest.deaths() == []
        os.kill(guest.endpoints[0].child.pid, signal.SIGKILL)
        wait_for(lambda: bool(guest.deaths()))
        assert "ep0-generic ended with status -9" in guest.deaths()[0]
        ring = guest.run(["rcdrv", "-d", guest.endpoints[1].address, "ring"])
        assert ring.status == 0, ring.stderr


def test_a_device_that_qemu_does_not_know(nothing_left: Path) -> None:
    with pytest.raises(LabError, match="no-such-device"):
        Guest(devices=["no-such-device"]).__enter__()


def test_logs_are_kept_on_demand(
    nothing_left: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    logs = tmp_path_factory.mktemp("logs")
    with Guest(logs=logs) as guest:
        guest.run(["sh", "-c", "echo from the test >/dev/kmsg"])
        assert guest._folder is not None
        deadline = time.monotonic() + 60  # the kernel prints it from a thread
        while "from the test" not in (guest._folder / "qemu.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert "from the test" in (logs / "qemu.log").read_text()


def test_run_from_the_command_line(nothing_left: Path) -> None:
    command = [*LAB, "run", "--", "sh", "-c", "echo out; echo err >&2; exit 9"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (9, "out\n")
    assert done.stderr.endswith("err\n")


def test_run_ends_a_hanging_command(nothing_left: Path) -> None:
    command = [*LAB, "run", "--timeout", "1", "--", "sleep", "60"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 124
    assert "did not end in 1 s" in done.stderr


def test_ctrl_c_is_for_the_command(nothing_left: Path) -> None:
    script = "trap 'echo caught; exit 5' INT; echo up; while :; do sleep 1; done"
    with subprocess.Popen(
        [*LAB, "run", "--", "sh", "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as lab:
        assert lab.stdout is not None
        assert lab.stdout.readline() == "up\n"
        lab.send_signal(signal.SIGINT)
        assert lab.stdout.read() == "caught\n"
    assert lab.returncode == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_guest_ends_with_the_lab(number: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*LAB, "run", "--", "sh", "-c", "echo up; sleep 60"],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as lab:
        assert lab.stdout is not None
        assert lab.stdout.readline() == "up\n"
        task = Path(f"/proc/{lab.pid}/task/{lab.pid}/children")
        started = [int(pid) for pid in task.read_text().split()]
        assert started
        lab.send_signal(number)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
    if number == signal.SIGTERM:
        assert lab.returncode == 128 + signal.SIGTERM
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pseudo_terminals")
def test_shell_on_a_terminal(nothing_left: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        os.execv(sys.executable, [*LAB, "shell"])
    seen = bytearray()

    def until(text: bytes) -> None:
        while text not in seen:
            seen.extend(os.read(terminal, 4096))

    until(b"x86_64:~# ")
    # Between two programs Ctrl-C would be lost, but for a trap.
    loop = b"trap 'echo caught$((1 + 1)); exit' INT; echo up$((1 + 1)); while :; do sleep 1; done"
    os.write(terminal, b"(" + loop + b")\n")
    until(b"up2")
    os.write(terminal, b"\x03")  # Ctrl-C: for the guest's terminal, not for the lab
    until(b"caught2")
    os.write(terminal, b"echo $((6 * 7)); exit 3\n")
    until(b"\n42\r\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    os.close(terminal)
