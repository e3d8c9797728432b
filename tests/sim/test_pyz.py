"""``rcdrv.pyz``: all of rcdrv in one file, run by a Python that has nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rcdrv.cli import COMMANDS
from tools import pyz
from tools.dist_check import oldest_and_newest

ROOT = Path(__file__).parents[2]
LIMIT = 120
RK3588 = ("--device", "sim:rk3588")
VNTB = ("--device", "sim:rk3588-vntb")

USES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "list": (("list", "--all"), -1, ""),
    "doctor": (("doctor",), -1, "VFIO module"),
    "bind": (("bind", "ffff:1f:1f.7"), 3, "ffff:1f:1f.7: no such PCI device"),
    "unbind": (("unbind", "ffff:1f:1f.7"), 3, "ffff:1f:1f.7"),
    "rescan": (("rescan", "ffff:1f:1f.7"), 3, "ffff:1f:1f.7"),
    "reset": (("reset", *RK3588), 0, "sim:rk3588: reset"),
    "ring": (("ring", "--bar", "4", *RK3588), 0, "ring 1: acknowledged"),
    "test": (("test", "DOORBELL_TEST", *RK3588), 0, "pass:1 fail:0"),
    "pcitest": (("pcitest", *RK3588, "-b", "0"), 0, "OKAY"),
    "info": (("info", *RK3588), 0, "MSI-X"),
    "check": (("check", *RK3588), 0, "doorbell"),
    "regs": (("regs", *RK3588), 0, "DB_OFFSET"),
    "peek": (("peek", *RK3588, "0", "0"), 0, "BAR0+0x0"),
    "poke": (("poke", *RK3588, "1", "0", "1"), 0, ""),
    "fuzz": (("fuzz", "layout"), 3, "hint: pip install 'rcdrv[fuzz]'"),
    "bench": (("bench", "ring", *RK3588, "--count", "20"), 0, "write"),
    "ntb": (("ntb", "info", *VNTB), 0, "doorbell"),
    "report": (("report", "ring.json", "--output", "page.html"), 0, ""),
    "sim": (("sim", "--list"), 0, "rk3588"),
    "setup": (("setup", "udev", "--print"), 0, 'GROUP="rcdrv"'),
}
"""What runs of each command; its exit status, -1 where that is the host's; what it prints."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, far from the source tree."""
    path = tmp_path_factory.mktemp("pyz") / "rcdrv.pyz"
    pyz.build(path)
    return path


def bare(
    archive: Path, *arguments: str, python: str | Path = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run the archive by a Python without site packages, environment and working directory."""
    return subprocess.run(
        [python, "-I", "-S", archive, *arguments],
        cwd=archive.parent,
        env={"HOME": str(archive.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def test_the_same_source_makes_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.pyz"
    command = [sys.executable, "-m", "tools.pyz", str(again)]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == f"{again}\n"
    assert again.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command(archive: Path, command: str) -> None:
    arguments, status, says = USES[command]
    if command == "report":
        ring = bare(archive, "ring", *RK3588, "--json")
        (archive.parent / "ring.json").write_text(ring.stdout)
    done = bare(archive, *arguments)
    said = done.stdout + done.stderr
    assert "bug in rcdrv" not in said
    assert "Traceback" not in said
    assert status in (-1, done.returncode), said
    assert says.lower() in said.lower()


def test_it_records_and_replays(archive: Path) -> None:
    assert bare(archive, "--record", "board.gz", "ring", *RK3588).returncode == 0
    replay = ("--device", "replay:board.gz")
    assert "recorded   ring count=1" in bare(archive, "info", *replay).stdout
    again = bare(archive, "ring", *replay)
    assert "ring 1: acknowledged" in again.stdout, again.stderr


def test_manual_pages_completion_and_rule_come_out_of_it(archive: Path) -> None:
    assert bare(archive, "setup", "udev", "--print").stdout == (
        ROOT / "udev/70-rcdrv.rules"
    ).read_text(encoding="utf-8")
    assert (
        "complete -F _rcdrv rcdrv" in bare(archive, "setup", "completion", "bash", "--print").stdout
    )
    done = bare(archive, "--json", "setup", "man")
    written = {Path(path).name for path in json.loads(done.stdout)["written"]}
    assert written >= {f"rcdrv-{name}.1" for name in COMMANDS}


def test_every_python_that_is_here(archive: Path) -> None:
    """The oldest has no TOML: presets are in the archive as JSON too."""
    for python in oldest_and_newest():
        done = bare(archive, "ring", *RK3588, python=python)
        assert done.returncode == 0, done.stderr
    oldest, *_ = oldest_and_newest()
    layout = archive.parent / "own.toml"
    layout.write_text((ROOT / "rcdrv/sim/presets/rk3588.toml").read_text())
    done = bare(archive, "ring", "--device", f"sim:{layout}", python=oldest)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "this needs tomli" in done.stderr
        assert "-m pip install tomli" in done.stderr


def test_the_endpoint_that_it_starts_is_its_own(archive: Path, tmp_path: Path) -> None:
    """And not that of an rcdrv in the working directory or of the system."""
    other = tmp_path / "other.pyz"
    other.write_bytes(archive.read_bytes())
    broken = tmp_path / "rcdrv"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    archive.chmod(0)
    try:
        done = bare(other, "ring", *RK3588)
    finally:
        archive.chmod(0o755)
    assert done.returncode == 0, done.stderr


def test_an_old_python_is_told_in_one_line() -> None:
    code = "import sys; sys.version_info = (3, 9); exec(sys.stdin.read())"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pyz._MAIN, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "rcdrv: this is Python 3.9, and rcdrv needs 3.10 or newer\n"


def test_a_module_that_a_distribution_split_off_is_named(archive: Path) -> None:
    """Debian's python3-minimal lacks parts of the standard library; so do Yocto's packages. Each
    command says so; tests/lab/test_bare_root.py tries it in such a root."""
    code = """
import runpy, sys
sys.modules['mmap'] = None
archive, *commands = sys.argv[1:]
for command in commands:
    sys.argv = [archive, command]
    try:
        runpy.run_path(archive, run_name='__main__')
    except SystemExit as end:
        print(command, end.code)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, archive, *COMMANDS],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.stdout.split("\n") == [*(f"{command} 3" for command in COMMANDS), ""]
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(COMMANDS)
    assert set(lines[::2]) == {"rcdrv: this Python lacks its own module mmap"}
    assert all(line.startswith("hint: install all of") for line in lines[1::2])


def test_ctrl_c_ends_it_as_it_ends_rcdrv(archive: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", archive, "ring", *RK3588, "--count", "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
