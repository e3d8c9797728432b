"""What a BAR shows of its memory: never a byte lost, whatever is shown in between."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.sim.memory import REGISTERS, STRAIGHT, BarMemory

SIZE = 64 << 10
SWAPPED = (1, 0)


@pytest.fixture
def memory() -> Iterator[BarMemory]:
    bar = BarMemory(2, SIZE)
    yield bar
    bar.close()


orders = st.sampled_from([STRAIGHT, SWAPPED, REGISTERS, (0, 1), (3, 1, 0, 2)])
stretches = st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=3 * 4096)).map(
    lambda pair: (pair[0], pair[1][: SIZE - pair[0]])
)


@given(st.lists(stretches, max_size=4), st.lists(orders, max_size=8))
def test_memory_comes_back(contents: list[tuple[int, bytes]], shown: list[tuple[int, ...]]) -> None:
    bar = BarMemory(0, SIZE)
    for offset, data in contents:
        bar.write(offset, data)
    before = bar.read(0, SIZE)
    for order in shown:
        assert bar.show(order) is None
        if order == REGISTERS:
            assert not any(bar.read(0, SIZE))
    bar.show(STRAIGHT)
    assert bar.read(0, SIZE) == before
    bar.close()


@given(stretches, stretches)
def test_swapping_is_an_involution(one: tuple[int, bytes], other: tuple[int, bytes]) -> None:
    bar = BarMemory(0, SIZE)
    bar.write(*one)
    before = bar.read(0, SIZE)
    bar.show(SWAPPED)
    assert bar.read(0, SIZE) == before[SIZE // 2 :] + before[: SIZE // 2]
    bar.write(*other)
    seen = bar.read(0, SIZE)
    bar.show(STRAIGHT)
    assert bar.read(0, SIZE) == seen[SIZE // 2 :] + seen[: SIZE // 2]
    bar.close()


def test_a_mapping_made_before_sees_what_is_shown_now(memory: BarMemory) -> None:
    with mmap.mmap(memory.fd, SIZE) as client:
        client[SIZE - 4 :] = b"mine"
        memory.show(REGISTERS)
        assert client[SIZE - 4 :] == bytes(4)
        memory.show(SWAPPED)
        assert client[SIZE // 2 - 4 : SIZE // 2] == b"mine"
        memory.show(STRAIGHT)
        assert client[SIZE - 4 :] == b"mine"


def test_writes_while_the_memory_is_hidden_are_found_and_dropped(memory: BarMemory) -> None:
    memory.write(0x5000, b"keep")
    memory.show(REGISTERS)
    with mmap.mmap(memory.fd, SIZE) as client:
        client[0x5001:0x5003] = b"no"
    assert memory.show(STRAIGHT) == 0x5001
    assert memory.read(0x5000, 4) == b"keep"


def test_fill_reaches_memory_wherever_it_is_shown(memory: BarMemory) -> None:
    half = SIZE // 2
    memory.show(SWAPPED)
    memory.fill(0, half, 0x11)
    memory.fill(half, half, 0x22)
    assert memory.read(0, SIZE) == b"\x22" * half + b"\x11" * half
    memory.show(REGISTERS)
    memory.fill(0, half, 0x33)
    assert memory.show(STRAIGHT) is None
    assert memory.read(0, SIZE) == b"\x33" * half + b"\x22" * half


@pytest.mark.parametrize("size", [16, 256, 4096, 64 << 30])
def test_any_size(size: int) -> None:
    bar = BarMemory(0, size)
    bar.write(size - 4, b"last")
    bar.show(REGISTERS)
    bar.show(STRAIGHT)
    assert bar.read(size - 4, 4) == b"last"
    assert os.fstat(bar.fd).st_blocks * 512 <= 1 << 20
    bar.close()


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    bar = BarMemory(0, SIZE)
    for order in (REGISTERS, SWAPPED, STRAIGHT, REGISTERS):
        bar.show(order)
    bar.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
