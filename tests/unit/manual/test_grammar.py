"""The command tree says what the parser says, and can be made where rcdrv's packages are not."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from rcdrv.cli import COMMANDS, build_parser
from rcdrv.manual.grammar import Command, Kind


def find(tree: Command, *path: str) -> Command:
    return next(one for one in tree.walk() if one.path[1:] == path)


def test_every_command_is_there(tree: Command) -> None:
    assert {child.path[1]: child.summary for child in tree.children} == COMMANDS


def test_the_options_are_those_of_help(
    tree: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # a usage of one line
    parser = build_parser(list(COMMANDS))
    for command in tree.walk():
        with pytest.raises(SystemExit):
            parser.parse_args([*command.path[1:], "--help"])
        listed = set()
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("  -"):
                flags = line.strip().split("  ")[0]
                listed |= set(re.findall(r"(?<!\S)--?[A-Za-z][\w-]*", flags))
        options = (*command.options, *command.common)
        assert listed == {flag for option in options for flag in option.flags}, command.name


def test_the_same_letter_can_mean_something_else(tree: Command) -> None:
    dma = next(one for one in find(tree, "pcitest").options if "-d" in one.flags)
    device = next(one for one in tree.common if "-d" in one.flags)
    assert (dma.help, dma.metavar) == ("use DMA", "")
    assert (device.flags[-1], device.kind) == ("--device", Kind.ADDRESS)


def test_a_usage_tells_what_may_be_left_out(tree: Command) -> None:
    assert find(tree, "ntb", "ring").synopsis[:3] == ("rcdrv ntb ring", "--db N", "[--count N]")
    assert find(tree, "peek").synopsis[-2:] == ("BAR", "OFFSET")
    assert find(tree, "test").synopsis[-1] == "[NAME...]"


def test_what_all_actions_take_is_told_once(tree: Command) -> None:
    ntb = find(tree, "ntb")
    flags = {one.flags[0] for one in ntb.shared}
    assert flags == {"--ctrl-bar", "--db-bar", "--spad-bar", "--mw-bar"}
    for child in ntb.children:
        assert {*child.without(ntb.shared).parameters, *ntb.shared} == {*child.parameters}
    assert find(tree, "fuzz").shared == ()


def test_it_takes_the_standard_library_alone() -> None:
    """The build runs it in an environment that has only the build's own packages."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from rcdrv.cli import whole_parser\n"
        "from rcdrv.manual import data_files\n"
        "from rcdrv.manual.grammar import command_tree\n"
        "data_files(command_tree(whole_parser()))\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(loaded - set(sys.stdlib_module_names)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["rcdrv"]
