"""The access log: complete, in order, and machine-readable."""

from __future__ import annotations

from rcdrv.sim.epf_test.registers import SimCommand, SimRegister
from rcdrv.sim.layout import load_layout

from .host import Host


def test_every_access_is_there_with_its_width() -> None:
    host = Host("rk3588")
    assert not any(region.areas for region in host.endpoint.regions()), "a log traps everything"
    before = len(host.log_lines)
    host.write(1, 0x1002, 0xBEEF, 2)
    host.read(1, 0x1000, 8)
    host.endpoint.write(1, 0, bytes(range(12)))
    lines = host.log_lines[before:]
    assert [line.pop("t") for line in lines] == [int(host.now * 1e9)] * 3
    assert lines == [
        {"op": "write", "region": "BAR1", "offset": 0x1002, "size": 2, "value": 0xBEEF},
        {"op": "read", "region": "BAR1", "offset": 0x1000, "size": 8, "value": 0xBEEF_0000},
        {"op": "write", "region": "BAR1", "offset": 0, "size": 12, "data": bytes(range(12)).hex()},
    ]


def test_a_ring_is_one_write_and_what_follows_from_it() -> None:
    host = Host("rk3588")
    host.command(SimCommand.ENABLE_DOORBELL)
    before = len(host.log_lines)
    host.write(4, 0xA0, 0)
    lines = host.log_lines[before:]
    assert [line.get("op") or line["event"] for line in lines] == ["write", "doorbell", "interrupt"]
    assert (lines[0]["region"], lines[0]["offset"], lines[0]["size"]) == ("BAR4", 0xA0, 4)


def test_sparse_when_told_so() -> None:
    host = Host("rk3588", trap="sparse")
    assert any(region.areas for region in host.endpoint.regions())


def test_what_was_not_answered_says_why() -> None:
    host = Host("am654")
    host.command(SimCommand.WRITE, flags=1)
    host.set(SimRegister.IRQ_TYPE, 9)
    host.set(SimRegister.FLAGS, 0)
    host.set(SimRegister.COMMAND, 1)
    host.advance(0.05)
    reasons = [entry["reason"] for entry in host.events("swallowed")]
    assert reasons == ["USE_DMA without a DMA channel", "IRQ_TYPE 0x9"]
    assert load_layout("am654").hz == 1000
