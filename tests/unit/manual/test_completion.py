"""Completion completes: rcdrv is asked, and each script in its shell."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rcdrv.cli import main
from rcdrv.manual import COMPLETIONS
from rcdrv.manual.completion import complete
from rcdrv.manual.grammar import Command, Kind
from rcdrv.sim.layout import preset_names
from tests.programs import needed

LIMIT = 60.0
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
Ask = Callable[[Sequence[str]], list[list[str]]]

ASK_BASH = """
. {script}
while IFS= read -r COMP_LINE; do
    COMP_POINT=${{#COMP_LINE}} COMPREPLY=()
    _rcdrv rcdrv </dev/null
    echo "${{COMPREPLY[*]}}"
done
"""

ASK_FISH = """
source {script}
while read -l line
    echo (complete -C "$line" | string replace -r '\\t.*' '')
end
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    made = {}
    for shell, (path, text) in COMPLETIONS.items():
        made[shell] = folder / Path(path).name
        made[shell].write_text(text)
    return made


@pytest.fixture(params=["bash", "fish"])
def ask(request: pytest.FixtureRequest, scripts: dict[str, Path], tmp_path: Path) -> Ask:
    """A function: for each typed line, what the shell offers."""
    shell: str = request.param
    program = needed(shell)
    code = {"bash": ASK_BASH, "fish": ASK_FISH}[shell].format(script=scripts[shell])

    def answers(lines: Sequence[str]) -> list[list[str]]:
        done = subprocess.run(
            [program, "-c", code],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={"PATH": PATH, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
            timeout=LIMIT,
        )
        assert not done.stderr
        said = [line.split() for line in done.stdout.splitlines()]
        assert len(said) == len(lines)
        return said

    return answers


def offered(tree: Command, line: str) -> dict[str, str]:
    """What rcdrv answers for a typed line: each word with its meaning."""
    answer = complete(tree, line.split(" ")[1:])
    return {word: meaning for word, _, meaning in (one.partition("\t") for one in answer)}


def test_every_command_and_every_option(tree: Command) -> None:
    """Each is offered at its place with its help, for a word typed but for its last letter."""
    for command in tree.walk():
        for child in command.children:
            found = offered(tree, f"{command.name} {child.path[-1][:-1]}")
            assert found[child.path[-1]] == child.summary
        for option in (*command.options, *command.common):
            for flag in option.flags:
                assert offered(tree, f"{command.name} {flag[:-1]}")[flag] == option.help


def test_the_values_of_options_and_arguments(tree: Command) -> None:
    lines = []
    for command in tree.walk():
        for option in command.options:
            if option.kind is Kind.WORDS:
                lines.append((f"{command.name} {option.flags[-1]} ", option.words))
        for number, argument in enumerate(command.arguments):
            if argument.kind is Kind.WORDS:
                lines.append((command.name + " x" * number + " ", argument.words))
    assert len(lines) > 10
    for line, words in lines:
        assert set(offered(tree, line)) == set(words), line


def test_any_number_of_arguments(tree: Command) -> None:
    assert "pci_ep_bar.BAR4.BAR_TEST" in offered(tree, "rcdrv test BAR0 BAR1 pci_ep_bar.BAR4")
    assert offered(tree, "rcdrv report a.json ") == {"/": ""}
    assert offered(tree, "rcdrv peek 4 0 ") == {}


def test_a_command_is_found_behind_options_with_values(tree: Command) -> None:
    """`ring` is a value, an action of ntb and a command; where it stands decides."""
    for line in ("--timeout 3 -d sim:rk3588 ri", "-d ring ri", "--irq=ntb ri", "ntb ri"):
        assert list(offered(tree, f"rcdrv {line}")) == ["ring"]
    assert {"--db", "--db-bar"} <= set(offered(tree, "rcdrv --irq poll ntb ring --d"))
    assert offered(tree, "rcdrv ring --count ") == {}
    assert offered(tree, "rcdrv ring --force=") == {}


def test_an_answer_is_a_line_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--complete", "ring", "--irq", "ms"]) == 0
    assert capsys.readouterr().out == "msi\nmsix\n"
    assert main(["--complete", "ring", "--count", ""]) == 0
    assert capsys.readouterr().out == ""


def test_an_open_quote_and_a_file_behind_a_prefix(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "board.json").touch()
    lines = {
        "rcdrv ring --device 'sim:rk3588-v": "sim:rk3588-vntb",
        'rcdrv report "boa': "board.json",
        "rcdrv test --junit=boa": "board.json",
        "rcdrv ring --device vfio-user:boa": "board.json",
    }
    for line, found in zip(lines, ask(list(lines)), strict=True):
        assert [word.endswith(lines[line]) for word in found] == [True], (line, found)


def test_the_tabulator_key_runs_nothing_of_the_folder(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "rcdrv").write_text("#!/bin/sh\ntouch run\n")
    (tmp_path / "rcdrv").chmod(0o755)
    ask(["./rcdrv ri", "rcdrv ri"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("line", ["ring -- --d", "nosuch ", "setup nosuch ", "--device a\nb"])
def test_nothing_to_offer(tree: Command, line: str) -> None:
    assert offered(tree, f"rcdrv {line}") == {}


def test_files(tree: Command) -> None:
    assert offered(tree, "rcdrv test --junit x") == {"/": ""}
    assert offered(tree, "rcdrv test --junit=x") == {"/--junit=": ""}
    assert offered(tree, "rcdrv -d vfio-user:x") == {"/vfio-user:": ""}
    assert offered(tree, "rcdrv --device=sim:./x") == {"/--device=sim:": ""}
    assert set(offered(tree, "rcdrv sim ")) == {"/", *preset_names()}


def test_the_shells_show_it(ask: Ask) -> None:
    """bash puts its answer behind the colon or the equals sign."""
    (command, nested, presets, faults, value, none) = ask(
        [
            "rcdrv -d ring ri",
            "rcdrv --irq poll ntb ri",
            "rcdrv --device sim:",
            "rcdrv -d sim:rk3588,fault=irq-l",
            "rcdrv ring --irq=ms",
            "rcdrv ring --count ",
        ]
    )
    assert command == nested == ["ring"]
    assert {name.removeprefix("sim:") for name in presets} == set(preset_names())
    assert [answer.rpartition("=")[2] for answer in faults] == ["irq-lost"]
    assert {answer.rpartition("=")[2] for answer in value} == {"msi", "msix"}
    assert none == []


STARTS = {
    "bash": (["--norc", "--noprofile", "-i"], "PS1=; . {script}"),
    "zsh": (["-f", "-i"], "PS1=; fpath=({folder} $fpath); autoload -U compinit; compinit -D -u"),
}


@pytest.mark.usefixtures("pseudo_terminals")
@pytest.mark.parametrize("shell", STARTS)
def test_the_tabulator_key(scripts: dict[str, Path], shell: str, tmp_path: Path) -> None:
    """In an interactive shell, on a terminal. The line is then run by an rcdrv that shows it."""
    program = needed(shell)
    options, setup = STARTS[shell]
    script = scripts[shell]
    typed = {
        "rcdrv doc\t": "doctor",
        "rcdrv ring --cyc\t": "ring --cycles",
        "rcdrv -d sim:tegra\t": "-d sim:tegra194",
        "rcdrv -d sim:rk3588 ntb pi\t": "-d sim:rk3588 ntb ping",
        "rcdrv -d sim:rk3588,fault=irq-w\t": "-d sim:rk3588,fault=irq-wrong-vector",
        "rcdrv ntb link wa\t": "ntb link watch",
        "rcdrv ring --irq po\t": "ring --irq poll",
        # Names that somebody else chose, in a folder that everybody may write to: quoted.
        "rcdrv -d vfio-user:x\t": "-d vfio-user:x$(touch run)",
        "rcdrv -d vfio-user:./y\t": "-d vfio-user:./y;touch run;",
        "rcdrv -d vfio-user:z\ts\t": "-d vfio-user:z`touch run`/s",
        "rcdrv -d sim:./x\t": "-d sim:./x$(touch run)",
        "rcdrv sim x\t": "sim x$(touch run)",
        "rcdrv report x\t": "report x$(touch run)",
    }
    for name in ("x$(touch run)", "y;touch run;", "z`touch run`/s"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    lines = [
        setup.format(script=script, folder=script.parent),
        'rcdrv() { echo "<$*>"; }',
        *typed,
        "exit",
    ]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(program, [program, *options], {"PATH": PATH, "TERM": "dumb"})
    shown = ""
    try:
        for line in lines:
            os.write(terminal, f"{line}\n".encode())
        shown = everything(terminal)
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    answers = re.findall(r"^<(.*?) ?>", shown, re.MULTILINE)
    assert answers == list(typed.values()), shown
    assert not (tmp_path / "run").exists()


def everything(terminal: int) -> str:
    """What is written to a terminal until its last user leaves."""
    deadline = time.monotonic() + LIMIT
    shown = b""
    while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # EIO: nobody has it open any more
            break
        if not piece:
            break
        shown += piece
    return shown.decode(errors="replace").replace("\r", "")
