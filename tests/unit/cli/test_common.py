"""What the commands have in common."""

from __future__ import annotations

import shutil

import pytest

from rcdrv.cli import common


@pytest.mark.parametrize("columns", ["100", "1", "0", "", "-5", "wide", "8²", "²"])
def test_the_width_is_that_of_shutil(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert common._terminal_width.__wrapped__() == shutil.get_terminal_size().columns
