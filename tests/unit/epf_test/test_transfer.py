"""The transfers against endpoints that write where they should not."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.transfer import Direction, Placement, transfer_test
from rcdrv.function import Function
from rcdrv.sim.epf_test.function import SimEpfTest
from rcdrv.verdict import NotPassed, Reason
from tests.unit.epf_test.virtual import endpoint

PAGE = 4096


def message(direction: Direction, *placements: Placement) -> str:
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        with pytest.raises(NotPassed) as caught:
            transfer_test(direction, False, lambda _driver: placements, EpfTest(function))
        assert caught.value.reason is Reason.DATA_MISMATCH
        return caught.value.message


def spoil(patch: pytest.MonkeyPatch, offset: int, size: int) -> None:
    """With the data of this size the endpoint writes one byte more, so far from their first one."""
    store = SimEpfTest._store

    def careless(self: Any, address: int, data: bytes) -> Generator[float, None, None]:
        yield from store(self, address, data)
        if len(data) == size:
            self._controller.write_host(address + offset, b"\x01")

    patch.setattr(SimEpfTest, "_store", careless)


@pytest.mark.parametrize("direction", [Direction.READ, Direction.COPY])
@pytest.mark.parametrize(
    ("placement", "offset"),
    [
        pytest.param(Placement(1024, 8), -1, id="before"),
        pytest.param(Placement(1024, PAGE + 8), -PAGE, id="a-page-before"),
        pytest.param(Placement(1024, 8), 1024, id="behind"),
        pytest.param(Placement(1025), 1025, id="behind-an-odd-size"),
        pytest.param(Placement(1024), PAGE - 1, id="last-byte-of-the-page"),
    ],
)
def test_a_byte_beside_the_buffer_is_found_and_named(
    monkeypatch: pytest.MonkeyPatch, direction: Direction, placement: Placement, offset: int
) -> None:
    spoil(monkeypatch, offset, placement.size)
    at = placement.shift + offset
    found = message(direction, placement)
    assert found.startswith(f"{direction.value} of {placement.size} bytes")
    assert found.endswith(f"outside of the buffer, at {at:#x}")


@pytest.mark.parametrize(
    ("sizes", "spoiled"),
    [
        pytest.param((1024, 8 * PAGE), 1024, id="where-a-later-one-goes"),
        pytest.param((8 * PAGE, 1024), 1024, id="where-an-earlier-one-went"),
        pytest.param((1024, 2048, 8 * PAGE), 2048, id="in-between"),
    ],
)
@pytest.mark.parametrize("direction", [Direction.READ, Direction.COPY])
def test_a_byte_further_off_is_found_whatever_else_goes_there(
    monkeypatch: pytest.MonkeyPatch, direction: Direction, sizes: tuple[int, ...], spoiled: int
) -> None:
    spoil(monkeypatch, 0x5000, spoiled)
    found = message(direction, *(Placement(size) for size in sizes))
    assert direction.value in found
    assert found.endswith("outside of the buffer, at 0x5000")


@pytest.mark.parametrize("direction", Direction)
def test_good_transfers_of_all_kinds_leave_nothing_to_find(direction: Direction) -> None:
    placements = [Placement(*one) for one in ((1024,), (1024, 8), (8 * PAGE, 4), (1,), (1025, 3))]
    with endpoint("generic") as device, Function(device.attach(), clock=device.clock) as function:
        driver = EpfTest(function)
        assert transfer_test(direction, False, lambda _driver: placements * 2, driver)
