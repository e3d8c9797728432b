"""Each command takes the common options that it uses, and refuses the others in both places."""

from __future__ import annotations

import pytest

from rcdrv.cli import main, whole_parser
from rcdrv.manual.grammar import Command, command_tree

VALUES = {
    "--device": ["sim:generic"],
    "--verbose": [],
    "--timeout": ["2"],
    "--reg-bar": ["0"],
    "--irq": ["poll"],
    "--vf-token": ["bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"],
}
LEAVES = [one for one in command_tree(whole_parser()).walk() if not one.children]


@pytest.mark.parametrize("command", LEAVES, ids=[one.name for one in LEAVES])
def test_what_a_command_does_not_take_it_refuses(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {flag for one in command.common for flag in one.flags}
    needed = [one.words[0] if one.words else "0" for one in command.arguments if not one.optional]
    for flag, value in VALUES.items():
        if flag in taken:
            continue
        words = [*command.path[1:], *needed]
        for line in ([flag, *value, *words], [*words, flag, *value]):
            assert main(line) == 2, line
            assert capsys.readouterr().err


def test_a_campaign_over_layouts_names_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", "layout", "--examples", "1", "--timeout", "2"]) == 2
    assert "no use for --timeout" in capsys.readouterr().err


def test_an_option_of_a_command_before_it_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "3", "ring"]) == 2
    assert "a command's own options stand behind its name" in capsys.readouterr().err


def test_a_soak_that_never_opens_prints_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--record", "never.gz", "ring", "--soak", "1s", "--device", "sim:rk3588"]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "hint: leave --soak out" in err
