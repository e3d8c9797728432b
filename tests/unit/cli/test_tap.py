"""What ``rcdrv ntb tap`` says at its end."""

from __future__ import annotations

from rcdrv.cli.tap import _document, _text
from rcdrv.epf_vntb.pump import Counts, Statistics


def test_numbers_are_read_as_they_are_said() -> None:
    statistics = Statistics()
    statistics.queues[0] = Counts(
        sent_packets=1, sent_bytes=60, rings=1, doorbells=2, ring_full=2, link_ups=1
    )
    statistics.link_ups = 1
    lines = _text("ntb0", statistics).splitlines()
    assert lines[1] == "sent 1 packet, 60 bytes, with 1 doorbell; all slots were full 2 times"
    assert lines[2].startswith("received 0 packets, 0 bytes, with 2 interrupts;")
    assert lines[4].startswith("link up once;")
    assert len(lines) == 5
    statistics.answers.extend([3e-3, 0.41e-3, 1.0])
    assert _text("ntb0", statistics).splitlines()[5:] == [
        "a doorbell was answered in 3 ms, the median of the last 3"
    ]
    assert _document(statistics)["answer_seconds"] == 3e-3
    assert "all slots were full never" in _text("ntb0", Statistics())


def test_each_of_several_queues_has_its_numbers() -> None:
    statistics = Statistics(2)
    statistics.queues[0] = Counts(sent_packets=1, sent_bytes=60, link_ups=1)
    statistics.queues[1] = Counts(sent_packets=2, sent_bytes=99, too_long=3, link_ups=4)
    statistics.link_ups = 1
    lines = _text("ntb0", statistics).splitlines()
    assert lines[1].startswith("sent 3 packets, 159 bytes,")
    assert lines[4].startswith("link up once;")
    assert lines[5:] == [
        "queue 0: sent 1 packet, 60 bytes, received 0 packets, 0 bytes; full never, dropped 0,"
        " up once",
        "queue 1: sent 2 packets, 99 bytes, received 0 packets, 0 bytes; full never, dropped 3,"
        " up 4 times",
    ]
    document = _document(statistics)
    total, queues = document["counts"], document["queues"]
    assert (total["sent_bytes"], total["dropped"], total["link_ups"]) == (159, 3, 1)
    assert [one["sent_bytes"] for one in queues] == [60, 99]
    assert "queues" not in _document(Statistics(1))
