"""What of a changed driver a replay tolerates, and that it never answers what a board would not."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rcdrv.device import CONFIG_REGION, IrqKind, RegionFlag, RegionInfo
from rcdrv.errors import Departed
from rcdrv.function import Function
from rcdrv.replay.player import Player
from rcdrv.replay.recorder import record_device
from rcdrv.replay.recording import Recording
from rcdrv.wait import Deadline
from tests.unit.test_function import FakeDevice

COMMAND, STATUS, SCRATCH, SIZE, FLAGS, CAPS, DB_BAR, DOORBELL = 4, 8, 0x10, 0x1C, 0x2C, 48, 52, 64
ENABLE, DISABLE, WORK = 1, 2, 3
PARAMETERS = (SIZE, FLAGS)

Op = tuple[int, ...]
"""(offset,) is a read, (offset, value) a write."""


class Board(FakeDevice):
    """An endpoint like pci-epf-test, which answers at once, and a log of what it was made to do."""

    messages = True

    def __init__(self) -> None:
        super().__init__()
        self.memory = dict.fromkeys(
            (COMMAND, STATUS, SCRATCH, SIZE, FLAGS, CAPS, DB_BAR, DOORBELL), 0
        )
        self.memory[CAPS], self.memory[DB_BAR] = 0x37, 0xFFFFFFFF
        self.effects: list[object] = []
        self.blocks = bytearray(1 << 20)

    def region(self, index: int) -> RegionInfo:
        if index == 1:
            return RegionInfo(1, 1 << 20, RegionFlag.READ | RegionFlag.WRITE)
        return super().region(index)

    def read(self, region: int, offset: int, size: int) -> bytes:
        if region == CONFIG_REGION:
            return super().read(region, offset, size)
        if region == 1:
            return bytes(self.blocks[offset : offset + size])
        return self.memory[offset].to_bytes(size, "little")

    def write(self, region: int, offset: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        if region == CONFIG_REGION:
            super().write(region, offset, data)
        elif region == 1:
            self.blocks[offset : offset + len(data)] = data
        elif offset == DOORBELL:
            self._act(offset, value, self.memory[STATUS] | 0x80)
        else:
            self.memory[offset] = value
            if offset == COMMAND and value:
                self.memory[COMMAND] = 0
                if value in (ENABLE, DISABLE):
                    self.memory[DB_BAR] = 4 if value == ENABLE else 0xFFFFFFFF
                self._act(offset, value, value << 8 | self.memory[SIZE] & value)

    def _act(self, offset: int, value: int, status: int) -> None:
        self.effects.append((offset, value, dict(self.memory)))
        self.memory[STATUS] = status
        for fd in self.armed.get(IrqKind.MSI, [])[:1]:
            os.eventfd_write(fd, 1)


def drive(function: Function, ops: Sequence[Op]) -> list[int]:
    """Do it, and return what was read."""
    bar = function.bar(0)
    function.explain(0, PARAMETERS, [CAPS])
    found = []
    for op in ops:
        if len(op) == 1:
            found.append(bar.read32(op[0]))
        else:
            bar.write32(*op)
    return found


def live(ops: Sequence[Op]) -> tuple[list[int], list[object]]:
    """What a board does."""
    board = Board()
    with Function(board) as function:
        return drive(function, ops), board.effects


def keep(path: Path, ops: Sequence[Op]) -> None:
    recorder = record_device(Board(), path)
    with Function(recorder, clock=recorder.clock) as function:  # type: ignore[attr-defined]
        drive(function, ops)


def replay(path: Path, ops: Sequence[Op]) -> list[int]:
    player = Player("the endpoint", Recording.read(str(path)))
    with Function(player, clock=player.clock) as function:
        return drive(function, ops)


reads = st.sampled_from([(at,) for at in (COMMAND, STATUS, SCRATCH, SIZE, CAPS, DB_BAR, DOORBELL)])
writes = st.tuples(
    st.sampled_from([STATUS, SCRATCH, SIZE, FLAGS, COMMAND, COMMAND, DOORBELL]), st.integers(0, 3)
)
programs = st.lists(st.one_of(reads, writes), min_size=1, max_size=14)
edits = st.lists(
    st.tuples(
        st.sampled_from(["drop", "swap", "add"]), st.integers(0, 20), st.one_of(reads, writes)
    ),
    min_size=1,
    max_size=3,
)


def changed(ops: Sequence[Op], edits: Sequence[tuple[str, int, Op]]) -> list[Op]:
    found = list(ops)
    for kind, where, op in edits:
        at = where % (len(found) + 1)
        if kind == "add":
            found.insert(at, op)
        elif kind == "drop":
            del found[at : at + 1]
        else:
            found[at : at + 2] = reversed(found[at : at + 2])
    return found


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs, edits)
@example([(COMMAND, ENABLE), (DB_BAR,), (COMMAND, 2), (COMMAND, 1), (DB_BAR,)], [("add", 3, (52,))])
@example([(DOORBELL,), (DOORBELL, 0), (DOORBELL, 0)], [("drop", 2, (STATUS,))])
@example([(SIZE, 1), (COMMAND, WORK), (SIZE, 2)], [("swap", 1, (STATUS,))])
def test_a_replay_never_answers_what_the_board_would_not(
    tmp_path: Path, ops: list[Op], edits: list[tuple[str, int, Op]]
) -> None:
    """A changed driver departs, or it finds what it finds on the board, and the board is made to do
    what it was made to do."""
    path = tmp_path / "board.gz"
    keep(path, ops)
    other = changed(ops, edits)
    try:
        found = replay(path, other)
    except Departed:
        return
    if not other:
        return  # one that only opens the device departs from nothing
    really, effects = live(other)
    assert found == really
    assert effects == live(ops)[1]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs)
def test_the_same_driver_never_departs(tmp_path: Path, ops: list[Op]) -> None:
    path = tmp_path / "board.gz"
    keep(path, ops)
    assert replay(path, ops) == live(ops)[0]


SESSION: list[Op] = [
    *[(CAPS,), (SCRATCH,), (SIZE, 8), (FLAGS, 1), (STATUS, 0), (COMMAND, ENABLE)],
    *[(STATUS,), (DB_BAR,), (COMMAND,), (SCRATCH,)],
    *[(CAPS,), (SIZE, 8), (FLAGS, 1), (COMMAND, WORK), (STATUS,), (COMMAND,)],
    *[(SCRATCH, 5), (SCRATCH,)],
]


@pytest.mark.parametrize(
    "change",
    [
        ("drop", 0),  # a read that nothing depends on yet
        ("drop", 9),  # one that finds what is known
        ("drop", 10),
        ("add", 1, CAPS),
        ("add", 8, STATUS),  # just read, and nothing was done since
        ("add", 11, DB_BAR),
        ("add", 15, CAPS),  # it never changes
        ("swap", 7),  # reads of registers that did not change among them
        ("swap", 2),  # parameters
        ("add", 4, FLAGS, 1),
        ("drop", 11),  # a parameter that has the value
        ("drop", 12),
        ("add", 10, SCRATCH, 0),  # the value that was read there
        ("add", 5, SIZE, 8),
        ("swap", 10),  # a read of what never changes, after a parameter
    ],
)
def test_what_cannot_have_mattered_is_tolerated(tmp_path: Path, change: tuple[int, ...]) -> None:
    path = tmp_path / "board.gz"
    keep(path, SESSION)
    other = changed(SESSION, [(str(change[0]), change[1], change[2:])])
    assert other != SESSION
    assert replay(path, other) == live(other)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("drop", 6), r"expected a 32-bit read of BAR0\+0x8, got"),  # the answer is not seen
        (("drop", 7), r"expected a 32-bit read of BAR0\+0x34, got"),  # news, after a command
        (
            ("drop", 3),
            r"expected 0x1 in BAR0\+0x2c, got a 32-bit write of 0x0 to BAR0\+0x8 with"
            r" nothing written in BAR0\+0x2c",
        ),
        (
            ("add", 13, SIZE, 9),
            r"expected 0x8 in BAR0\+0x1c, got .* with 0x9 in BAR0\+0x1c",
        ),
        (("add", 6, COMMAND, WORK), r"expected a 32-bit read of BAR0\+0x8, got a 32-bit write"),
        (("add", 6, SCRATCH, 1), r"got a 32-bit write of 0x1 to BAR0\+0x10"),
        (("swap", 13), r"expected a 32-bit write of 0x3 to BAR0\+0x4, got"),
        (("add", 14, DB_BAR), r"got a 32-bit read of BAR0\+0x34"),  # a command may change it
        (("drop", 15), r"expected a 32-bit read of BAR0\+0x4, got"),
        (("swap", 8), r"got a 32-bit read of BAR0\+0x10"),
        (("add", 0, SIZE), r"got a 32-bit read of BAR0\+0x1c"),
    ],
)
def test_what_may_matter_is_a_departure(tmp_path: Path, change: tuple[int, ...], said: str) -> None:
    path = tmp_path / "board.gz"
    keep(path, SESSION)
    with pytest.raises(Departed, match=said):
        replay(path, changed(SESSION, [(str(change[0]), change[1], change[2:])]))


CHUNKS = (1 << 16, 1 << 17, 1 << 20)


@pytest.mark.parametrize(("was", "now"), list(itertools.permutations(CHUNKS, 2)))
def test_blocks_may_be_cut_otherwise(tmp_path: Path, was: int, now: int) -> None:
    def session(function: Function, chunk: int) -> bytes:
        bar = function.bar(1)
        for at in range(0, 1 << 20, chunk):
            bar.write_block(at, bytes(range(256)) * (chunk >> 8))
        return b"".join(bar.read_block(at, chunk) for at in range(0, 1 << 20, chunk))

    path = tmp_path / "board.gz"
    recorder = record_device(Board(), path)
    with Function(recorder, clock=recorder.clock) as function:  # type: ignore[attr-defined]
        session(function, was)
    player = Player("the endpoint", Recording.read(str(path)))
    with Function(player, clock=player.clock) as function:
        assert session(function, now) == bytes(range(256)) * 4096


def test_a_block_is_read_back_sooner_but_not_later(tmp_path: Path) -> None:
    """A BAR that aliases another shows it only when the other was written before."""

    def session(function: Function, order: str) -> None:
        for letter in order:
            at = 1 << 16 if letter in "Bb" else 0
            if letter.isupper():
                function.bar(1).write_block(at, letter.encode() * 1024)
            else:
                assert function.bar(1).read_block(at, 1024) == letter.upper().encode() * 1024

    for was, now, departs in (
        ("ABab", "AaBb", False),
        ("AaBb", "ABab", True),
        ("AaB", "AB", False),
    ):
        path = tmp_path / f"{was}.gz"
        recorder = record_device(Board(), path)
        with Function(recorder, clock=recorder.clock) as function:  # type: ignore[attr-defined]
            session(function, was)
        player = Player("the endpoint", Recording.read(str(path)))
        try:
            with Function(player, clock=player.clock) as function:
                session(function, now)
        except Departed:
            assert departs, (was, now)
        else:
            assert not departs, (was, now)


def test_a_poll_and_an_interrupt_stay_in_order(tmp_path: Path) -> None:
    """What an endpoint changed is not known after an interrupt."""

    def session(function: Function, *, look: bool) -> None:
        with function.interrupts(IrqKind.MSI) as vectors:
            function.bar(0).read32(STATUS)
            function.bar(0).write32(COMMAND, WORK)
            if look:
                function.bar(0).read32(STATUS)
            assert vectors.wait(Deadline(5, function.clock)) == {0: 1}
            function.bar(0).write32(SCRATCH, 1)
            function.bar(0).read32(STATUS)
            function.bar(0).write32(STATUS, 0)

    path = tmp_path / "board.gz"
    board = Board()
    recorder = record_device(board, path)
    with Function(recorder, clock=recorder.clock) as function:  # type: ignore[attr-defined]
        session(function, look=False)
    player = Player("the endpoint", Recording.read(str(path)))
    with (
        pytest.raises(Departed, match=r"BAR0\+0x10, got a 32-bit read of BAR0\+0x8"),
        Function(player, clock=player.clock) as function,
    ):
        session(function, look=True)
