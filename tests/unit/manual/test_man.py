"""The manual pages: complete, and what their readers' programs take."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import rcdrv
from rcdrv import errors
from rcdrv.manual import man
from rcdrv.manual.grammar import Command
from rcdrv.manual.topics import ENVIRONMENT, EXIT_STATUSES
from rcdrv.verdict import EXIT_STATUS
from tests.programs import needed

SOURCE = Path(rcdrv.__file__).parent


@pytest.fixture(scope="module")
def folder(tree: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man1")
    for name, text in man.pages(tree).items():
        (folder / name).write_text(text)
    return folder


def plain(folder: Path, page: str) -> str:
    """A page as a terminal shows it, without overstriking."""
    program = needed("mandoc")
    command = [program, "-T", "ascii", "-O", "width=400", str(folder / page)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.sub(r".\x08", "", shown)


def test_each_command_has_a_page(tree: Command, folder: Path) -> None:
    names = {f"rcdrv-{child.path[1]}.1" for child in tree.children}
    assert {path.name for path in folder.iterdir()} == names | {"rcdrv.1"}


def test_mandoc_has_nothing_to_complain_of_but_the_date(folder: Path) -> None:
    program = needed("mandoc")
    done = subprocess.run(
        [program, "-T", "lint", "-W", "warning", *map(str, folder.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert not said


def test_groff_has_nothing_to_complain_of(folder: Path) -> None:
    pages = [str(page) for page in sorted(folder.iterdir())]
    done = subprocess.run(
        [needed("man"), "-l", "--warnings", "-E", "UTF-8", "-P", "cat", *pages],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    assert done.stdout.count("SYNOPSIS") == len(pages)


def test_every_parameter_is_in_its_page(tree: Command, folder: Path) -> None:
    for child in tree.children:
        shown = plain(folder, f"rcdrv-{child.path[1]}.1")
        for command in child.walk():
            for one in command.parameters:
                term = ", ".join(one.flags) or one.value()
                assert term in shown, (command.name, term)
                assert one.help in shown, (command.name, one.help)


def test_every_environment_variable_of_the_source_is_documented() -> None:
    used = {
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r"environ[^\n]*\"(RCDRV_\w+)\"", path.read_text())
    }
    assert used
    assert used == {name for name, _ in ENVIRONMENT}


def test_every_exit_status_is_documented() -> None:
    raised = {
        thing.exit_status
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, errors.RcdrvError)
    }
    assert raised | set(EXIT_STATUS.values()) == set(EXIT_STATUSES) - {70}
