"""Every command against hostile surroundings, arguments and files: 70 needs a bug in rcdrv.

The commands and their options are those of the parser, so a new one is in here from its first day.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rcdrv.cli import COMMANDS, build_parser, main
from rcdrv.manual.grammar import Command, Kind, Parameter, command_tree

LIMIT = 60.0
"""Seconds; on an idle machine none takes one."""
STATUSES = {0, 1, 2, 3, 4, 5, 128 + signal.SIGPIPE}
"""Those of rcdrv.errors; nobody sends a signal here."""

LEAVES = {
    command.name.removeprefix("rcdrv "): command
    for command in command_tree(build_parser([*COMMANDS])).walk()
    if not command.children
}

NOWHERE = "0000:ff:1f.7"
SHORT = {
    "bind": [NOWHERE],
    "unbind": [NOWHERE],
    "rescan": [NOWHERE],
    "ring": ["--count", "2"],
    "test": ["BAR0"],
    "pcitest": ["-b", "0"],
    "fuzz layout": ["--examples", "1"],
    "fuzz device": ["--examples", "1", "--steps", "3"],
    "bench ring": ["--count", "2"],
    "ntb tap": ["--name", "lo"],
    "bench mmio": ["--count", "2"],
    "bench dma": ["--count", "1", "--size", "64"],
    "bench irq": ["--count", "2"],
    "ntb link": ["up"],
    "ntb spad": ["read", "0"],
    "ntb mw": ["read", "0"],
    "ntb perf": ["--seconds", "10ms"],
    "ntb ping": ["--count", "1"],
    "setup udev": ["--print"],
    "setup completion": ["bash", "--print"],
    "setup man": ["ring", "--print"],
}
"""What makes a command end soon, and change nothing here; others take what :func:`typed` finds."""


NO_DEVICE = ("fuzz replay", "fuzz layout")
"""They take one, and do something else with it."""


def typed(name: str, folder: Path) -> list[str]:
    """A command line that is all right."""
    result = folder / "result.json"
    result.write_text('{"device": "sim:rk3588", "verdict": "error", "reason": null, "message": ""}')
    layout = folder / "layout.toml"
    layout.write_text("[bar0]\n")
    words = {
        "BAR": "0", "OFFSET": "0", "VALUE": "0",
        "FILE": str(result), "FILE|DIR": str(layout),
    }  # fmt: skip
    rest = SHORT.get(name) or [
        words[one.metavar] for one in LEAVES[name].arguments if not one.optional
    ]
    if name == "report":
        rest = [*rest, "-o", "-"]
    if name == "sim":
        rest = ["rk3588", "--socket", str(folder / "socket")]
    spec = "rcar-s4-vntb" if name.startswith("ntb") else "rk3588"
    takes = any("--device" in one.flags for one in LEAVES[name].common)
    device = ["--device", f"sim:{spec}"] if takes and name not in NO_DEVICE else []
    return [*name.split(), *rest, *device]


def environment(**more: str) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return {**kept, **more}


def few_files(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


SURROUNDINGS: dict[str, dict[str, Any]] = {
    "few-files": {},
    "stdout-full": {"stdout": "/dev/full"},
    "stderr-full": {"stderr": "/dev/full", "preexec_fn": lambda: os.close(1)},
    "odd": {
        "env": environment(
            LC_ALL="C", LANG="xx_YY.Z", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", NO_COLOR="1",
            COLUMNS="-1", TERM="\udcff", HOME="", TMPDIR="/nowhere", XDG_DATA_HOME="../x",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("name", LEAVES)
def test_surroundings(name: str, surroundings: str, tmp_path: Path) -> None:
    more = {"env": environment(), "stderr": subprocess.PIPE, **SURROUNDINGS[surroundings]}
    if surroundings == "few-files":
        more["preexec_fn"] = few_files(5 + list(LEAVES).index(name) % 16)
    gone = tmp_path / "gone"
    gone.mkdir()
    for stream in ("stdout", "stderr"):
        if isinstance(more.get(stream), str):
            more[stream] = os.open(more[stream], os.O_WRONLY)
    process = subprocess.Popen(
        [sys.executable, "-m", "rcdrv", *typed(name, tmp_path)],
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "cwd": gone, **more},
    )
    for stream in ("stdout", "stderr"):
        if isinstance(more.get(stream), int) and more[stream] >= 0:
            os.close(more[stream])
    gone.rmdir()
    if name == "sim":
        await_socket(process, tmp_path)
    try:
        _, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    said = (err or b"").decode(errors="replace")
    assert "Traceback" not in said, said
    assert process.returncode in STATUSES, said
    if surroundings == "stdout-full" and name not in ("sim", "list"):  # with nothing to list
        assert process.returncode, "what cannot be written is no success"


def await_socket(process: subprocess.Popen[Any], folder: Path) -> None:
    """Until an endpoint is served, or the command has ended; then end it."""
    deadline = time.monotonic() + LIMIT
    while process.poll() is None and not (folder / "socket").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()


@pytest.mark.parametrize("limit", range(5, 21))
def test_few_files(limit: int, tmp_path: Path) -> None:
    """Of the commands that open most, at each number of files; Python itself needs 4."""
    name = ("ring", "test", "sim")[limit % 3]
    done = subprocess.Popen(
        [sys.executable, "-m", "rcdrv", *typed(name, tmp_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=few_files(limit),
    )
    if name == "sim":
        await_socket(done, tmp_path)
    _, said = done.communicate(timeout=LIMIT)
    assert done.returncode in (0, 3), said
    assert bool(done.returncode) == said.startswith("rcdrv: ")


VALUES = ("", "-1", "9" * 5000, "0x" + "f" * 5000, "nan", "\udcff\x1b[31m", "x" * 1_000_000)


@pytest.mark.parametrize("name", LEAVES)
def test_values(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No device is there, so a value that is taken does no harm and takes no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    base = [
        "vfio-user:/nowhere" if word.startswith("sim:") else word for word in typed(name, tmp_path)
    ]
    if name == "sim":
        base[1] = "no-preset"
    if name == "fuzz layout":
        base += ["--examples", "0"]
    command = LEAVES[name]
    lines = [
        [*base, option.flags[-1], value]
        for option in (*command.options, *command.common)
        if option.metavar and not harmful(name, option)
        for value in VALUES
    ]
    if command.arguments:
        lines += [[*name.split(), *[value] * len(command.arguments)] for value in VALUES]
    for line in lines:
        check(line, capsys)


def harmful(name: str, option: Parameter) -> bool:
    """What would run a program, or wait for as long as it is told to."""
    return option.flags[-1] in (
        "--ep",
        "--dask",
        "--socket",
        "--socket-path",
        "--socket-path",
        "--workers",
    ) or (name == "fuzz layout" and option.flags[-1] in ("--seconds", "--out"))


def check(line: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    began = time.monotonic()
    try:
        status = main(line)
    except SystemExit as left:
        status = int(str(left.code))
    shown = capsys.readouterr()
    told = [word[:60] for word in line]
    assert status in STATUSES, (told, shown.err)
    assert len(shown.err) < 5000, told
    assert "\x1b" not in shown.err, told
    assert time.monotonic() - began < LIMIT, told
    return status, shown.err


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What no command can have meant by a file that it reads."""
    folder = tmp_path_factory.mktemp("files")
    deep = 100_000
    texts = {
        "list.toml": 'function = ["x"]',
        "table.toml": 'function = {x = {y = "z"}}\nbar0 = [[]]',
        "list-deep.toml": f"msi = {'[' * deep}{']' * deep}",
        "list-900.toml": f"msi = {'[' * 900}{']' * 900}",
        "list-400.toml": f"function = {'[' * 400}{']' * 400}",
        "key-deep.toml": f"{'a.' * 5000}a = 1",
        "number.toml": f"msi = {'9' * 100_000}",
        "bars.toml": "".join(f"[bar{i}]\nsize = 0x4000000000000000\n" for i in range(6)),
        "deep.json": "[" * deep + "]" * deep,
        "object-deep.json": '{"a":' * deep + "1" + "}" * deep,
        "deep-900.json": '{"results":' + "[" * 900 + "]" * 900 + "}",
        "number.json": '{"rings": %s}' % ("9" * 100_000),
        "long.json": json.dumps({"verdict": "x" * 1_000_000}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "binary.toml").write_bytes(bytes(range(256)) * 16)
    (folder / "large.toml").touch()
    os.truncate(folder / "large.toml", 1 << 40)
    os.mkfifo(folder / "fifo.toml")
    (folder / "directory.toml").mkdir()
    (folder / "loop.toml").symlink_to("loop.toml")
    (folder / "zero.toml").symlink_to("/dev/zero")
    return sorted(folder.iterdir())


READERS: dict[str, Callable[[str], list[str]]] = {
    "--device": lambda path: ["--device", f"sim:{path}", "ring"],
    "sim": lambda path: ["sim", path, "--socket", "/nowhere/socket"],
    "fuzz replay": lambda path: ["fuzz", "replay", path],
    "fuzz replay --device": lambda path: ["fuzz", "replay", path, "--device", "vfio-user:/no"],
    "fuzz device": lambda path: ["fuzz", "device", "--device", f"sim:{path}"],
    "bench --against": lambda path: ["bench", "dma", "--against", path, "--device", "sim:no"],
    "report": lambda path: ["report", path, "-o", "/dev/null"],
}
"""Everything that reads a file which its user names."""


@pytest.mark.parametrize("reader", READERS)
def test_files(reader: str, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path in files:
        if reader == "report" and path.name in ("fifo.toml", "zero.toml"):
            continue  # a report reads pipes to their end
        status, said = check(READERS[reader](str(path)), capsys)
        assert status, path
        if path.name in ("fifo.toml", "zero.toml"):
            assert "not a regular file" in said or "no such file" in said, reader


def test_every_reader_is_known() -> None:
    taking = {
        f"{name} {flag}".strip()
        for name, command in LEAVES.items()
        for flag, kind in parameters(command)
        if kind in (Kind.FILE, Kind.SPEC)
    }
    written = {
        "--junit",
        "--plot",
        "--picture",
        "--out",
        "-o",
        "--output",
        "--access-log",
        "--configfs",  # of a board
        "--socket",
        "--socket-path",
    }
    reading = {one for one in taking if one.split()[-1] not in written}
    assert reading == {
        "report", "sim", "fuzz replay",
        *(f"bench {what} --against" for what in ("ring", "mmio", "dma", "irq")),
    }  # fmt: skip


def parameters(command: Command) -> Iterator[tuple[str, Kind]]:
    for argument in command.arguments:
        yield "", argument.kind
    for option in command.options:
        yield option.flags[-1], option.kind
