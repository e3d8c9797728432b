"""Framing over a stream, with descriptors, against a peer that does everything badly."""

from __future__ import annotations

import array
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcdrv.vfio_user import wire
from rcdrv.vfio_user.wire import Connection, Disconnected, ProtocolError
from rcdrv.wait import Deadline

from .fake import TIMEOUT, Thread, open_fds

Pair = tuple[Connection, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, max_fds=4, max_size=1 << 20)
    with theirs:
        yield connection, theirs
        connection.close()


def packed(body: bytes = b"", number: int = 7, command: int = 9, flags: int = 0) -> bytes:
    return wire.HEADER.pack(number, command, wire.HEADER.size + len(body), flags, 0) + body


def send_with_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_messages_survive_any_cutting(pair: Pair, bodies: list[bytes], cuts: list[int]) -> None:
    connection, theirs = pair
    stream = b"".join(packed(body, number) for number, body in enumerate(bodies))
    received = []
    position = turn = 0
    while position < len(stream):
        step = cuts[turn % len(cuts)]
        theirs.send(stream[position : position + step])
        position, turn = position + step, turn + 1
        while (message := connection.try_receive()) is not None:
            received.append((message.id, message.body))
    assert received == list(enumerate(bodies))


def test_receive_times_out_in_the_midst_of_a_message(pair: Pair) -> None:
    connection, theirs = pair
    theirs.send(packed(b"1234")[:-1])
    assert connection.receive(Deadline(0.02)) is None
    theirs.send(b"4")
    message = connection.receive(Deadline(TIMEOUT))
    assert message is not None
    assert message.body == b"1234"


def test_a_long_message_through_a_small_buffer() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sender, receiver = Connection(ours), Connection(theirs)
    body = bytes(range(256)) * 2048
    fd = os.open("/dev/null", os.O_RDONLY)
    thread = Thread(lambda: sender.send(9, 1, 0, body, Deadline(TIMEOUT), fds=[fd]))
    with receiver.receive(Deadline(TIMEOUT)) or pytest.fail("nothing came") as message:
        assert message.body == body
        assert len(message.fds) == 1
    thread.finish()
    os.close(fd)
    sender.close()
    receiver.close()


def test_a_peer_that_does_not_read(pair: Pair) -> None:
    connection, _ = pair
    with pytest.raises(TimeoutError):
        connection.send(9, 1, 0, bytes(1 << 20), Deadline(0.05))


@pytest.mark.parametrize("size", [0, 15, (1 << 20) + 1, 0xFFFFFFFF])
def test_an_impossible_size(pair: Pair, size: int) -> None:
    connection, theirs = pair
    theirs.send(wire.HEADER.pack(1, 9, size, 0, 0))
    with pytest.raises(ProtocolError, match="bytes"):
        connection.receive(Deadline(TIMEOUT))


@pytest.mark.parametrize("length", [0, 1, 15, 16, 19])
def test_the_peer_vanishes(pair: Pair, length: int) -> None:
    connection, theirs = pair
    theirs.send(packed(b"body")[:length])
    theirs.close()
    started = time.monotonic()
    with pytest.raises(Disconnected):
        connection.receive(Deadline(TIMEOUT))
    with pytest.raises(Disconnected):
        connection.send(9, 1, 0, b"", Deadline(TIMEOUT))
    assert time.monotonic() - started < TIMEOUT / 2


def test_a_reset_is_an_end(pair: Pair) -> None:
    connection, theirs = pair
    connection.send(9, 1, 0, b"unread", Deadline(TIMEOUT))
    theirs.close()  # with data unread the kernel reports ECONNRESET
    with pytest.raises(Disconnected):
        connection.receive(Deadline(TIMEOUT))


def test_descriptors_belong_to_their_message(pair: Pair) -> None:
    connection, theirs = pair
    with open("/dev/null") as one, open("/dev/zero") as other:  # noqa: PTH123
        theirs.send(packed(b"none", 1))
        send_with_fds(theirs, packed(b"one", 2), [one.fileno()])
        send_with_fds(theirs, packed(b"two", 3), [other.fileno(), one.fileno()])
    for expected in ([], ["/dev/null"], ["/dev/zero", "/dev/null"]):
        with connection.receive(Deadline(TIMEOUT)) or pytest.fail("nothing came") as message:
            assert [os.readlink(f"/proc/self/fd/{fd}") for fd in message.fds] == expected  # noqa: PTH115
            assert not any(os.get_inheritable(fd) for fd in message.fds)


def test_descriptors_behind_a_short_message(pair: Pair) -> None:
    """One read may take a bare header and the start of what follows."""
    connection, theirs = pair
    with open("/dev/null") as one, open("/dev/zero") as other:  # noqa: PTH123
        send_with_fds(theirs, packed(b"", 1)[:8], [one.fileno()])
        theirs.send(packed(b"", 1)[8:])
        send_with_fds(theirs, packed(b"a body of 26 bytes, or more", 2), [other.fileno()])
    for expected in ("/dev/null", "/dev/zero"):
        with connection.receive(Deadline(TIMEOUT)) or pytest.fail("nothing came") as message:
            assert [os.readlink(f"/proc/self/fd/{fd}") for fd in message.fds] == [expected]  # noqa: PTH115


def test_lost_descriptors_are_those_of_the_later_message(pair: Pair) -> None:
    connection, theirs = pair
    theirs.send(packed(b"", 1))
    send_with_fds(theirs, packed(b"body", 2), [theirs.fileno()] * 5)
    for lost in (False, True):
        with connection.receive(Deadline(TIMEOUT)) or pytest.fail("nothing came") as message:
            assert message.fds_lost is lost


def test_messages_that_one_read_took(pair: Pair) -> None:
    """The second is returned although nothing is left in the socket, also to who polls that."""
    connection, theirs = pair
    theirs.send(packed(b"", 1) + packed(b"", 2))
    first = connection.try_receive()
    assert first is not None
    assert first.id == 1
    assert connection.holds_message
    second = connection.receive(Deadline(0))
    assert second is not None
    assert second.id == 2
    assert not connection.holds_message


def test_lost_descriptors_of_an_earlier_message(pair: Pair) -> None:
    """They are no fault of the one whose first bytes came with the earlier one's last."""
    connection, theirs = pair
    first, third = packed(b"", 1), packed(b"body", 3)
    send_with_fds(theirs, first[:10], [theirs.fileno()] * 5)
    assert connection.try_receive() is None
    theirs.send(first[10:] + packed(b"", 2) + third[:4])
    seen = [connection.receive(Deadline(TIMEOUT)), connection.receive(Deadline(TIMEOUT))]
    theirs.send(third[4:])
    seen.append(connection.receive(Deadline(TIMEOUT)))
    assert [message and message.fds_lost for message in seen] == [True, False, False]
    for message in seen:
        assert message is not None
        message.close()


def test_lost_descriptors_of_two_messages(pair: Pair) -> None:
    connection, theirs = pair
    send_with_fds(theirs, packed(b"", 1)[:8], [theirs.fileno()] * 5)
    assert connection.try_receive() is None
    theirs.send(packed(b"", 1)[8:])
    send_with_fds(theirs, packed(b"", 2), [theirs.fileno()] * 5)
    for _ in range(2):
        with connection.receive(Deadline(TIMEOUT)) or pytest.fail("nothing came") as message:
            assert message.fds_lost


@pytest.mark.parametrize("size", [0, 15, (1 << 20) + 1, 0xFFFFFFFF])
def test_an_impossible_size_behind_a_message(pair: Pair, size: int) -> None:
    """It is refused without waiting for another byte."""
    connection, theirs = pair
    theirs.send(packed(b"", 1) + wire.HEADER.pack(2, 9, size, 0, 0))
    first = connection.try_receive()
    assert first is not None
    assert connection.holds_message
    with pytest.raises(ProtocolError, match="bytes"):
        connection.receive(Deadline(TIMEOUT))


def test_descriptors_that_come_late_in_a_message(pair: Pair) -> None:
    connection, theirs = pair
    data = packed(b"body")
    theirs.send(data[:18])
    assert connection.try_receive() is None
    send_with_fds(theirs, data[18:], [theirs.fileno()])
    with connection.receive(Deadline(TIMEOUT)) or pytest.fail("nothing came") as message:
        assert len(message.fds) == 1


@pytest.mark.parametrize("count", [5, 64, 253])
def test_too_many_descriptors(pair: Pair, count: int) -> None:
    connection, theirs = pair
    before = open_fds()
    send_with_fds(theirs, packed(b"body"), [theirs.fileno()] * count)
    with connection.receive(Deadline(TIMEOUT)) or pytest.fail("nothing came") as message:
        assert message.fds_lost
        assert len(message.fds) <= 4
    assert open_fds().keys() == before.keys()


def test_too_many_descriptors_in_several_parts(pair: Pair) -> None:
    connection, theirs = pair
    before = open_fds()
    for byte in packed(b"body"):
        send_with_fds(theirs, bytes([byte]), [theirs.fileno()] * 4)
    with connection.receive(Deadline(TIMEOUT)) or pytest.fail("nothing came") as message:
        assert message.fds_lost
        assert len(message.fds) == 4
    assert open_fds().keys() == before.keys()


def test_closing_in_the_midst_of_a_message_closes_its_descriptors(pair: Pair) -> None:
    connection, theirs = pair
    before = len(open_fds())
    send_with_fds(theirs, packed(b"body")[:17], [theirs.fileno()])
    assert connection.try_receive() is None
    assert len(open_fds()) == before + 1
    connection.close()
    assert len(open_fds()) == before - 1


def test_a_descriptor_that_cannot_be_sent(pair: Pair) -> None:
    connection, theirs = pair
    with pytest.raises(OSError, match="file descriptor"):
        connection.send(9, 1, 0, b"", Deadline(TIMEOUT), fds=[1 << 20])
    connection.send(9, 2, 0, b"", Deadline(TIMEOUT))
    assert wire.HEADER.unpack(theirs.recv(100))[0] == 2


def test_signals_do_not_disturb(pair: Pair) -> None:
    connection, theirs = pair
    ticks = 0

    def tick(_signum: int, _frame: FrameType | None) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 5:
            theirs.send(packed(b"body"))

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        message = connection.receive(Deadline(TIMEOUT))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert message is not None
    assert ticks >= 5


def test_shutdown_leaves_a_readable_descriptor(pair: Pair) -> None:
    connection, _ = pair
    connection.shutdown()
    assert connection.fileno() >= 0
    with pytest.raises(Disconnected):
        connection.receive(Deadline(TIMEOUT))
    connection.close()
    connection.close()
    assert connection.fileno() == -1
