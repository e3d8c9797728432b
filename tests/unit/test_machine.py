"""The copy word by word, as machine code and without it. That each word is touched once with one
access is shown where somebody sees the accesses: in the guests of tests/lab."""

from __future__ import annotations

import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv import machine

COPIES = [
    pytest.param(machine.copy_words, id="best"),
    pytest.param(machine._copy_items, id="items"),
]
SIZE = 4096


@pytest.mark.parametrize("copy", COPIES)
@given(words=st.integers(0, 64), at=st.integers(0, 64), odd=st.integers(0, 3), data=st.data())
def test_just_these_words_are_copied(
    copy: machine.Copy, words: int, at: int, odd: int, data: st.DataObject
) -> None:
    memory = mmap.mmap(-1, SIZE)
    before = os.urandom(SIZE)
    memory[:] = before
    content = data.draw(st.binary(min_size=4 * words + odd, max_size=4 * words + odd))
    first, end = 4 * at, 4 * (at + words)
    with memoryview(memory) as device:
        with device[first:end] as target:
            copy(target, memoryview(content)[odd:])
        assert memory[:] == before[:first] + content[odd:] + before[end:]
        out = bytearray(SIZE + odd)
        with memoryview(out) as room:
            copy(room[odd:], device)
        assert out == bytes(odd) + memory[:]
    memory.close()  # nothing has kept a hold of it


def test_this_processor_has_it_as_machine_code() -> None:
    if os.uname().machine in machine._COPY:
        assert machine._copier() is not machine._copy_items


def test_without_executable_pages_items_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_executable", lambda *_arguments: None)
    assert machine._copier.__wrapped__() is machine._copy_items
    here = os.uname().machine
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("", "", "", "", "aarch64")))
    barrier = machine._barrier.__wrapped__()
    assert barrier is not machine._nothing
    if here == "aarch64":  # elsewhere the number is that of another call
        barrier()


@pytest.mark.parametrize("processor", ["x86_64", "aarch64", "riscv64"])
def test_a_32_bit_python_on_a_64_bit_kernel_gets_no_64_bit_instructions(
    monkeypatch: pytest.MonkeyPatch, processor: str
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("", "", "", "", processor)))
    assert machine._instructions(machine._COPY | machine._BARRIER)
    monkeypatch.setattr(machine, "_HOST_BITS", 32)
    assert not machine._instructions(machine._COPY | machine._BARRIER)
    assert machine._copier.__wrapped__() is machine._copy_items


@pytest.mark.parametrize(("target", "source"), [(8, 4), (4, 8), (3, 3), (0, 1)])
def test_what_does_not_fit_is_refused(target: int, source: int) -> None:
    with pytest.raises(ValueError, match=f"{source} bytes"):
        machine.copy_words(memoryview(bytearray(target)), memoryview(bytes(source)))


def test_the_barrier_can_be_called() -> None:
    machine.barrier()
    machine.barrier()
