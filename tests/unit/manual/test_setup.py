"""``rcdrv setup``: what it prints is what it writes, where the systems look for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rcdrv.cli import main, setup
from rcdrv.manual import COMPLETIONS, man
from rcdrv.manual.grammar import Command

RULE = Path(__file__).parents[3] / "udev" / setup.RULE


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(setup, "RULES_FOLDER", tmp_path / "rules.d")
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("part", [["udev"], ["man"], ["completion", "bash"]])
def test_print_changes_nothing(part: list[str], home: Path) -> None:
    assert main(["setup", *part, "--print"]) == 0
    assert files(home) == []


def test_the_rule_is_the_one_of_the_source_tree(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["setup", "udev", "--print"]) == 0
    assert capsys.readouterr().out == RULE.read_text()
    assert main(["setup", "udev"]) == 0
    assert (home / "rules.d" / setup.RULE).read_text() == RULE.read_text()
    said = capsys.readouterr().out
    # What the rule's own head says has to be done, the command says too.
    head = RULE.read_text().partition("ACTION")[0]
    words = [
        re.findall(r"(?:--)?[\w-]+=\w[\w-]*|groupadd|usermod|udevadm", text)
        for text in (said, head)
    ]
    assert words[0] == words[1]
    assert "--subsystem-match=vfio" in words[0]


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("bash", ".local/share/bash-completion/completions/rcdrv"),
        ("zsh", ".local/share/zsh/site-functions/_rcdrv"),
        ("fish", ".config/fish/completions/rcdrv.fish"),
    ],
)
def test_completion_goes_where_its_shell_looks(
    shell: str, path: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["setup", "completion", shell]) == 0
    assert files(home) == [path]
    assert (home / path).read_text() == COMPLETIONS[shell][1]
    assert str(home / path) in capsys.readouterr().out


def test_the_manual_pages(home: Path, tree: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "setup", "man"]) == 0
    written = [Path(path) for path in json.loads(capsys.readouterr().out)["written"]]
    pages = {path.name: path.read_text() for path in written}
    assert pages == man.pages(tree)
    assert {path.parent for path in written} == {home / ".local/share/man/man1"}


def test_one_page(capsys: pytest.CaptureFixture[str], tree: Command) -> None:
    assert main(["setup", "man", "ring", "--print"]) == 0
    assert capsys.readouterr().out == man.pages(tree)["rcdrv-ring.1"]


def test_no_such_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["setup", "man", "rings"]) == 2
    assert "there is no command 'rings'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / ".config").write_text("in the way")
    assert main(["setup", "completion", "fish"]) == 3
    said = capsys.readouterr().err
    assert "fish/completions" in said
    assert files(home) == [".config"]
