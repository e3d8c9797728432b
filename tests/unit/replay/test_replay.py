"""A recorded session, replayed: the same driver does the same, a changed one is told where."""

from __future__ import annotations

import errno
import getpass
import gzip
import mmap
import os
import re
import socket
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rcdrv.device import CONFIG_REGION, Area, IrqKind, PhysicalDma
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Command, Status
from rcdrv.epf_test.suite import cases, run_cases
from rcdrv.epf_test.transfer import Placement
from rcdrv.errors import Departed, DeviceLost, HostError, UsageError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.replay.file import BLOCK_TIME
from rcdrv.replay.player import Player, open_replay
from rcdrv.replay.recorder import record_device
from rcdrv.replay.recording import Recording
from rcdrv.results.observer import Observer
from rcdrv.results.result import Run
from rcdrv.sim.layout import load_layout
from rcdrv.wait import Deadline
from tests.unit.test_function import FakeDevice

SIZES = [1, 1024, 9001]

Session = Callable[[Function], object]


def suite(irq: IrqChoice = IrqChoice.AUTO) -> Session:
    """All cases of the kselftest, as (name, verdict, reason, message without its time, as a wait
    takes a replay some microseconds more or less)."""

    def run(function: Function) -> object:
        every = cases(lambda _driver: [Placement(size) for size in SIZES])
        result = run_cases(EpfTest(function, irq=irq), every, Run("test"), Observer())
        return [
            (str(case.name), case.verdict, case.reason, re.sub(r"[\d.]+ us", "", case.message))
            for case in result.results
        ]

    return run


def record(path: Path, spec: str, session: Session) -> object:
    device = Direct(load_layout(spec))
    try:
        recorder = record_device(device.attach(), path)
        with Function(recorder, clock=recorder.clock) as function:  # type: ignore[attr-defined]
            return session(function)
    finally:
        device.endpoint.close()


def replay(path: Path, session: Session, player: Player | None = None) -> object:
    device = player or Player("the endpoint", Recording.read(str(path)))
    with Function(device, clock=device.clock) as function:
        return session(function)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "board.gz"


# -- the same driver ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "irq"),
    [
        ("rk3588", IrqChoice.AUTO),
        ("rk3588", IrqChoice.INTX),
        ("rcar-s4", IrqChoice.POLL),
        ("rk3588,fault=irq-lost", IrqChoice.AUTO),
        ("rk3588,fault=irq-twice", IrqChoice.AUTO),
        ("rk3588,fault=bad-data", IrqChoice.AUTO),
        ("rk3588,fault=dma-hangs", IrqChoice.AUTO),
        ("rk3588,fault=vanish", IrqChoice.AUTO),
    ],
)
def test_the_same_again(path: Path, spec: str, irq: IrqChoice) -> None:
    """Also the words of a fault: a byte that was wrong is wrong at the same place."""
    before = record(path, spec, suite(irq))
    assert replay(path, suite(irq)) == before
    assert path.stat().st_size < 16 << 10


def test_where_buffers_lie_is_the_replaying_hosts_choice(path: Path) -> None:
    class Elsewhere(Player):
        def dma_ranges(self) -> Sequence[tuple[int, int]]:
            return [(0x7_8000_0000, 0x7_FFFF_FFFF)]

    before = record(path, "rk3588", suite())
    moved = Elsewhere("the endpoint", Recording.read(str(path)))
    assert replay(path, suite(), moved) == before


def test_the_recording_counts_what_it_holds(path: Path) -> None:
    record(path, "rcar-s4", suite())
    recording = Recording.read(str(path))
    assert len(recording.verdicts()) == 23
    assert ("pci_ep_basic.MSIX_TEST", "skip", "no-vectors") in recording.verdicts()
    assert recording.summary()["seconds"] > 0.01


def test_time_is_that_of_the_recording(path: Path) -> None:
    """And a wait takes none: a second passes at once."""

    def session(function: Function) -> object:
        driver = EpfTest(function)
        answer = driver.command(Command.RAISE_MSI_IRQ)
        before = function.clock.now()
        function.pause(3600)
        return answer.status, function.clock.now() - before

    expected = (Status.IRQ_RAISED, pytest.approx(3600))
    assert record(path, "rk3588", session) == expected
    assert replay(path, session) == expected


# -- another driver -------------------------------------------------------------------------------


class Board(FakeDevice):
    """A device that logs its accesses; BAR 1 is mapped, BAR 0 is not."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, int, int, int]] = []
        self.values = iter(range(100))

    def read(self, region: int, offset: int, size: int) -> bytes:
        self.log.append(("read", region, offset, size))
        if region == CONFIG_REGION:
            return super().read(region, offset, size)
        return next(self.values).to_bytes(size, "little")

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.log.append(("write", region, offset, len(data)))
        super().write(region, offset, data)


def keep(path: Path, session: Session, board: FakeDevice | None = None) -> None:
    recorder = record_device(board or Board(), path)
    with Function(recorder, clock=recorder.clock) as function:  # type: ignore[attr-defined]
        session(function)


def reads_and_writes(function: Function) -> None:
    function.mark("case", "first")
    bar = function.bar(0)
    bar.write32(0x10, 0x20)
    bar.read16(0x12)
    bar.write8(0x11, 1)


def read_more(function: Function) -> None:
    reads_and_writes(function)
    function.bar(0).read8(0)


@pytest.mark.parametrize(
    ("session", "said"),
    [
        (
            lambda f: f.bar(0).write32(0x10, 0x21),
            "a 32-bit write of 0x20 to BAR0+0x10, got a 32-bit write of 0x21 to BAR0+0x10",
        ),
        (lambda f: f.bar(0).read16(0x12), "a 32-bit write of 0x20 to BAR0+0x10, got a 16-bit read"),
        (
            read_more,
            "write of 0x400 to config space+0x4, got an 8-bit read of BAR0+0x0",
        ),
        (lambda f: f.device.reset(), "write of 0x20 to BAR0+0x10, got a reset"),
        (lambda f: f.dma_buffer(4096), "0x20 to BAR0+0x10, got DMA buffer 0 mapped"),
        (lambda f: f.interrupts(IrqKind.MSI, 4), "got the arming of 4 MSI"),
        (lambda f: f.bar(0).write_block(0, bytes(64)), "a write of 0x40 bytes .* at BAR0.0x0"),
    ],
)
def test_a_departure_is_told(path: Path, session: Session, said: str) -> None:
    keep(path, reads_and_writes)
    with pytest.raises(Departed, match=re.sub(r"\+", ".", said)) as departed:
        replay(path, session)
    line = int(re.search(r"line (\d+)", departed.value.message)[1])  # type: ignore[index]
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert lines[line - 1].split()[1:] in (["w", "0", "10", "4", "20"], ["w", "7", "4", "2", "400"])


def test_the_case_of_a_departure_is_named(path: Path) -> None:
    keep(path, reads_and_writes)

    def changed(function: Function) -> None:
        function.bar(0).write32(0x10, 0x20)
        function.bar(0).write32(0x10, 0x20)

    with pytest.raises(Departed, match="in first: expected a 16-bit read of BAR0"):
        replay(path, changed)


def test_a_driver_that_does_less_is_told(path: Path) -> None:
    keep(path, reads_and_writes)
    with pytest.raises(Departed, match=r"expected a 16-bit read of BAR0\+0x12"):
        replay(path, lambda function: function.bar(0).write32(0x10, 0x20))


def test_one_that_only_looks_departs_from_nothing(path: Path) -> None:
    from rcdrv.describe import describe

    keep(path, reads_and_writes)
    found = replay(path, describe)
    assert isinstance(found, dict)
    assert (found["vendor_id"], found["interrupts"]["msi"]) == (0x104C, 32)
    assert found["recording"]["backend"] == "fake"


@pytest.mark.parametrize("times", [1, 2, 3, 50])
def test_a_register_may_be_polled_as_often_as_one_likes(path: Path, times: int) -> None:
    """Recorded were 0, 1 and 2."""

    def poll(count: int) -> Session:
        def session(function: Function) -> object:
            found = [function.bar(0).read32(8) for _ in range(count)]
            function.bar(0).write32(0, 1)
            return found

        return session

    keep(path, poll(3))
    if times < 3:  # the last value decided that the driver went on
        with pytest.raises(Departed, match=r"expected a 32-bit read of BAR0\+0x8"):
            replay(path, poll(times))
    else:
        assert replay(path, poll(times)) == [0, 1, *[2] * (times - 2)]


def test_an_interrupt_comes_when_it_is_waited_for(path: Path) -> None:
    board = Board()

    def session(function: Function) -> object:
        with function.interrupts(IrqKind.MSI, 2) as vectors:
            empty = vectors.take()
            if function.device.backend == "fake":
                os.eventfd_write(board.armed[IrqKind.MSI][1], 3)
            return empty, vectors.wait(Deadline(60, function.clock)), vectors.take()

    keep(path, session, board)
    assert replay(path, session) == ({}, {1: 3}, {})


def test_a_loss_is_replayed(path: Path) -> None:
    class Lost(Board):
        def read(self, region: int, offset: int, size: int) -> bytes:
            if region == 0:
                raise DeviceLost("/home/someone/ep.sock: gone")
            return super().read(region, offset, size)

    with pytest.raises(DeviceLost, match="gone"):
        keep(path, lambda function: function.bar(0).read32(0), Lost())
    with pytest.raises(DeviceLost, match="this failed in the recording"):
        replay(path, lambda function: function.bar(0).read32(0))
    assert b"someone" not in gzip.decompress(path.read_bytes())


# -- the recorder ---------------------------------------------------------------------------------


def test_one_access_is_one_access(path: Path) -> None:
    """Of each width, trapped; a block in whole words, as without the recorder."""
    board = Board()

    def session(function: Function) -> None:
        board.log.clear()
        bar = function.bar(0)
        for width in (8, 16, 32, 64):
            bar.read(width, 0x40)
            bar.write(width, 0x40, 1)
        bar.register32(4)[0] = 1
        bar.burst32(8, 7, 3)
        assert board.log == [
            *[(what, 0, 0x40, size) for size in (1, 2, 4, 8) for what in ("read", "write")],
            ("write", 0, 4, 4),
            *[("write", 0, 8, 4)] * 3,
        ]

    keep(path, session, board)


def test_a_mapped_bar_stays_mapped(path: Path) -> None:
    """Below the recorder; the driver sees none, so that each access passes it."""
    board = Board()

    def session(function: Function) -> None:
        assert function.device.region(1).areas == ()
        board.log.clear()
        assert function.bar(1).read32(0) == 0
        function.bar(1).fill(0, 64, 0xA1)
        assert function.bar(1).read_block(0, 64) == b"\xa1" * 64
        assert board.log == []

    keep(path, session, board)
    text = gzip.decompress(path.read_bytes()).decode()
    assert " R 1 0 40 =w\n" in text


def test_nothing_of_the_host_is_kept(path: Path) -> None:
    class Placed(Board):
        def __init__(self) -> None:
            super().__init__()
            self.config[0x10:0x20] = bytes.fromhex("0000a1fe 0c00b0fe 38000000 00000000")
            self.address = "/home/someone/ep.sock"

        def dma_ranges(self) -> Sequence[tuple[int, int]]:
            return [(0x7654_3210_0000, 0x7654_FFFF_FFFF)]

    def session(function: Function) -> None:
        assert function.bars[0] is not None
        assert function.bars[0].address == 0xFEA10000
        function.config.bar_mask(0, is_64bit=False)
        with function.dma_buffer(8192) as buffer:
            assert buffer.iova == 0x7654_3210_0000
            function.bar(0).write32(0, (buffer.iova + 0x1234) & 0xFFFFFFFF)
            function.bar(0).write32(4, buffer.iova >> 32)
            function.bar(0).write64(8, buffer.iova)

    keep(path, session, Placed())
    packed = path.read_bytes()
    assert packed[3:10] == bytes([0, 0, 0, 0, 0, 2, 3])  # neither a name nor a time
    text = gzip.decompress(packed).decode()
    for secret in ("7654", "3210", "fea1", "a1fe", "b0fe", "38000000", "someone", str(path)):
        assert secret not in text
    for secret in (socket.gethostname(), getpass.getuser(), str(Path.cwd())):
        assert not re.search(rf"\b{re.escape(secret)}\b", text)
    assert " w 0 0 4 @0+1234\n" in text
    assert " w 0 4 4 @0^\n" in text
    assert " w 0 8 8 @0+0\n" in text


class Physical(Board, PhysicalDma):
    """A device without an IOMMU: its buffers lie where memory is."""

    def dma_allocate(self, size: int, align: int, limit: int) -> tuple[int, mmap.mmap]:
        del align, limit
        self.mappings[0x1_2345_6000] = size
        self.memory = mmap.mmap(-1, size)
        return 0x1_2345_6000, self.memory


def test_without_an_iommu_it_is_the_same(path: Path) -> None:
    board = Physical()

    def session(function: Function) -> object:
        with function.dma_buffer(4096) as buffer:
            function.bar(0).write32(0, buffer.iova & 0xFFFFFFFF)
            function.bar(0).write32(4, buffer.iova >> 32)
            if function.device.backend == "fake":
                board.memory[8:12] = b"data"
            function.bar(0).read32(0)
            return bytes(buffer.memory[:16])

    recorder = record_device(board, path)
    assert isinstance(recorder, PhysicalDma)
    with Function(recorder, clock=recorder.clock) as function:  # type: ignore[attr-defined]
        assert session(function) == bytes(8) + b"data" + bytes(4)
    assert replay(path, session) == bytes(8) + b"data" + bytes(4)
    assert b"2345" not in gzip.decompress(path.read_bytes())


def test_a_file_that_cannot_be_written_is_said_before_the_device_is_touched(
    tmp_path: Path,
) -> None:
    for path in (tmp_path / "missing" / "board.gz", tmp_path):
        board = Board()
        with pytest.raises(UsageError, match="cannot write"):
            record_device(board, path)
        assert board.closed == 1
        assert {entry[:2] for entry in board.log} == {("read", CONFIG_REGION)}


def test_a_long_recording_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdrv.replay.recorder.MOST_EVENTS", 40)

    def session(function: Function) -> None:
        for value in range(100):
            function.bar(0).write32(0, value)

    keep(path, session)
    with pytest.raises(Departed, match="cut off here, at its largest size"):
        replay(path, session)


def test_what_was_recorded_is_there_before_the_end(path: Path) -> None:
    """A SIGBUS, or a kill, takes the recorder with it: rcdrv.replay.file."""
    recorder = record_device(Board(), path)
    function = Function(recorder, clock=recorder.clock)  # type: ignore[attr-defined]
    assert Recording.read(str(path)).cut_off == "killed"
    function.bar(0).write32(0, 0x1234)
    function.pause(2 * BLOCK_TIME)  # a wait leaves the driver time for it
    killed = Recording.read(str(path))
    assert killed.events[-2].fields == (0, 0, 4, 0x1234)
    path.with_name("killed.gz").write_bytes(path.read_bytes())
    function.close()
    assert Recording.read(str(path)).cut_off == ""
    with pytest.raises(
        Departed,
        match="cut off here, as the run was killed, or the disk was full, got a 16-bit write",
    ):
        replay(path.with_name("killed.gz"), lambda function: function.bar(0).write32(0, 0x1234))


def test_memory_of_a_recorder_is_bounded(path: Path) -> None:
    """Lines were kept until the end: 32 MiB of them."""
    recorder = record_device(Board(), path)
    tracemalloc.start()
    try:
        for number in range(10_000):
            recorder.mark("case", f"{number:0100d}")  # type: ignore[attr-defined]
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()
        recorder.close()
    assert len(Recording.read(str(path)).events) == 10_000


def test_a_full_disk_is_told_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and after the driver has cleaned up; what was written is replayed."""
    board = Board()
    recorder = record_device(board, path)
    function = Function(recorder, clock=recorder.clock)  # type: ignore[attr-defined]

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rcdrv.replay.file.os.write", full)
    function.bar(0).write32(0, 1)
    function.bar(0).write32(0, 2)
    with pytest.raises(HostError, match=r"cannot write .*: No space left on device"):
        function.close()
    monkeypatch.undo()
    assert board.closed == 1
    assert Recording.read(str(path)).cut_off == "killed"


class Wide(FakeDevice):
    """BAR 0 is memory, reached by a path that carries 64 bits; each access is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = bytearray(128)
        self.sizes: list[int] = []

    def read(self, region: int, offset: int, size: int) -> bytes:
        if region == CONFIG_REGION:
            return super().read(region, offset, size)
        self.sizes.append(size)
        return bytes(self.memory[offset : offset + size])

    def write(self, region: int, offset: int, data: bytes) -> None:
        if region == CONFIG_REGION:
            super().write(region, offset, data)
            return
        self.sizes.append(len(data))
        self.memory[offset : offset + len(data)] = data


def test_blocks_are_moved_in_words_of_the_drivers_width(path: Path) -> None:
    """They were of 32 bits while a run was recorded, whatever the driver had found to arrive."""
    board = Wide()

    def session(function: Function) -> None:
        function.bar(0).write_block(0, bytes(64))
        narrow = list(board.sizes)
        function.widen(0)
        board.sizes.clear()
        function.bar(0).write_block(0, bytes(64))
        if function.device.backend == "fake":
            assert narrow == [4] * 16
            assert board.sizes == [64]  # which the kernel's VFIO makes words of 64 bits

    keep(path, session, board)
    assert "\n0 b 0 40\n" in re.sub(r"\n\d+ b", "\n0 b", zcat(path))
    replay(path, session)


def zcat(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def test_a_recorder_leaves_nothing_open(path: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    record(path, "rk3588", suite(IrqChoice.MSIX))
    replay(path, suite(IrqChoice.MSIX))
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


# -- another program ------------------------------------------------------------------------------


def test_a_player_has_nothing_to_map_and_nothing_beyond_its_config_space(path: Path) -> None:
    keep(path, reads_and_writes)
    player = open_replay(f"replay:{path}")
    assert player.region(1).size == 8192
    assert player.region(99).size == 0
    with pytest.raises(HostError):
        player.map(1, Area(0, 4096))
    with pytest.raises(UsageError):
        player.read(CONFIG_REGION, 254, 4)
    player.close()
