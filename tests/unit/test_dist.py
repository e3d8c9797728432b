"""What is handed out: one version, said once, and a package that works in an empty environment."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import rcdrv
from tools import dist_check

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_it_installs_and_works_on_the_oldest_and_the_newest_python() -> None:
    """See tools/dist_check.py. It may use the package registry, as setting up these tests did."""
    dist_check.check([str(python) for python in dist_check.oldest_and_newest()])


def test_the_check_finds_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    # An environment in name only: what it imports is installed elsewhere, or nowhere.
    with pytest.raises(dist_check.CheckFailed, match=r"another rcdrv is used|No module named"):
        dist_check.works(tmp_path, tmp_path)


def test_a_command_that_fails_is_shown_with_what_it_said() -> None:
    with pytest.raises(dist_check.CheckFailed, match=r"(?s): 3\nworse"):
        dist_check.run([sys.executable, "-c", "print('worse'); raise SystemExit(3)"])


def test_the_oldest_python_is_the_one_that_is_asked_for() -> None:
    requires = re.search(
        r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text()
    )
    assert requires is not None
    assert tuple(map(int, requires.groups())) == dist_check.OLDEST
    oldest, *_ = dist_check.oldest_and_newest()
    assert dist_check.version_of(oldest) >= dist_check.OLDEST


def test_the_version_is_said_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:\.dev\d+|rc\d+)?", rcdrv.__version__)
    sources = [*(ROOT / "rcdrv").rglob("*.py"), ROOT / "pyproject.toml", ROOT / "docs/conf.py"]
    said = [path for path in sources if f'"{rcdrv.__version__}"' in path.read_text()]
    assert said == [ROOT / "rcdrv/__init__.py"]


def test_the_changelog_begins_with_what_is_to_come_or_this_version() -> None:
    sections = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [section for section in sections if section != "Unreleased"]
    assert sections[0] in ("Unreleased", rcdrv.__version__)
    assert not released or released[0] == rcdrv.__version__
