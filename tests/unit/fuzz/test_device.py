"""Commands in every order on one endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from rcdrv.cli import main
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.fuzz.device import DeviceFuzzer, Software, Step
from rcdrv.sim.controller import Controller
from rcdrv.sim.layout import load_layout, preset_names
from rcdrv.sim.memory import REGISTERS, BarMemory


@pytest.fixture
def fuzz() -> Iterator[DeviceFuzzer]:
    software = Software(load_layout("imx8m"))
    fuzzer = DeviceFuzzer(software.open, renew=software.renew)
    fuzzer.learn()
    yield fuzzer
    software.close()


EPF_TEST_PRESETS = [name for name in preset_names() if load_layout(name).function == "epf_test"]


@pytest.mark.parametrize("preset", EPF_TEST_PRESETS)
def test_nothing_is_found_on_a_preset(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fuzz", "device", "--device", f"sim:{preset}", "--sequences", "1", "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sequences"] == 1
    assert document["finding"] is None


def test_memory_that_does_not_come_back(
    fuzz: DeviceFuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a doorbell hid is gone: found, and shortened to the three commands that show it."""
    show = BarMemory.show

    def forget(self: BarMemory, order: Sequence[int]) -> int | None:
        before = self.order
        stray = show(self, order)
        if before == REGISTERS:
            self.fill(0, self.size, 0)
        return stray

    monkeypatch.setattr(BarMemory, "show", forget)
    found = fuzz.run(0, sequences=5).found
    assert found is not None
    assert len(found.steps) == 3
    poke, between, peek = found.steps
    assert (poke.words[0], peek.words[0]) == ("poke", "peek")
    assert between.words[0] in ("ring", "test")
    script = found.script("0000:01:00.0").splitlines()
    assert script[1:] == [
        "export RCDRV_DEVICE=0000:01:00.0",
        *(f"rcdrv {step}" for step in found.steps),
    ]


def test_doorbell_left_enabled_spoils_a_later_command(
    fuzz: DeviceFuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doorbell, "_leave", lambda _self, failing: None)
    monkeypatch.setattr("rcdrv.epf_test.doorbell.stale_doorbell", lambda _driver: None)
    found = fuzz.run(0, sequences=5).found
    assert found is not None
    assert len(found.steps) == 2


def test_nothing_is_poked_into_an_enabled_doorbells_bar(
    fuzz: DeviceFuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doorbell, "_leave", lambda _self, failing: None)
    monkeypatch.setattr(Controller, "_stray", lambda *_where: pytest.fail("a stray write"))
    steps = [Step(("ring",)), Step(("poke", "2", "0x0", "0x1", "--width", "32"))]
    assert fuzz.try_steps(steps) is None
