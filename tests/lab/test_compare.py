"""The kernel's own driver and rcdrv say the same of every preset, or differ on purpose.

They say the same of the kernel's endpoint functions as of the software endpoint. Only where the
guest is of the host's architecture: the driver is built with the host's compiler.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from rcdrv.api import case_names
from tests.unavailable import unavailable
from tools.compare import judges, render
from tools.compare.__main__ import PRESETS, outdated, problems
from tools.compare.judges import Comparison, Square
from tools.lab.debian import host_architecture
from tools.lab.errors import LabError
from tools.lab.guest import KERNEL_PREFIX

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
Compared = Callable[[str], Comparison]


SQUARED = ("rk3588", "rcar-s4")
"""Presets whose kernel's endpoint is judged too: each boots a guest of its own."""


@contextlib.contextmanager
def comparing(specs: Sequence[str]) -> Iterator[Compared]:
    """Compares on a preset, once, in one guest for all."""
    if host_architecture() != "amd64":
        pytest.skip("the kernel's driver for x86-64 can only be built on x86-64")
    try:
        guest = judges.laboratory(specs)
        guest.__enter__()
    except LabError as error:
        unavailable(f"the lab does not start: {error}")
    with contextlib.closing(guest):
        judges.prepare(guest)
        endpoints = {endpoint.spec: endpoint for endpoint in guest.endpoints}
        yield cache(lambda preset: judges.compare(guest, endpoints[preset]))


@pytest.fixture(scope="module")
def compared() -> Iterator[Compared]:
    with comparing(PRESETS) as compare:
        yield compare


@pytest.fixture(scope="module")
def compared_on_the_kernels() -> Iterator[Compared]:
    with comparing([KERNEL_PREFIX + preset for preset in SQUARED]) as compare:
        yield compare


@pytest.mark.parametrize("preset", PRESETS)
def test_the_kernels_driver_and_rcdrv_agree(compared: Compared, preset: str) -> None:
    comparison = compared(preset)
    assert len(comparison.rows) == len(case_names())
    wrong = problems([comparison], outdated([comparison]))
    assert not wrong, f"\n{wrong}"


def test_the_page_has_these_verdicts(compared: Compared) -> None:
    now = render.verdicts([compared(preset) for preset in PRESETS])
    assert now in PAGE.read_text(), f"docs/fidelity.md is outdated: run {render.COMMAND}"


@pytest.mark.parametrize("preset", SQUARED)
def test_cases_end_alike_on_the_kernels_endpoint(
    compared: Compared, compared_on_the_kernels: Compared, preset: str
) -> None:
    square = Square(compared(preset), compared_on_the_kernels(preset))
    wrong = problems([], [], [square])
    assert not wrong, f"\n{wrong}"
    now = render.columns(render.square([square]), render.SQUARE_HEADING)
    page = render.columns(PAGE.read_text(), render.SQUARE_HEADING)
    assert page[preset] == now[preset], f"docs/fidelity.md is outdated: run {render.COMMAND}"
