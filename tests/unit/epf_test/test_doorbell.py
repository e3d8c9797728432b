"""The doorbell, where a caller says what it is."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.block import stale_doorbell
from rcdrv.epf_test.doorbell import Doorbell, Location
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Command
from rcdrv.epf_test.ring import ring_blind
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.mmio import MappedWindow
from rcdrv.sim.epf_test.function import SimEpfTest
from rcdrv.verdict import NotPassed, Reason
from tests.unit.epf_test.virtual import endpoint


@pytest.mark.parametrize("data", [-1, 1 << 32])
def test_data_that_does_not_fit_is_refused_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, data: int
) -> None:
    where = Location(2, 0x40, data)
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        # A mapped one, whose registers have words of their own for it.
        window = MappedWindow(mmap.mmap(-1, mmap.PAGESIZE))
        monkeypatch.setitem(function._windows, 2, window)
        with pytest.raises(UsageError, match="32 bits"):
            next(ring_blind(function, where))
        driver = EpfTest(function)
        sent: list[Command] = []
        monkeypatch.setattr(driver, "command", lambda command, *_more, **_: sent.append(command))
        with pytest.raises(UsageError, match="32 bits"), Doorbell(driver, override=where):
            pass
        assert not sent
        assert window.read32(0x40) == 0
        window.close()


@pytest.mark.parametrize(
    ("address", "size", "named"),
    [(0x1_FFFF_F0A0, 8 << 30, True), (0xFFFF_F0A0, 4 << 30, False)],
)
def test_an_offset_that_is_cut_off_is_named(
    tmp_path: Path, address: int, size: int, named: bool
) -> None:
    """cpu_to_le32(offset) in pci_epf_test_enable_doorbell()"""
    path = tmp_path / "large.toml"
    path.write_text(
        f"[bar0]\n[bar2]\nsize = {size}\nwide = true\n"
        f'[doorbell]\nbackend = "embedded"\naddress = {address}\n'
    )
    spec = str(path) if named else f"{path},fault=doorbell-dead"
    with endpoint(spec) as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function, timeout=0.1)
        with Doorbell(driver) as doorbell:
            failure = doorbell.judge(doorbell.ring())
    assert failure is not None
    assert failure.reason is Reason.SILENT
    assert ("8 GiB, and DB_OFFSET only 32 bits" in failure.hint) == named


@pytest.mark.parametrize("earlier", ["none", "unknown", "known"])
def test_an_unanswered_enable_leaves_no_doorbell_that_db_bar_names(
    monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    """One that is not named is left: DISABLE would be a null pointer in free_irq()."""
    with endpoint("generic") as device:
        if earlier != "none":
            with Function(device.attach(), clock=device.clock) as function:
                EpfTest(function).command(Command.ENABLE_DOORBELL)
        answers = SimEpfTest._swallows
        monkeypatch.setattr(
            SimEpfTest,
            "_swallows",
            lambda self, command, irq: (
                "lost" if command == Command.ENABLE_DOORBELL else answers(self, command, irq)
            ),
        )
        with Function(device.attach(), clock=device.clock) as function:
            driver = EpfTest(function, timeout=0.1)
            if earlier == "known":
                assert stale_doorbell(driver) is not None
            doorbell = Doorbell(driver)
            with pytest.raises(NotPassed) as failure, doorbell:
                pass
            assert failure.value.reason is Reason.SILENT
            assert doorbell.left_enabled == (earlier == "none")
            assert not device.endpoint.doorbell_enabled


def test_a_late_interrupt_is_awaited_until_one_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's kernel endpoint at a load of 25: up to 1 s between STATUS and the MSI."""
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function, irq=IrqChoice.MSI, timeout=5)
        with Doorbell(driver) as doorbell:
            take = driver._next_interrupts
            late, held = 0.9, list[tuple[float, dict[int, int]]]()

            def hold(seconds: float, looks: int) -> dict[int, int]:
                if vectors := take(seconds, looks):
                    held.append((now(function) + late, vectors))
                return held.pop()[1] if held and now(function) > held[0][0] else {}

            monkeypatch.setattr(driver, "_next_interrupts", hold)
            assert doorbell.judge(doorbell.ring()) is None

            late, took = 100.0, []
            for _ in range(2):
                before = now(function)
                failure = doorbell.judge(doorbell.ring())
                assert failure is not None
                assert failure.reason is Reason.IRQ_LOST
                took.append(now(function) - before)
                held.clear()
            assert took[0] > 2.0
            assert took[1] < 0.4
            monkeypatch.undo()


def now(function: Function) -> float:
    return function.clock.now_ns() / 1e9
