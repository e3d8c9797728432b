"""The figures of tools/bench are held against each other as they should be."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.epf_test.driver import EpfTest
from tools.bench import ideal, native, render
from tools.bench.measure import NO_SLOWER, Cost, Kind, Target, compared, in_turns, statement

figures = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30)


def test_contestants_take_turns_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []

    def contestant(name: str) -> float:
        order.append(name)
        return len(order)

    found = in_turns({"one": lambda: contestant("one"), "two": lambda: contestant("two")}, 3)
    assert order == ["one", "two"] * 4
    assert found == {"one": [3, 5, 7], "two": [4, 6, 8]}


@given(theirs=figures, factor=st.floats(0.01, 100), kind=st.sampled_from(Kind))
def test_a_factor_is_found_when_each_had_a_round_that_nothing_disturbed(
    theirs: list[float], factor: float, kind: Kind
) -> None:
    ours = [factor * min(theirs), *(factor * figure * 3 for figure in theirs[1:])]
    row = compared("it", "us", ours, "that", theirs, Target(kind, 1.0))
    expected = {
        Kind.TIMES: factor,
        Kind.RATE: 1 / factor,
        Kind.MORE: (factor - 1) * min(theirs),
    }[kind]
    assert row.figure == pytest.approx(expected)
    assert row.ours == pytest.approx(factor * row.theirs)


@pytest.mark.parametrize(
    ("target", "ours", "verdict"),
    [
        (NO_SLOWER, 10.0, "met"),
        (NO_SLOWER, 10.1, "not met"),
        (Target(Kind.RATE, 0.5), 20.0, "met"),
        (Target(Kind.RATE, 0.5), 20.1, "not met"),
        (Target(Kind.MORE, 5.0), 15.0, "met"),
        (Target(Kind.MORE, 5.0), 15.1, "not met"),
        (None, 1e9, ""),
    ],
)
def test_a_target_is_met_up_to_its_limit(target: Target | None, ours: float, verdict: str) -> None:
    row = compared("it", "us", [ours], "that", [10.0], target, "because it is slow")
    assert row.verdict == verdict
    text = render.table([row])
    assert ("not met" in text) == (verdict == "not met")
    assert ("because it is slow" in text) == (verdict != "met")


def test_a_statement_runs_as_often_as_it_says_with_the_names_it_is_given() -> None:
    seen: list[int] = []
    measured = statement("seen.append(value)", {"seen": seen, "value": 7}, 64)
    assert measured() > 0
    assert seen == [7] * 64


def test_the_document_has_what_the_table_has() -> None:
    row = compared("it", "us", [20.0], "that", [10.0], NO_SLOWER, "it is slow")
    document = render.document([row], [Cost("growing", 4096, 1.5, "us")], (0.5, 0.7))
    (entry,) = document["rows"]
    assert (entry["ours"], entry["theirs"], entry["figure"], entry["met"]) == (20, 10, 2, False)
    assert entry["target"] == "at most 1 x"
    assert document["growth"] == [{"what": "growing", "size": 4096, "cost": 1.5, "unit": "us"}]
    assert render.growth([Cost("growing", 4096, 1.5, "us")]) == "growing (us)\n    4K: 1.50\n"


def test_the_loops_of_c_access_what_they_are_given(tmp_path: Path) -> None:
    loops = native.Native(native.build(tmp_path))
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    assert loops.fill_and_verify(memory, 0xA1) > 0
    assert memory[:] == b"\xa1" * mmap.PAGESIZE
    assert loops.stores(memory, 10) > 0
    assert memory[:8] == b"\5\0\0\0\xa1\xa1\xa1\xa1"
    assert loops.loads(memory, 10) > 0


def test_c_counts_a_ring_that_is_not_answered(tmp_path: Path) -> None:
    loops = native.Native(native.build(tmp_path))
    bar, registers = mmap.mmap(-1, mmap.PAGESIZE), bytearray(64)
    with pytest.raises(AssertionError, match="not answered"):
        loops.rings(bar, 0xA0, 9, registers, -1, native.Native.POLL, 1)
    assert bar[0xA0:0xA4] == b"\x09\0\0\0"
    assert registers[0x24] == 1  # IRQ_TYPE is MSI


@pytest.mark.parametrize("irq", [IrqChoice.MSI, IrqChoice.POLL])
def test_the_ideal_endpoint_is_rung_as_any_other(tmp_path: Path, irq: IrqChoice) -> None:
    loops = native.Native(native.build(tmp_path))
    with ideal.function(loops) as function:
        driver = EpfTest(function, irq=irq)
        with Doorbell(driver) as doorbell:
            assert str(doorbell.location) == "BAR1+0x0 data 0x00000001"
            for _ in range(3):
                assert doorbell.judge(doorbell.ring()) is None
        assert not doorbell.left_enabled
