"""The kernel fuzzer: what it draws, what it calls one crash, and what it makes short."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.sim.layout import load_layout
from tools import kernel_fuzz
from tools.kernel_fuzz import Poke, Tally, draw_test, draw_vntb, name_of


def test_one_crash_has_one_name() -> None:
    line = "[   {}] BUG: unable to handle page fault for address: {}\n"
    rip = "[    1.0] RIP: 0010:pci_epc_set_bar+0x2a/0x230 [pci_endpoint]\n"
    names = {
        name_of(line.format("12.500000", "ffff889c06c8d310") + rip),
        name_of(line.format(" 3.000000", "ffff886406ca2b38") + rip.replace("2a", "3b")),
    }
    assert names == {"BUG: unable to handle page fault for (pci_epc_set_bar)"}
    assert name_of("[ 1.0] UBSAN: shift-out-of-bounds in a.c:8:2\n") != name_of("[ 1.0] UBSAN: b\n")


@pytest.mark.parametrize(
    ("spec", "draw"), [("rcar-s4", draw_test), ("rcar-s4-vntb-polled", draw_vntb)]
)
def test_pokes_are_of_registers_commands_and_rings(spec: str, draw: Any) -> None:
    device = Direct(load_layout(spec))
    with Function(device.attach(), clock=device.clock) as function:
        drawn: list[Poke] = []
        for seed in range(8):
            drawn += islice(draw(random.Random(seed), function), 100)
    device.endpoint.close()
    assert {poke.offset for poke in drawn if poke.command} == {draw_vntb: {0}, draw_test: {4}}[draw]
    assert len({poke.value for poke in drawn if poke.command}) >= 7
    assert len({(poke.bar, poke.offset) for poke in drawn}) > 10
    assert (4 in {poke.bar for poke in drawn}) == (draw is draw_vntb)
    assert str(Poke(0, 4, 128)) == "rcdrv poke 0 0x4 0x80"


class Fragile:
    """A kernel that crashes of a 7 that comes after a 5."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.layout = SimpleNamespace(function="epf_vntb")
        self.socket = "none"
        self.crashed = ""
        self.written: list[int] = []

    def __enter__(self) -> Fragile:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def bar(self, _index: int) -> Fragile:
        return self

    def read32(self, _offset: int) -> int:
        return 0

    def write32(self, _offset: int, value: int) -> None:
        if value == 7 and 5 in self.written:
            self.crashed = "[ 1.0] Oops: 0000"
        self.written.append(value)

    def crash(self) -> str:
        report, self.crashed = self.crashed, ""
        return report


def test_what_a_crash_needs_is_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    booted: list[Fragile] = []

    def boot(spec: str, *, debug: bool) -> Fragile:
        assert debug
        booted.append(Fragile(spec))
        return booted[-1]

    def draw(*_: object) -> Iterator[Poke]:
        for value in (1, 5, 1, 7, 1):
            yield Poke(0, 8, value)

    monkeypatch.setattr(kernel_fuzz, "booted", boot)
    monkeypatch.setattr(kernel_fuzz, "open_function", lambda _: contextlib.nullcontext(booted[-1]))
    monkeypatch.setattr(kernel_fuzz, "draw_vntb", draw)
    monkeypatch.setattr(kernel_fuzz, "SETTLE", 0.0)
    tally = Tally(debug=True)
    report = kernel_fuzz.poke_for(cast(Any, boot("a", debug=True)), random.Random(0), 60.0, tally)
    assert report == "[ 1.0] Oops: 0000"
    # Of the last 1, 2 and 4 pokes before it, the last four do it.
    assert len(booted) == 4
    (found,) = tally.found["Oops: 0000"]
    assert found.script.splitlines() == [f"rcdrv poke 0 0x8 {n:#x}" for n in (1, 5, 1, 7)]
    assert "a: Oops: 0000" in capsys.readouterr().out
    assert "4 pokes; findings: 1" in tally.summary()
