"""The pump of a network interface over ntb_transport, against peers that are right and wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.netdev import NetInterface, Queue
from rcdrv.epf_vntb.pump import Statistics, next_check
from rcdrv.epf_vntb.rings import Ring
from rcdrv.errors import UsageError
from rcdrv.verdict import NotPassed

from .hostile_peer import DONE, ENTRIES, FRAME, LARGEST, LINK_DOWN, SMALLEST, Host, behave, run


class Sent(NamedTuple):
    """What the peer writes into a header, as it is or changed."""

    number: int | None
    length: int
    flags: int


WORD = st.integers(0, 0xFFFF_FFFF)
LENGTHS = st.one_of(st.integers(0, FRAME + 1), WORD)
SENT = st.builds(
    Sent,
    st.one_of(st.none(), WORD),
    LENGTHS,
    WORD.map(lambda flags: flags & ~LINK_DOWN | DONE),
)


@given(st.lists(SENT, max_size=3 * ENTRIES), st.booleans())
def test_each_frame_is_taken_or_counted_and_the_next_one_comes(
    frames: list[Sent], plain: bool
) -> None:
    host = Host.alone(plain=plain)
    following = delivered = numbers = lengths = 0
    for slot, frame in enumerate(frames):
        number = following if frame.number is None else frame.number
        host.set(slot % ENTRIES, number, frame.length, frame.flags)
        host.turn()
        if number != following:
            numbers += 1
        elif not SMALLEST <= frame.length <= LARGEST:
            lengths += 1
        else:
            delivered += 1
        following = (number + 1) % (1 << 32)
    counts = host.counts
    assert (counts.bad_number, counts.bad_length) == (numbers, lengths)
    assert counts.received_packets == len(host.interface.taken) == delivered
    behave(host)


@given(st.lists(st.one_of(st.integers(0, ENTRIES), WORD), max_size=40))
def test_a_reader_that_lies_stops_nothing_but_what_waits_for_it(readers: list[int]) -> None:
    host = Host.alone()
    for reader in readers:
        host.tell(reader)
        before, sent = host.rings.tx_index, host.counts.sent_packets
        host.interface.outgoing = [bytes(60)] * 3
        host.turn()
        room = (reader - before) % ENTRIES if reader < ENTRIES else 0
        assert host.counts.sent_packets - sent == min(3, room)
    assert host.counts.bad_index == sum(reader >= ENTRIES for reader in readers)
    behave(host)


def test_frames_that_are_too_long_without_end_do_not_hold_the_pump() -> None:
    """Cancel and the link are looked at between two calls of it."""
    host = Host.alone()
    host.tell(ENTRIES - 1)

    class Flood(list[bytes]):
        def pop(self, _index: Any = -1) -> bytes:
            return bytes(LARGEST + 1)

    host.interface.outgoing = Flood([b"never empty"])
    host.turn()
    assert 0 < host.counts.too_long < ENTRIES
    assert not host.counts.sent_packets


def test_mutations_of_everything() -> None:
    counts = run(10_000, seed=7)
    seen = (counts.bad_number, counts.bad_length, counts.bad_index, counts.too_long)
    assert all(seen), seen


def test_one_doorbell_for_the_first_frame_and_one_for_all_others_that_wait() -> None:
    host = Host.alone()
    host.interface.outgoing = [bytes([n]) * 60 for n in range(20)]
    assert host.pump.send()  # more wait
    assert (host.counts.sent_packets, host.window.rang, host.counts.rings) == (ENTRIES - 1, 2, 2)
    assert host.pump.send()
    assert host.window.rang == 2
    host.tell(3)  # the endpoint has read four, and reads on
    assert host.pump.send()
    assert (host.counts.sent_packets, host.window.rang) == (ENTRIES + 3, 3)
    assert host.window.read_block(0, 60) == bytes([4]) * 60  # the 16th


@pytest.mark.parametrize("plain", [False, True])
def test_a_frame_is_as_the_kernel_writes_it(plain: bool) -> None:
    """ntb_async_tx() and ntb_tx_copy_callback(): the header is at the end of the slot."""
    host = Host.alone(plain=plain)
    host.interface.outgoing = [b"\xaa" * 61]
    assert not host.pump.send()
    window = host.window
    assert window.read_block(0, 64) == b"\xaa" * 61 + bytes(3)
    assert [window.read32(FRAME - 12 + at) for at in (0, 4, 8)] == [0, 61, DONE]


def test_the_link_down_flag_is_obeyed_and_the_window_left_alone() -> None:
    """After ntb_transport_free() the endpoint's memory belongs to somebody else."""
    host = Host.alone()
    host.set(0, 0, 60, DONE)
    host.set(1, 1, 0, DONE | LINK_DOWN)
    host.freed = True
    with pytest.raises(AssertionError, match="touched"):
        host.window.write32(0, 0)
    assert host.pump.receive() == 1
    assert host.pump.link_down
    behave(host)


@pytest.mark.parametrize("shares", [3, 5])
def test_a_share_that_is_no_whole_words_is_refused(shares: int) -> None:
    """An endpoint may announce any number of queue pairs; the index behind the slots is a word."""
    with pytest.raises(ValueError, match="whole words"):
        Ring.of(0x100000, shares, 0x10000)


@pytest.mark.parametrize(
    ("largest", "mtu", "error", "message"),
    [
        (81, None, NotPassed, "slots for 81 bytes are too small"),
        (4, 68, NotPassed, "slots for 4 bytes are too small"),
        (82, 69, UsageError, "an MTU of 68, not 69"),
    ],
)
def test_an_mtu_that_no_interface_has_is_not_set(
    largest: int, mtu: int | None, error: type[Exception], message: str
) -> None:
    """ETH_MIN_MTU, which tun.c has. Slots are as small as the endpoint's windows say."""
    vntb: Any = Vntb.__new__(Vntb)
    tap: Any = SimpleNamespace(existed=False)  # nothing of it is to be used
    interface = NetInterface(vntb, tap, Statistics(), mtu=mtu, on_event=print)
    with pytest.raises(error, match=message):
        interface._set_up(largest)


def test_an_interface_that_cannot_be_is_refused_before_the_endpoint_is_asked() -> None:
    nothing: Any = SimpleNamespace()
    wrongs: tuple[tuple[dict[str, Any], str], ...] = (
        ({"mtu": 67}, "an MTU of 68 at least, not 67"),
        ({"transport_mtu": 93}, "94 bytes at least, not 93"),
    )
    for wrong, message in wrongs:
        with pytest.raises(UsageError, match=message):
            NetInterface(nothing, nothing, Statistics(), on_event=print, **wrong)
    NetInterface(nothing, nothing, Statistics(), on_event=print, mtu=68, transport_mtu=94)


def test_a_full_ring_is_checked_often_while_the_endpoint_reads_it() -> None:
    """The pause doubled at each check: up to 10 ms for a ring that is read in 0.7 ms."""
    pauses = [0.0]
    for moving in [False] * 8 + [True, False]:
        pauses.append(next_check(pauses[-1], moving=moving))
    assert [round(1e4 * pause) for pause in pauses[1:]] == [2, 4, 8, 16, 20, 20, 20, 20, 2, 4]


def test_a_link_that_flaps_without_end_has_few_lines() -> None:
    """A pair whose ring is full of LINK_DOWN went down and up again ten times a second: 20 lines a
    second, in a log for days."""
    clock = SimpleNamespace(time=1000.0)
    clock.now = lambda: clock.time
    vntb: Any = SimpleNamespace(function=SimpleNamespace(clock=clock))
    tap: Any = SimpleNamespace(name="ntb0", check=lambda: None)
    lines: list[str] = []
    interface = NetInterface(vntb, tap, Statistics(2), on_event=lines.append)
    for _ in range(600):
        clock.time += 0.1
        interface._say("queue pairs up: 0 (1 of 2)")
        interface._say("queue pairs up: 0, 1 (2 of 2)")
    assert 20 < len(lines) <= 32
    assert lines[:2] == [
        f"ntb0: queue pairs up: {which}" for which in ("0 (1 of 2)", "0, 1 (2 of 2)")
    ]
    assert "left out" in lines[-1]
    # The last one is told, though late; and the others are told again after a calm time.
    clock.time += 5.0
    interface._look()
    assert lines[-1].startswith("ntb0: queue pairs up: 0, 1 (2 of 2) (lines left out before this")
    clock.time += 200.0
    del lines[:]
    for number in range(20):
        interface._say(f"{number}")
    assert lines == [f"ntb0: {number}" for number in range(20)]
    interface._say("the last words")
    interface._run = lambda: None  # type: ignore[method-assign, assignment, return-value]
    interface.run()
    assert lines[20:] == ["ntb0: the last words"]


def test_an_answer_is_the_interrupt_after_the_frame_was_read() -> None:
    """In an idle ring; nothing else tells which frame is answered."""
    host = Host.alone()
    clock, answers = SimpleNamespace(time=0.0), Statistics().answers
    pair: Any = SimpleNamespace(rings=host.rings, ring=lambda: None)
    queue = Queue(pair, host.interface, host.counts, answers.append, lambda: clock.time)  # type: ignore[arg-type]

    def at(time: float, frames: int, read: int) -> list[float]:
        """Send at a time; the endpoint has read up to a slot and rings half a second later."""
        clock.time = time
        host.interface.outgoing = [bytes(60)] * frames
        queue.turn(readable=True)
        host.tell(read % ENTRIES)
        clock.time += 0.5
        queue.heard()
        return list(answers)

    idle = ENTRIES - 1  # what an endpoint says that has read all before slot 0
    assert at(1.0, 1, idle) == []  # an interrupt, but the frame is not read
    assert at(2.0, 1, 1) == []  # sent into a ring that was not idle
    assert at(3.0, 1, 2) == [0.5]
    assert at(4.0, 0, 2) == [0.5]  # nothing was sent
    assert at(5.0, 2, 3) == [0.5, 0.5]
    assert at(6.0, 1, 4) == [0.5, 0.5]
