"""A recording may come from anybody: what is wrong in it is one line, and costs little."""

from __future__ import annotations

import contextlib
import gzip
import json
import select as select_module
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcdrv.cli import main
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.suite import cases, run_cases, select
from rcdrv.epf_test.transfer import Placement
from rcdrv.errors import RcdrvError, UsageError
from rcdrv.function import Function
from rcdrv.replay.player import Player
from rcdrv.replay.recording import LARGEST_TEXT, MOST_EVENTS, Event, Recording
from rcdrv.results.observer import Observer
from rcdrv.results.result import Run
from tests.unit.replay.test_replay import record

NAMES = ("BAR1", "MSI_TEST", "memcpy.COPY_TEST", "DOORBELL_TEST")


def session(function: Function) -> object:
    every = cases(lambda _driver: [Placement(9001)])
    chosen = select([f"*{name}*" for name in NAMES], (), every)
    run = run_cases(EpfTest(function), chosen, Run("test"), Observer())
    return [case.verdict for case in run.results]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Those of a good recording."""
    path = tmp_path_factory.mktemp("hostile") / "board.gz"
    record(path, "rk3588", session)
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def play(path: Path, content: bytes) -> None:
    """Replay a file, which may be refused at any point, but only by an error of rcdrv."""
    path.write_bytes(content)
    with contextlib.suppress(RcdrvError):
        play_strictly(path)


WORDS = ["0", "1", "7", "8", "ff", "ffffffff", "ffffffffffffffff", "-1", "!lost", "!x", "@0+1"]
WORDS += [
    "z",
    "x0:eA==",
    "=1",
    "=s0",
    "=sz",
    "c1",
    "hzz",
    "n",
    "d",
    "l",
    "t",
    "\x1b[2J",
    "\N{DIGIT ONE}\u0661",
]

change = st.one_of(
    st.tuples(st.just("drop"), st.integers(0, 5000)),
    st.tuples(st.just("again"), st.integers(0, 5000)),
    st.tuples(st.just("word"), st.integers(0, 5000), st.integers(0, 6), st.sampled_from(WORDS)),
    st.tuples(st.just("bit"), st.integers(0, 5000), st.integers(0, 90), st.integers(0, 6)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(change, min_size=1, max_size=4))
def test_changed_lines(tmp_path: Path, lines: list[str], changes: list[tuple[Any, ...]]) -> None:
    text = list(lines)
    for kind, where, *how in changes:
        at = where % len(text)
        words = text[at].split(" ")
        if kind == "drop":
            del text[at]
        elif kind == "again":
            text.insert(at, text[at])
        elif kind == "word":
            words[how[0] % len(words)] = how[1]
            text[at] = " ".join(words)
        elif text[at]:
            place = how[0] % len(text[at])
            other = chr(ord(text[at][place]) ^ 1 << how[1])
            text[at] = text[at][:place] + other + text[at][place + 1 :]
    play(tmp_path / "board.gz", gzip.compress("\n".join([*text, ""]).encode()))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=3))
def test_changed_bytes(tmp_path: Path, lines: list[str], changes: list[tuple[int, int]]) -> None:
    content = bytearray(gzip.compress("\n".join([*lines, ""]).encode()))
    for at, value in changes:
        content[at % len(content)] = value
    play(tmp_path / "board.gz", bytes(content))


HEAD = b"rcdrv-recording 1\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not a recording of rcdrv"),
        (b"TAP version 13\n", "not a recording of rcdrv"),
        (b"rcdrv-recording 3\n{}\n", "version 3 of the format; this is 2"),
        (b"rcdrv-recording 1000000\n{}\n", "not a recording of rcdrv"),
        (HEAD + b"{}\n", "line 2: rcdrv is missing or invalid"),
        (HEAD + b"[1]\n", "line 2: rcdrv is missing or invalid"),
        (HEAD + b"[" * 100_000 + b"\n", "line 2: nested too deeply"),
        (HEAD + b"[1]", "truncated"),
        (HEAD + b"{}", "truncated"),
        (bytes(LARGEST_TEXT + 10), "more than 32 MiB unpacked"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "board.gz"
    path.write_bytes(gzip.compress(text))
    with pytest.raises(UsageError, match=said):
        Recording.read(str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rcdrv", 5),
        ("backend", "a b"),
        ("interrupts", "12345"),
        ("interrupts", [1, 2, 3, 4]),
        ("interrupts", [1, 2, 3, 4, 4096]),
        ("interrupts", 7),
        ("regions", [[1, 2]]),
        ("regions", [[1, 2, 3]] * 9),
        ("regions", [5] * 9),
        ("config", "zz"),
        ("config", "00"),
        ("config", None),
        ("seed", ""),
        ("seed", {}),
    ],
)
def test_a_bad_field_of_the_head_is_named(
    tmp_path: Path, lines: list[str], key: str, value: Any
) -> None:
    path = tmp_path / "board.gz"
    head = json.loads(lines[1])
    for changed in ({**head, key: value}, {one: head[one] for one in head if one != key}):
        path.write_bytes(gzip.compress("\n".join([lines[0], json.dumps(changed), ""]).encode()))
        with pytest.raises(UsageError) as caught:
            Recording.read(str(path))
        assert caught.value.message == f"{path}: line 2: {key} is missing or invalid"


def test_a_file_that_is_cut_off_is_replayed_up_to_there(tmp_path: Path, lines: list[str]) -> None:
    """Anywhere: it is refused, or what is whole of it is there."""
    path = tmp_path / "board.gz"
    content = gzip.compress("\n".join([*lines, ""]).encode())
    path.write_bytes(content)
    whole = Recording.read(str(path)).events
    lengths = set()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        try:
            part = Recording.read(str(path))
        except UsageError:
            continue
        assert part.cut_off == "killed"
        assert part.events[:-1] == whole[: len(part.events) - 1]
        assert part.events[-1].op == "x"
        lengths.add(len(part.events))
    assert len(lengths) > 5
    with pytest.raises(RcdrvError, match="the recording is cut off here, as the run was killed"):
        play_strictly(path)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"MZ" * 99, zlib.compress(HEAD)])
def test_files_that_are_no_gzip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "board.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not a recording of rcdrv"):
        Recording.read(str(path))


def test_too_many_events(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "board.gz"
    text = "\n".join([*lines[:2], *["0 z"] * (MOST_EVENTS + 2), ""])
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(UsageError, match="more than 200000 events"):
        Recording.read(str(path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 r 0 30 4 1ffffffff", "int too big"),
        ("0 r 0 30 4", "line 4 has no result"),
        ("0 r 0 30 4 !nobody", "line 4 is not an event"),
        ("0 r 0 30 4 !pass/silent", "line 4 is not an event"),
        ("0 r 0 30 4 !error/usage", "line 4 is not an event"),
        ("0 q", "line 4 is not an event"),
        ("0 t case \x1b[2J", "line 4 is not an event"),
        ("0 r 0 030 4 1", "line 4 is not an event"),  # matches no call: numbers compare as text
        ("0 w 0 30 4 @0+00", "line 4 is not an event"),
        ("0 m 5 1000", r"expected DMA buffer 5 of 0x1000 bytes mapped, got"),
        ("0 i 1 24 3 2 0", "expected the arming of 2 MSI from vector 3, got"),
        ("0 i 1 22 0 2 0", "expected the setting to flags 0x22 of 2 MSI, got"),
    ],
)
def test_a_line_that_is_wrong_is_named(
    tmp_path: Path, lines: list[str], line: str, said: str
) -> None:
    path = tmp_path / "board.gz"
    path.write_bytes(gzip.compress("\n".join([*lines[:3], line, *lines[4:], ""]).encode()))
    with pytest.raises(RcdrvError, match=said):
        play_strictly(path)


def play_strictly(path: Path) -> None:
    player = Player("replay:x", Recording.read(str(path)))
    with Function(player, clock=player.clock) as function:
        session(function)


class Counting(list[Event]):
    """Events, and how often one was looked at."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        self.looks += 1
        return super().__getitem__(key)


def test_a_register_polled_before_far_events_costs_little(tmp_path: Path, lines: list[str]) -> None:
    """A thousand reads of config space ahead made each wait a million looks: minutes of them."""
    path = tmp_path / "board.gz"
    noise = [f"9 r 7 {4 * (number % 16):x} 4 {number & 1}" for number in range(5000)]
    text = "\n".join([*lines[:2], "0 r 0 8 4 0", *noise, ""])
    path.write_bytes(gzip.compress(text.encode()))
    recording = Recording.read(str(path))
    recording.events = events = Counting(recording.events)
    player = Player("replay:x", recording)
    for _ in range(100):
        assert player.read(0, 8, 4) == bytes(4)
    assert events.looks < 5000
    events.looks = 0
    with select_module.epoll() as epoll:
        assert player.wait(epoll, 0.001, 1) == []
    assert events.looks < 5000


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "board.gz"
    path.write_bytes(b"nothing")
    for command in ("ring", "info", "test"):
        assert main(["--device", f"replay:{path}", command]) == 2
        said = capsys.readouterr()
        assert said.err == (
            f"rcdrv: {path}: not a recording of rcdrv\nhint: --record FILE makes a recording\n"
        )
        assert not said.out
