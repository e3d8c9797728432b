"""`rcdrv fuzz replay --device`: a saved layout on an endpoint that is there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rcdrv.fuzz.trial import run_layout
from rcdrv.sim.layout import load_layout
from tests.sim.conftest import Endpoint, rcdrv

CORPUS = Path(__file__).parents[1] / "fuzz_corpus"


@pytest.mark.parametrize("name", ["pattern-over-doorbell", "copy-undoes-bad-data"])
def test_the_same_verdicts_over_a_socket(endpoint: Callable[..., Endpoint], name: str) -> None:
    path = str(CORPUS / f"{name}.toml")
    board = endpoint(path)
    result = rcdrv("fuzz", "replay", path, "--device", board.address, "--json")
    assert (result.status, result.document["presented"]) == (0, True)
    assert result.document["findings"] == []
    assert result.document["outcomes"] == run_layout(load_layout(path)).outcomes


def test_another_layout_is_not_presented(endpoint: Callable[..., Endpoint]) -> None:
    path = str(CORPUS / "copy-undoes-bad-data.toml")
    for spec, reason in (
        ("generic", "BAR0 has"),
        ("rk3588", "is 1d87:3588, not 104c:b500"),
        (f"{path},msi=2", "2 MSI vectors are here, and not 0"),
    ):
        board = endpoint(spec)
        result = rcdrv("fuzz", "replay", path, "--device", board.address)
        assert result.status == 3
        assert "not presentable:" in result.out
        assert reason in result.out


def test_what_cannot_be_replayed_is_a_usage_error() -> None:
    path = str(CORPUS / "copy-undoes-bad-data.toml")
    assert rcdrv("fuzz", "replay", path, "--device", "sim:generic").status == 2
    assert rcdrv("fuzz", "replay", str(CORPUS), "--device", "vfio-user:/nowhere").status == 2
    lost = rcdrv("fuzz", "replay", path, "--device", "vfio-user:/nowhere")
    assert lost.status == 3
    assert "not presentable" not in lost.out
