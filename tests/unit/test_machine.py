"""The copy word by word, as machine code and without it. That each word is touched once with one
access is shown where somebody sees the accesses: in the guests of tests/lab."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv import machine

COPIES = [
    pytest.param(machine.copy_words, id="best"),
    pytest.param(machine._copy_items, id="items"),
]
SIZE = 4096


@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("copy", COPIES)
@given(words=st.integers(0, 64), at=st.integers(0, 64), odd=st.integers(0, 3), data=st.data())
def test_just_these_words_are_copied(
    copy: machine.Copy, step: int, words: int, at: int, odd: int, data: st.DataObject
) -> None:
    memory = mmap.mmap(-1, SIZE)
    before = os.urandom(SIZE)
    memory[:] = before
    content = data.draw(st.binary(min_size=step * words + odd, max_size=step * words + odd))
    first, end = step * at, step * (at + words)
    with memoryview(memory) as device:
        with device[first:end] as target:
            copy(target, memoryview(content)[odd:], step)
        assert memory[:] == before[:first] + content[odd:] + before[end:]
        out = bytearray(SIZE + odd)
        with memoryview(out) as room:
            copy(room[odd:], device, step)
        assert out == bytes(odd) + memory[:]
    memory.close()  # nothing has kept a hold of it


def test_this_processor_has_it_as_machine_code_if_any_does() -> None:
    known = bool(machine._instructions(machine._COPY))
    assert (machine._copier() is machine._copy_items) != known


def test_without_executable_pages_items_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_executable", lambda *_arguments: None)
    assert machine._copier.__wrapped__() is machine._copy_items


@pytest.mark.parametrize(
    ("processor", "bits", "number"),
    # From arch/*/**/syscall*.tbl and asm-generic/unistd.h.
    [("aarch64", 64, 283), ("loongarch64", 64, 283), ("ppc64le", 64, 365), ("armv7l", 32, 389)],
)
def test_without_machine_code_the_barrier_is_the_kernels(
    monkeypatch: pytest.MonkeyPatch, processor: str, bits: int, number: int
) -> None:
    calls: list[tuple[int, ...]] = []
    libc = SimpleNamespace(syscall=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(machine, "_executable", lambda *_arguments: None)
    monkeypatch.setattr(machine, "_HOST_BITS", bits)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("", "", "", "", processor)))
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: libc)
    machine._barrier.__wrapped__()()
    assert calls == [(number, 1, 0, 0)]  # MEMBARRIER_CMD_GLOBAL


@pytest.mark.parametrize("processor", ["x86_64", "aarch64", "riscv64"])
def test_a_32_bit_python_on_a_64_bit_kernel_gets_no_64_bit_instructions(
    monkeypatch: pytest.MonkeyPatch, processor: str
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("", "", "", "", processor)))
    tables = (machine._COPY64 | machine._BARRIER, machine._COPY | machine._BARRIER)
    assert all(map(machine._instructions, tables))
    monkeypatch.setattr(machine, "_HOST_BITS", 32)
    assert not any(map(machine._instructions, tables))
    assert machine._copier.__wrapped__() is machine._copy_items


@pytest.mark.parametrize(
    ("target", "source", "step"), [(8, 4, 4), (4, 8, 4), (3, 3, 4), (0, 1, 4), (12, 12, 8)]
)
def test_what_does_not_fit_is_refused(target: int, source: int, step: int) -> None:
    with pytest.raises(ValueError, match=f"{source} bytes"):
        machine.copy_words(memoryview(bytearray(target)), memoryview(bytes(source)), step)


@pytest.mark.parametrize(
    ("processor", "code"),
    [("aarch64", "9f3f03d5 c0035fd6"), ("riscv64", "0f00f00f 67800000"), ("x86_64", None)],
)
def test_the_barrier_of_each_processor(
    monkeypatch: pytest.MonkeyPatch, processor: str, code: str | None
) -> None:
    compiled: list[str] = []

    def executable(code: str) -> Callable[[], None]:
        compiled.append(code)
        return barrier

    monkeypatch.setattr(machine, "_executable", executable)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("", "", "", "", processor)))

    def barrier() -> None:
        """Stand in for the code."""

    found = machine._barrier.__wrapped__()
    assert compiled == ([code] if code else [])
    assert found is (barrier if code else machine._nothing)


def test_this_processors_barrier_returns() -> None:
    machine._barrier.cache_clear()
    machine.barrier()
    assert machine._barrier.cache_info().misses == 1
    machine.barrier()
    assert machine._barrier.cache_info().hits == 1
