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
from tools.kernel_fuzz import Poke, Tally, Warnings, draw_test, draw_vntb, name_of


def test_one_crash_has_one_name() -> None:
    line = "[   {}] BUG: unable to handle page fault for address: {}\n"
    rip = "[    1.0] RIP: 0010:pci_epc_set_bar+0x2a/0x230 [pci_endpoint]\n"
    names = {
        name_of(line.format("12.500000", "ffff889c06c8d310") + rip),
        name_of(line.format(" 3.000000", "ffff886406ca2b38") + rip.replace("2a", "3b")),
    }
    assert names == {"BUG: unable to handle page fault for (pci_epc_set_bar)"}
    assert name_of("[ 1.0] UBSAN: a.c:8:2\n" + rip) == "UBSAN: a.c:8:2"
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


_WARN = """\
[   12.1] ------------[ cut here ]------------
[   12.1] a queue waits for another
[   12.1] WARNING: kernel/{}.c:3 at check_{}+0x1/0x2, CPU#0: kworker
[   12.1] Call Trace:
[   12.1] ---[ end trace 0000000000000000 ]---
"""


def test_a_warning_is_told_once_and_whole() -> None:
    console = _WARN.format("old", "old")
    fake = SimpleNamespace(console_since=lambda mark: (console[mark:], len(console)))
    warnings = Warnings(cast(Any, SimpleNamespace(guest=fake)))
    assert warnings.new() == {}
    console += _WARN.format("a", "a") + _WARN.format("b", "b").partition("[   12.1] Call")[0]
    assert warnings.new() == {}
    console += _WARN.format("b", "b").partition("CPU#0: kworker\n")[2]
    new = warnings.new()
    assert list(new) == ["WARNING: kernel/a.c:3 at check_a", "WARNING: kernel/b.c:3 at check_b"]
    assert all("a queue waits" in one and "Call Trace" in one for one in new.values())
    assert warnings.new() == {}


class Fragile:
    """A kernel that crashes of a 7 that comes after a 5, and warns of a 9 after a 5."""

    def __init__(self, spec: str) -> None:
        self.console = ""
        self.guest = self
        self.spec = spec
        self.layout = SimpleNamespace(function="epf_vntb")
        self.socket = "none"
        self.crashed = ""
        self.written: list[int] = []

    def console_since(self, mark: int) -> tuple[str, int]:
        return self.console[mark:], len(self.console)

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
        if value == 9 and 5 in self.written:
            self.console += _WARN.format("a", "a")
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
        for value in (1, 5, 9, 1, 7, 1):
            yield Poke(0, 8, value)

    monkeypatch.setattr(kernel_fuzz, "booted", boot)
    monkeypatch.setattr(kernel_fuzz, "open_function", lambda _: contextlib.nullcontext(booted[-1]))
    monkeypatch.setattr(kernel_fuzz, "draw_vntb", draw)
    monkeypatch.setattr(kernel_fuzz, "SETTLE", 0.0)
    tally = Tally(debug=True)
    report = kernel_fuzz.poke_for(cast(Any, boot("a", debug=True)), random.Random(0), 60.0, tally)
    assert report == "[ 1.0] Oops: 0000"
    # Of the last 1, 2 and 4 pokes before each, the last two and the last four do it.
    assert len(booted) == 1 + 2 + 3
    (found,) = tally.found["Oops: 0000"]
    assert found.script.splitlines() == [f"rcdrv poke 0 0x8 {n:#x}" for n in (5, 9, 1, 7)]
    (found,) = tally.found["WARNING: kernel/a.c:3 at check_a"]
    assert found.script.splitlines() == [f"rcdrv poke 0 0x8 {n:#x}" for n in (5, 9)]
    assert "a: Oops: 0000" in capsys.readouterr().out
    assert "5 pokes; findings: 2" in tally.summary()
