"""The fuzzer's saved layouts through the kernel's VFIO: the same verdicts as in the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdrv.fuzz.trial import run_layout
from rcdrv.sim.layout import load_layout
from tests.lab.conftest import booted
from tests.unit.fuzz.test_planted_bugs import lost_interrupt_passes
from tools.lab.guest import Guest
from tools.lab.replay import files, refused, replay_one, specs

CORPUS = {path.stem: path for path in (Path(__file__).parents[1] / "fuzz_corpus").glob("*.toml")}

# What cannot be presented in this guest, and the beginning of the reason.
NOT_PRESENTABLE = {
    "capabilities-loop": "QEMU does not start with it",
    "no-room-for-a-bar": "the firmware: PCI: out of 32bit address space",
    "offset-cut-off": "the firmware: PCI: out of 32bit address space",
}
PRESENTABLE = sorted(set(CORPUS) - set(NOT_PRESENTABLE))

# lost_interrupt_passes(), for the interpreter in the guest.
PLANT = b"""
from rcdrv.epf_test.driver import EpfTest

wait = EpfTest.wait_answer


def careless(self, *arguments):
    answer = wait(self, *arguments)
    answer.irq_lost = False
    return answer


EpfTest.wait_answer = careless
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """With all of the corpus that can be presented."""
    paths = [CORPUS[name] for name in PRESENTABLE]
    with booted(
        "x86_64", endpoints=specs(paths), files=files(paths), log_accesses=False
    ) as booted_guest:
        yield booted_guest


def verdicts(outcomes: dict[str, str]) -> dict[str, str]:
    return {case: outcome.split()[0] for case, outcome in outcomes.items()}


@pytest.mark.parametrize("name", PRESENTABLE)
def test_saved_layouts_come_to_the_same_verdicts(guest: Guest, name: str) -> None:
    there = replay_one(guest, CORPUS[name])
    here = run_layout(load_layout(str(CORPUS[name])))
    assert there.presented, there.reason
    assert not there.findings
    assert not here.findings
    assert verdicts(there.outcomes) == verdicts(here.outcomes)
    if name != "registers-behind-stuck-command":  # when it is noticed depends on the tick
        assert there.outcomes == here.outcomes


@pytest.mark.parametrize("name", NOT_PRESENTABLE)
def test_what_cannot_be_presented_is_refused_with_a_reason(name: str) -> None:
    assert refused(CORPUS[name]).startswith(NOT_PRESENTABLE[name])
    assert refused(CORPUS["copy-undoes-bad-data"]) == ""


def test_a_finding_is_the_same_finding_there(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bug planted in the driver, in the guest's as in this one."""
    path = CORPUS["subrange-irq-lost"]
    guest.put("/plant/sitecustomize.py", PLANT)
    there = replay_one(guest, path, {"PYTHONPATH": "/plant:/opt/rcdrv"})
    lost_interrupt_passes(monkeypatch)
    here = run_layout(load_layout(str(path)))
    assert [found.partition(" (")[0] for found in there.findings] == [
        f"{found.kind}: {found.message}".partition(" (")[0] for found in here.findings
    ]
    assert len(there.findings) > 1
