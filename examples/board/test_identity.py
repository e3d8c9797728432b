"""It is the board that we think it is, and what it announces is what it has."""

import board
import pytest

import rcdrv


def test_it_is_this_part(endpoint: rcdrv.Endpoint) -> None:
    assert endpoint.info()["part"] == board.PART


def test_what_is_announced_can_be_had(endpoint: rcdrv.Endpoint) -> None:
    """CAPS says MSI and MSI-X exactly where config space has them."""
    announced = endpoint.driver.caps
    assert (endpoint.lacks("msi") is None) == bool(announced & rcdrv.Caps.MSI)
    assert (endpoint.lacks("msix") is None) == bool(announced & rcdrv.Caps.MSIX)


@pytest.mark.rcdrv_needs("bar2")
def test_a_bar_is_memory_of_its_own(endpoint: rcdrv.Endpoint) -> None:
    """Every width reaches the same bytes, in little-endian order."""
    memory = endpoint.bar(2)
    before = memory.read_block(0x40, 8)
    memory.write64(0x40, 0x8877665544332211)
    assert [memory.read8(0x40 + index) for index in range(8)] == [
        0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,
    ]  # fmt: skip
    assert memory.read16(0x42) == 0x4433
    assert memory.read32(0x44) == 0x88776655
    memory.write_block(0x40, before)


def test_the_function_survives_a_reset(function: rcdrv.Function) -> None:
    if not function.device.can_reset():
        pytest.skip("the function has no reset")
    command = function.config.command
    function.reset()
    function.check_alive()
    assert function.config.command == command
