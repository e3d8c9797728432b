"""The access log: complete, in order, and machine-readable."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.epf_test.registers import SimCommand, SimRegister
from rcdrv.sim.layout import load_layout
from tests.access_log import count, entries

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


def test_each_line_is_one_write() -> None:
    """So that only the kernel, during that write, may show a part of a line."""
    written: list[bytes] = []

    class Raw(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            written.append(bytes(data))
            return len(data)

    log = AccessLog(io.TextIOWrapper(io.BufferedWriter(Raw()), encoding="utf-8"))
    log.event("reset")
    log.access("read", 0, 0, bytes(100_000))
    log.event("reset")
    assert [json.loads(line).get("event") for line in written] == ["reset", None, "reset"]
    assert all(line.endswith(b"\n") for line in written)


def test_the_part_of_a_line_is_no_entry_yet(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"event": 1}\n{"eve')
    assert (entries(path), count(path)) == ([{"event": 1}], 1)
    path.write_text('{"event": 1}\n{"event": 2}\n')
    assert (entries(path, 1), count(path)) == ([{"event": 2}], 2)
