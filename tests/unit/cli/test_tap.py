"""What ``rcdrv ntb tap`` says at its end."""

from __future__ import annotations

from rcdrv.cli.tap import _statistics
from rcdrv.epf_vntb.netdev import Counts


def test_numbers_are_read_as_they_are_said() -> None:
    counts = Counts(sent_packets=1, sent_bytes=60, rings=1, doorbells=2, ring_full=2, link_ups=1)
    lines = _statistics("ntb0", counts).splitlines()
    assert lines[1] == "sent 1 packet, 60 bytes, with 1 doorbell; all slots were full 2 times"
    assert lines[2].startswith("received 0 packets, 0 bytes, with 2 interrupts;")
    assert lines[4].startswith("link up once;")
    assert "all slots were full never" in _statistics("ntb0", Counts())
