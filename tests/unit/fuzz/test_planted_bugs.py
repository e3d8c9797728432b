"""Bugs planted one at a time: the campaign finds each, and says with the least layout why."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from rcdrv import pci
from rcdrv.epf_test import bars
from rcdrv.epf_test.answer import Answer
from rcdrv.epf_test.doorbell import Doorbell, Location
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Command, Flags, Reg
from rcdrv.function import Function
from rcdrv.fuzz.campaign import Plan, run_block, try_table
from rcdrv.fuzz.finding import Finding, Table, shrink
from rcdrv.sim.controller import SimController
from rcdrv.sim.epf_test import function as sim_epf_test

Patch = pytest.MonkeyPatch

MOST_SECONDS = 60.0


def no_end_check(patch: Patch) -> None:
    check = Doorbell._check

    def careless(self: Doorbell, said: Location) -> None:
        check(self, Location(said.bar, said.offset % 4, said.data))

    patch.setattr(Doorbell, "_check", careless)


def no_alignment_check(patch: Patch) -> None:
    check = Doorbell._check

    def careless(self: Doorbell, said: Location) -> None:
        check(self, Location(said.bar, said.offset // 4 * 4, said.data))

    patch.setattr(Doorbell, "_check", careless)


def pattern_over_doorbell(patch: Patch) -> None:
    patch.setattr(bars, "stale_doorbell", lambda _driver: None)


def wide_bar_is_two(patch: Patch) -> None:
    read_bars = pci.read_bars

    def twice(config: pci.ConfigSpace, sizes: Any) -> tuple[pci.Bar | None, ...]:
        found = list(read_bars(config, sizes))
        for index, bar in enumerate(found):
            if bar is not None and bar.is_64bit and bar.index == index:
                found[index + 1] = bar
        return tuple(found)

    patch.setattr(pci, "read_bars", twice)


def halves_not_swapped(patch: Patch) -> None:
    patch.setattr(sim_epf_test, "SWAPPED", (0, 1))


def stale_flags(patch: Patch) -> None:
    def careless(self: EpfTest, _command: Command, flags: Flags, vector: int) -> None:
        if flags:
            self.write(Reg.FLAGS, flags)
        self.request_irq(vector)

    patch.setattr(EpfTest, "_write_request", careless)


def doorbell_left_on_failure(patch: Patch) -> None:
    leave = Doorbell._leave

    def careless(self: Doorbell, failing: bool) -> None:
        if not failing:
            leave(self, failing)

    patch.setattr(Doorbell, "_leave", careless)


def command_not_restored(patch: Patch) -> None:
    patch.setattr(Function, "_restore_command", lambda _self, _command: None)


def memory_stays_hidden(patch: Patch) -> None:
    show = SimController._show

    def forgetful(self: SimController, bar: int, order: Any, shown: Any) -> None:
        if shown is not None or bar not in self._shown:
            show(self, bar, order, shown)

    patch.setattr(SimController, "_show", forgetful)


def lost_interrupt_passes(patch: Patch) -> None:
    wait = EpfTest.wait_answer

    def careless(self: EpfTest, *arguments: Any) -> Answer:
        answer = wait(self, *arguments)
        answer.irq_lost = False
        return answer

    patch.setattr(EpfTest, "wait_answer", careless)


def contradiction_is_success(patch: Patch) -> None:
    finish = EpfTest._finish

    def careless(self: EpfTest, command: Command, answer: Answer) -> Answer:
        answer = finish(self, command, answer)
        answer.contradicts = False
        return answer

    patch.setattr(EpfTest, "_finish", careless)


def capabilities_without_end(patch: Patch) -> None:
    patch.setattr(pci.ConfigSpace, "_check_link", staticmethod(lambda *_link: None))


# Each with the kind of its finding, and what may be left in the shrunk layout.
BUGS: dict[Callable[[Patch], None], tuple[str, set[str]]] = {
    # past the end by bad-offset, or by wrong-bar where that one is smaller
    no_end_check: ("verdict", {"faults", "doorbell.backend", "doorbell.address", "size"}),
    no_alignment_check: ("verdict", {"faults", "doorbell.backend"}),
    pattern_over_doorbell: ("access", {"faults", "doorbell.backend"}),
    wide_bar_is_two: ("verdict", {"wide"}),
    halves_not_swapped: ("verdict", set()),
    stale_flags: ("verdict", {"faults", "doorbell.backend"}),
    doorbell_left_on_failure: ("left", {"faults", "doorbell.backend"}),
    command_not_restored: ("left", set()),
    memory_stays_hidden: ("left", {"doorbell.backend"}),
    lost_interrupt_passes: ("verdict", {"faults", "msi", "msix", "announce_intx"}),
    capabilities_without_end: ("hang", {"faults"}),
    contradiction_is_success: ("verdict", {"faults", "size", "inbound_windows"}),
}


def find(kind: str) -> tuple[Finding, Table]:
    """The first finding of this kind."""
    begun = time.process_time()
    for number in range(100):
        for example in run_block(Plan(seed=0), number):
            for finding in example.findings:
                if finding.kind == kind:
                    return finding, example.table
        assert time.process_time() - begun < MOST_SECONDS, "not found in time"
    raise AssertionError("not found")


def keys(table: Table) -> set[str]:
    """All keys, those of BARs without the BAR's number."""
    found: set[str] = set()
    for key, value in table.items():
        if isinstance(value, dict):
            found |= {inner if key.startswith("bar") else f"{key}.{inner}" for inner in value}
        else:
            found.add(key)
    return found


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_is_found_and_shrunk(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    kind, relevant = BUGS[plant]
    plant(monkeypatch)
    finding, table = find(kind)

    def shows(candidate: Table) -> bool:
        found = try_table(candidate).findings
        return any((f.kind, f.what) == (finding.kind, finding.what) for f in found)

    small = shrink(table, shows)
    assert shows(small)
    assert keys(small) <= relevant, small
    monkeypatch.undo()
    assert try_table(small).findings == []
