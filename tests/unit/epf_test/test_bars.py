"""The BAR tests against endpoints that misbehave."""

from __future__ import annotations

import struct

import pytest

from rcdrv.epf_test.bars import offset_pattern
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Command
from rcdrv.epf_test.suite import cases, select
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.sim import epf_test as sim_epf_test
from rcdrv.sim.access_log import AccessLog
from rcdrv.verdict import NotPassed, Reason
from tests.unit.epf_test.virtual import endpoint, run


class Events(AccessLog):
    """Keeps the endpoint's events."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, object]]] = []

    def event(self, event: str, **details: object) -> None:
        self.seen.append((event, details))


@pytest.mark.parametrize("fault", ["irq-lost", "irq-lost=commands", "irq-wrong-vector"])
def test_subrange_without_interrupts_fails_and_is_cleared(fault: str) -> None:
    events = Events()
    with endpoint(f"generic,fault={fault}", events) as device:
        results = run(device, "pci_ep_bar.BAR2.BAR_SUBRANGE_TEST")
    assert list(results.values()) == [("fail", "irq-lost")]
    shown = [details["shows"] for event, details in events.seen if event == "inbound"]
    assert shown == ["parts", "memory"]


@pytest.mark.parametrize("fault", ["disable-silent", "disable-fail", "stuck-command"])
def test_no_pattern_over_a_doorbell_that_cannot_be_disabled(fault: str) -> None:
    """Neither by a later case nor by a later run."""
    events = Events()
    with endpoint(f"imx8m,fault={fault}", events) as device:
        run(device, "DOORBELL_TEST")
        results = run(device, "BAR2", "CONSECUTIVE_BAR_TEST")
    assert set(results.values()) == {("fail", "disable-failed")}
    assert not [details for event, details in events.seen if event == "stray"]


def test_a_doorbell_left_enabled_is_freed_before_the_patterns() -> None:
    events = Events()
    with endpoint("imx8m", events) as device:
        device.attach()
        with Function(device, clock=device.clock) as function:
            EpfTest(function).command(Command.ENABLE_DOORBELL)
        results = run(device, "BAR2", "CONSECUTIVE_BAR_TEST")
    assert set(results.values()) == {("pass", None)}
    assert not [details for event, details in events.seen if event == "stray"]


def test_registers_of_all_ones_are_called_that() -> None:
    """And not BARs that are reserved, as CAPS of all ones would have it."""
    with endpoint("generic,fault=all-ones") as device:
        results = run(device)
    assert len(results) == 23
    assert set(results.values()) == {("fail", "all-ones")}


def subrange_message(device: Direct) -> str:
    (case,) = select(["pci_ep_bar.BAR2.BAR_SUBRANGE_TEST"], (), cases())
    with Function(device.attach(), clock=device.clock) as function, pytest.raises(NotPassed) as e:
        case.body(EpfTest(function), lambda _done, _total: None)
    assert e.value.reason is Reason.DATA_MISMATCH
    return e.value.message


def test_halves_that_were_not_swapped_are_told_from_aliases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with endpoint("generic,fault=subrange-straight") as device:
        message = subrange_message(device)
    assert "not swapped" in message
    assert "aliased" not in message
    # Both halves show the second half of the memory.
    monkeypatch.setattr(sim_epf_test, "SWAPPED", (1, 1))
    with endpoint("generic") as device:
        assert "aliased" in subrange_message(device)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 4), (0xFFFC, 8), (0x12340, 0x20004), (0xFFFFF8, 16), (0x1FFFFFC, 0x10008), (8, 0)],
)
def test_the_words_of_the_pattern_are_their_bar_and_offset(offset: int, length: int) -> None:
    words = [0xA3 << 24 | at & 0xFFFFFF for at in range(offset, offset + length, 4)]
    assert offset_pattern(3, offset, length) == struct.pack(f"<{len(words)}I", *words)
