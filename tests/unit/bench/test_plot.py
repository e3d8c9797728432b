"""Pictures show every series with its numbers; without matplotlib the error names the extra."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rcdrv.bench import plot
from rcdrv.errors import HostError, UsageError
from tests.unit.bench.test_result import made

NOW = {"interrupt": [90_000, 100_000, 120_000, 2_000_000], "spin": [70_000, 80_000]}
BEFORE = {"interrupt": [200_000], "poll": [1]}


def test_an_svg_names_what_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "ring.svg"
    plot.draw(made(NOW), path, made(BEFORE))
    text = path.read_text()
    for word in ("Doorbell to acknowledgement, sim:generic", "interrupt", "spin", "p50 100 µs"):
        assert word in text
    assert "\N{MULTIPLICATION SIGN}0.50" in text  # of the median before
    assert "before" in text


def test_an_svg_of_one_run_speaks_of_no_other(tmp_path: Path) -> None:
    path = tmp_path / "ring.svg"
    plot.draw(made(NOW), path)
    assert "before" not in path.read_text()


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_the_name_decides_the_format(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"ring{suffix}"
    plot.check(path)
    plot.draw(made({"write": [0]}), path)  # a clock too coarse for it is no reason to fail
    assert path.read_bytes().startswith(magic)


@pytest.mark.parametrize("name", ["ring", "ring.txt", "no-such-folder/ring.svg"])
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="`path`"):
        plot.check(tmp_path / name)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(HostError) as caught:
        plot.check(tmp_path / "ring.svg")
    assert caught.value.hint == "pip install 'rcdrv[plot]'"


def test_a_picture_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    folder = tmp_path / "taken.svg"
    folder.mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        plot.draw(made(NOW), folder)
