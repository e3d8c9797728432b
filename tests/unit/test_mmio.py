"""Windows: the right bytes, in accesses of the right width, each exactly once."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv import mmio
from rcdrv.errors import AccessError, EndpointError
from rcdrv.mmio import MappedWindow, SplitWindow, TrappedWindow, Window, first_difference

SIZE = 0x1000


class Recorder:
    """A region that notes every request."""

    def __init__(self, size: int) -> None:
        self.memory = bytearray(size)
        self.log: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.log.append(("read", offset, size))
        return bytes(self.memory[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.log.append(("write", offset, len(data)))
        self.memory[offset : offset + len(data)] = data


def mapped() -> MappedWindow:
    return MappedWindow(mmap.mmap(-1, SIZE))


def trapped() -> TrappedWindow:
    recorder = Recorder(SIZE)
    return TrappedWindow(recorder.read, recorder.write, SIZE)


def split() -> SplitWindow:
    """Trapped, mapped, trapped, mapped: every kind of seam, at odd places too."""
    return SplitWindow(
        trapped(),
        [
            (0x100, MappedWindow(mmap.mmap(-1, SIZE), 0x400)),
            (0xC00, MappedWindow(mmap.mmap(-1, SIZE), 0x400)),
        ],
    )


WINDOWS = [mapped, trapped, split]
windows = pytest.mark.parametrize("make", WINDOWS)


@windows
@given(
    width=st.sampled_from(mmio.WIDTHS), index=st.integers(0, SIZE // 8 - 1), value=st.integers(0)
)
def test_what_is_written_is_read_back_little_endian(
    make: Callable[[], Window], width: int, index: int, value: int
) -> None:
    window = make()
    offset, value = index * width // 8, value % (1 << width)
    window.write(width, offset, value)
    assert window.read(width, offset) == value
    assert window.read_block(offset, width // 8) == value.to_bytes(width // 8, "little")
    window.close()


@windows
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", ">u4", "<i8", "<f8"])
def test_an_array_is_a_copy_of_elements(make: Callable[[], Window], dtype: str) -> None:
    window, data = make(), random.Random(dtype).randbytes(SIZE)
    window.write_block(0, data)
    step = np.dtype(dtype).itemsize
    found = window.array(8 * step, 40, dtype)
    assert found.dtype == np.dtype(dtype)
    assert found.tobytes() == data[8 * step : 48 * step]
    window.fill(0, SIZE, 0)
    assert found.tobytes() == data[8 * step : 48 * step]
    for offset, count, kind in [(1, 1, "<u4"), (SIZE, 1, "u1"), (0, SIZE, "<u2"), (0, 1, "V3")]:
        with pytest.raises(AccessError):
            window.array(offset, count, kind)
    window.close()


@pytest.mark.parametrize("width", mmio.WIDTHS)
def test_an_element_of_an_array_is_one_access_of_its_width(width: int) -> None:
    recorder, step = Recorder(SIZE), width // 8
    TrappedWindow(recorder.read, recorder.write, SIZE).array(0x40, 5, f"<u{step}")
    assert recorder.log == [("read", 0x40 + index * step, step) for index in range(5)]


@windows
@given(width=st.sampled_from(mmio.WIDTHS), offset=st.integers(-SIZE, 2 * SIZE))
def test_accesses_outside_or_unaligned_are_refused(
    make: Callable[[], Window], width: int, offset: int
) -> None:
    window = make()
    step = width // 8
    if offset % step == 0 and 0 <= offset <= SIZE - step:
        window.read(width, offset)
        window.write(width, offset, 0)
    else:
        with pytest.raises(AccessError):
            window.read(width, offset)
        with pytest.raises(AccessError):
            window.write(width, offset, 0)
        if width == 32:
            with pytest.raises(AccessError):
                window.read32(offset)
            with pytest.raises(AccessError):
                window.write32(offset, 0)
    window.close()


@windows
@pytest.mark.parametrize("width", mmio.WIDTHS)
@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_values_that_do_not_fit_are_refused(
    make: Callable[[], Window], width: int, value: int
) -> None:
    window = make()
    with pytest.raises(AccessError, match="does not fit"):
        window.write(width, 0, value)
    with pytest.raises(AccessError, match="does not fit"):
        window.write32(0, value)
    assert window.read64(0) == 0
    window.close()


@windows
@given(offset=st.integers(-SIZE, 2 * SIZE), value=st.integers(0, (1 << 32) - 1))
def test_a_register_is_the_word_at_its_offset_and_checked_beforehand(
    make: Callable[[], Window], offset: int, value: int
) -> None:
    window = make()
    if offset % 4 or not 0 <= offset < SIZE:
        with pytest.raises(AccessError):
            window.register32(offset)
        with pytest.raises(AccessError):
            window.burst32(offset, value, 1)
    else:
        register = window.register32(offset)
        register[0] = value
        assert window.read32(offset) == register[0] == value
        for wrong in (-1, 1 << 32):
            with pytest.raises((AccessError, ValueError)):
                register[0] = wrong
            with pytest.raises(AccessError):
                window.burst32(offset, wrong, 1)
        assert window.read32(offset) == value
    window.close()


@windows
@given(index=st.integers(0, SIZE // 4 - 1), count=st.integers(-1, 40), value=st.integers(1, 9))
def test_a_burst_writes_one_word_and_no_other(
    make: Callable[[], Window], index: int, count: int, value: int
) -> None:
    window = make()
    window.burst32(4 * index, value, count)
    expected = bytearray(SIZE)
    expected[4 * index] = value if count > 0 else 0
    assert window.read_block(0, SIZE) == expected
    window.close()


@given(count=st.integers(0, 40))
def test_a_burst_is_as_many_requests_as_it_says(count: int) -> None:
    region = Recorder(SIZE)
    TrappedWindow(region.read, region.write, SIZE).burst32(0x40, 1, count)
    assert region.log == [("write", 0x40, 4)] * count


def test_a_register_dies_with_its_window() -> None:
    for window in (mapped(), trapped(), split()):
        register = window.register32(0x104)
        window.close()
        with pytest.raises((AccessError, ValueError)):
            register[0] = 1
        with pytest.raises((AccessError, ValueError)):
            _ = register[0]


@windows
@given(
    offset=st.integers(0, SIZE),
    data=st.binary(max_size=SIZE) | st.integers(0, SIZE).map(lambda size: bytes(range(256)) * 16),
)
def test_blocks_go_in_and_out_unchanged_and_touch_nothing_else(
    make: Callable[[], Window], offset: int, data: bytes
) -> None:
    window = make()
    data = data[: SIZE - offset]
    window.fill(0, SIZE, 0xEE)
    window.write_block(offset, data)
    assert window.read_block(offset, len(data)) == data
    assert window.read_block(0, SIZE) == b"\xee" * offset + data + b"\xee" * (
        SIZE - offset - len(data)
    )
    window.close()


@windows
@given(offset=st.integers(0, SIZE), size=st.integers(-1, SIZE + 1))
def test_blocks_outside_are_refused(make: Callable[[], Window], offset: int, size: int) -> None:
    window = make()
    if size >= 0 and offset + size <= SIZE:
        assert window.read_block(offset, size) == bytes(size)
    else:
        with pytest.raises(AccessError):
            window.read_block(offset, size)
        with pytest.raises(AccessError):
            window.fill(offset, size, 0)
    window.close()


@pytest.mark.parametrize("messages", [False, True])
@pytest.mark.parametrize("bulk", [32, 64])
@given(offset=st.integers(0, SIZE), size=st.integers(0, SIZE))
def test_bulk_touches_every_byte_once_and_every_word_aligned(
    bulk: int, messages: bool, offset: int, size: int
) -> None:
    size = min(size, SIZE - offset)
    region = Recorder(SIZE)
    window = TrappedWindow(region.read, region.write, SIZE, messages=messages)
    assert window.widen() is (bulk == 64) or bulk == 32
    window.bulk = bulk
    region.log.clear()
    window.read_block(offset, size)
    window.write_block(offset, bytes(size))
    for kind in ("read", "write"):
        touched = [0] * SIZE
        for entry, start, length in region.log:
            if entry == kind:
                # One request is a run of words: of 4 or 8 bytes, or one of 2 or 1. The kernel
                # takes 8 of it at once where it can.
                width = next((step for step in (8, 4) if length % step == 0), length)
                assert width in (1, 2, 4, 8)
                assert start % width == 0 or messages
                assert bulk == 64 or length <= 4 or (messages and length > 8)
                for byte in range(start, start + length):
                    touched[byte] += 1
        assert touched == [int(offset <= byte < offset + size) for byte in range(SIZE)]


@given(
    data=st.binary(min_size=1, max_size=SIZE),
    where=st.integers(0, SIZE - 1),
    flip=st.integers(1, 255),
)
def test_the_first_difference_is_found(data: bytes, where: int, flip: int) -> None:
    where %= len(data)
    wrong = bytearray(data)
    wrong[where] ^= flip
    wrong[-1] ^= flip if where != len(data) - 1 else 0
    assert first_difference(data, wrong) == where


def test_in_the_other_byte_order_every_way_to_a_register_swaps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mmio, "_BIG_ENDIAN", not mmio._BIG_ENDIAN)
    window = mapped()
    window.write(32, 0, 0x11223344)
    window.write32(4, 0x11223344)
    window.register32(8)[0] = 0x11223344
    window.burst32(12, 0x11223344, 9)
    assert window.read_block(0, 16) == window.read_block(0, 4) * 4
    for offset in range(0, 16, 4):
        assert window.read32(offset) == window.read(32, offset) == 0x11223344
        assert window.register32(offset)[0] == 0x11223344
    for offset in (-4, SIZE):
        with pytest.raises(AccessError):
            window.read32(offset)
        with pytest.raises(AccessError):
            window.write32(offset, 0)
    window.close()


def test_a_single_access_is_one_request_of_its_width() -> None:
    region = Recorder(SIZE)
    window = TrappedWindow(region.read, region.write, SIZE)
    for width in mmio.WIDTHS:
        region.log.clear()
        window.write(width, 0x40, 1)
        window.read(width, 0x40)
        assert region.log == [("write", 0x40, width // 8), ("read", 0x40, width // 8)]


def test_a_posted_write_is_one_request_where_nothing_is_mapped() -> None:
    region, posted = Recorder(SIZE), Recorder(SIZE)
    part = MappedWindow(mmap.mmap(-1, SIZE), 0x800)
    window = SplitWindow(
        TrappedWindow(region.read, region.write, SIZE, post=posted.write), [(0x400, part)]
    )
    window.post32(0x3FC, 1)
    window.post32(0x400, 2)
    assert (region.log, posted.log) == ([], [("write", 0x3FC, 4)])
    assert part.read32(0) == 2
    for offset, value in ((0x3FD, 0), (SIZE, 0), (0, 1 << 32)):
        with pytest.raises(AccessError):
            window.post32(offset, value)
    window.close()
    TrappedWindow(region.read, region.write, SIZE).post32(0, 1)
    assert region.log == [("write", 0, 4)]


def test_a_split_window_traps_exactly_what_is_not_mapped() -> None:
    region = Recorder(SIZE)
    part = MappedWindow(mmap.mmap(-1, SIZE), 0x800)
    window = SplitWindow(TrappedWindow(region.read, region.write, SIZE), [(0x400, part)])
    window.write32(0x3FC, 1)
    window.write32(0x400, 2)
    window.write32(0xBFC, 3)
    window.write32(0xC00, 4)
    assert region.log == [("write", 0x3FC, 4), ("write", 0xC00, 4)]
    assert (part.read32(0), part.read32(0x7FC)) == (2, 3)
    window.close()


@windows
def test_a_closed_window_refuses_and_may_be_closed_again(make: Callable[[], Window]) -> None:
    window = make()
    window.close()
    window.close()
    for access in (lambda: window.read32(0), lambda: window.write32(0, 0)):
        with pytest.raises((AccessError, ValueError)):
            access()


# -- 64-bit words ---------------------------------------------------------------------------------


class Torn(Recorder):
    """A region whose 64-bit accesses do not arrive whole."""

    def __init__(self, how: str) -> None:
        super().__init__(SIZE)
        self.how = how

    def read(self, offset: int, size: int) -> bytes:
        data = super().read(offset, size)
        if size == 8:
            if self.how == "read refused":
                raise EndpointError("a read of 8 bytes")
            data = {
                "high half read as low": data[:4] * 2,
                "high half reads all ones": data[:4] + b"\xff" * 4,
                "halves swapped": data[4:] + data[:4],
            }.get(self.how, data)
        return data

    def write(self, offset: int, data: bytes) -> None:
        if len(data) == 8:
            if self.how == "write refused":
                raise EndpointError("a write of 8 bytes")
            data = {
                "high half dropped": data[:4],
                "low half dropped": bytes(self.memory[offset : offset + 4]) + data[4:],
                "halves swapped": data[4:] + data[:4],
            }.get(self.how, data)
        super().write(offset, data)


@pytest.mark.parametrize(
    "how",
    [
        "high half read as low",
        "high half reads all ones",
        "high half dropped",
        "low half dropped",
        "halves swapped",
        "read refused",
        "write refused",
    ],
)
def test_a_region_that_tears_64_bits_gets_words_of_32(how: str) -> None:
    region = Torn(how)
    window = TrappedWindow(region.read, region.write, SIZE)
    assert not window.widen(0x40)
    assert window.bulk == 32
    assert {start // 8 for _, start, _ in region.log} <= {8}
    window.write_block(0, bytes(range(64)))
    assert window.read_block(0, 64) == bytes(range(64))


@windows
def test_after_the_probe_blocks_are_as_before(make: Callable[[], Window]) -> None:
    window = make()
    assert window.widen(0x10)
    assert window.bulk == 64
    data = random.Random(1).randbytes(SIZE)
    for offset, size in [(0, SIZE), (4, 100), (12, 4), (1, 30), (0, 0), (8, 8), (SIZE - 12, 12)]:
        window.fill(0, SIZE, 0xEE)
        window.write_block(offset, data[:size])
        assert window.read_block(offset, size) == data[:size]
        rest = b"\xee" * offset + data[:size] + b"\xee" * (SIZE - offset - size)
        assert window.read_block(0, SIZE) == rest
    window.close()


def test_a_32_bit_host_has_words_of_32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmio, "_HOST_BITS", 32)
    region = Recorder(SIZE)
    assert not TrappedWindow(region.read, region.write, SIZE).widen()
    assert not region.log
