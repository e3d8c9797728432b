"""Stores, loads and whole BARs, on memory mapped like a BAR."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter_ns

from rcdrv.address import open_function
from rcdrv.epf_test.bars import bar_test, chunks
from rcdrv.epf_test.driver import EpfTest
from rcdrv.mmio import MappedWindow
from tools.bench.measure import Kind, Row, Target, compared, in_turns, statement
from tools.bench.native import Native

OFFSET = 0xA0
BAR = 1
_TEST = "with a register read, a message over the socket, and checks for cancellation"


def rows(native: Native, *, quick: bool) -> Iterator[Row]:
    """Measure single accesses, a burst, and a BAR of 1 MiB of the software endpoint."""
    yield from _single(native, 4000 if quick else 20_000, 15 if quick else 61)
    yield from _bar(native, 9 if quick else 41)


def _single(native: Native, count: int, rounds: int) -> Iterator[Row]:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    window = MappedWindow(mmap.mmap(-1, mmap.PAGESIZE))
    view = memoryview(memory).cast("I")
    names = {"view": view, "register": window.register32(OFFSET), "window": window}

    def burst() -> float:
        start = perf_counter_ns()
        window.burst32(OFFSET, 5, count)
        return (perf_counter_ns() - start) / count

    contestants: dict[str, Callable[[], float]] = {
        "bare store": statement(f"view[{OFFSET // 4}] = 5", names, count),
        "bare load": statement(f"view[{OFFSET // 4}]", names, count),
        "store": statement("register[0] = 5", names, count),
        "load": statement("register[0]", names, count),
        "write32": statement(f"window.write32({OFFSET}, 5)", names, count),
        "burst": burst,
        "C stores": lambda: native.stores(memory, 64 * count),
        "C loads": lambda: native.loads(memory, 64 * count),
    }
    found = in_turns(contestants, rounds)
    bare = "bare memoryview store"
    twice = Target(Kind.TIMES, 2.0)
    yield compared(
        "checked store, register[0] = value", "ns", found["store"], bare, found["bare store"], twice
    )
    yield compared(
        "checked load, register[0]",
        "ns",
        found["load"],
        "bare memoryview load",
        found["bare load"],
        twice,
    )
    yield compared(
        "checked store, window.write32()",
        "ns",
        found["write32"],
        bare,
        found["bare store"],
        None,
        "a Python method with two checks costs more than the store; code that rings or reads often"
        " uses register32()",
    )
    yield compared("the same, register[0]", "ns", found["store"], "C's store", found["C stores"])
    yield compared(
        "each store of a burst",
        "ns",
        found["burst"],
        "C's store",
        found["C stores"],
        Target(Kind.MORE, 25.0),
    )


def _bar(native: Native, rounds: int) -> Iterator[Row]:
    """Measure the kselftest's BAR_TEST and the same in C, on one mapping."""
    with open_function("sim:rk3588") as function:
        driver = EpfTest(function)
        (area,) = function.device.region(BAR).areas
        mapping = function.device.map(BAR, area)
        mebibytes = len(mapping) / (1 << 20)

        window = function.bar(BAR)

        def bulk() -> None:
            for offset, length in chunks(window.size):
                window.fill(offset, length, 0xA0 + BAR)
                assert window.read_block(offset, length) == bytes([0xA0 + BAR]) * length

        def per_mebibyte(operation: Callable[[], object]) -> float:
            start = perf_counter_ns()
            operation()
            return (perf_counter_ns() - start) / mebibytes / 1e3

        found = in_turns(
            {
                "bulk": partial(per_mebibyte, bulk),
                "test": partial(per_mebibyte, partial(bar_test, BAR, driver)),
                "C": lambda: native.fill_and_verify(mapping, 0xA0 + BAR) / mebibytes / 1e3,
            },
            rounds,
        )
    against = "C, the same mapping"
    yield compared(
        "BAR fill + verify, per MiB",
        "us",
        found["bulk"],
        against,
        found["C"],
        Target(Kind.RATE, 0.7),
        "each chunk of 64 KiB is also created, copied and compared",
    )
    yield compared("BAR_TEST of 1 MiB", "us", found["test"], against, found["C"], None, _TEST)
