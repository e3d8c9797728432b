"""Config space: what a good one says, and that a bad one neither hangs nor crashes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv import parts, pci
from rcdrv.errors import EndpointError
from rcdrv.mmio import TrappedWindow
from rcdrv.pci import CapId, Command, ConfigSpace, ExtCapId


class Bytes:
    """Config space as plain bytes."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data


def config(patches: dict[int, bytes], size: int = 4096) -> ConfigSpace:
    data = bytearray(size)
    for offset, patch in patches.items():
        data[offset : offset + len(patch)] = patch
    memory = Bytes(data)
    return ConfigSpace(TrappedWindow(memory.read, memory.write, size))


def caps(*entries: tuple[int, int, bytes]) -> dict[int, bytes]:
    """A classic list of (offset, id, body behind the next pointer)."""
    patches = {0x06: b"\x10", 0x34: bytes([entries[0][0]])}
    for index, (offset, cap, body) in enumerate(entries):
        following = entries[index + 1][0] if index + 1 < len(entries) else 0
        patches[offset] = bytes([cap, following]) + body
    return patches


def test_header_fields_are_where_the_specification_puts_them() -> None:
    space = config(
        {
            0x00: b"\x87\x1d\x88\x35",
            0x08: b"\x01\x00\x00\xff",
            0x2C: b"\x87\x1d\x00\x01",
            0x3D: b"\x01",
        }
    )
    assert (space.vendor_id, space.device_id) == (0x1D87, 0x3588)
    assert (space.revision, space.class_code) == (1, 0xFF0000)
    assert space.subsystem == (0x1D87, 0x0100)
    assert space.interrupt_pin == 1
    space.command = Command.MEMORY | Command.BUS_MASTER
    assert space.window.read16(4) == 6
    assert space.command == Command.MEMORY | Command.BUS_MASTER


def test_the_capabilities_that_drivers_need() -> None:
    space = config(
        {
            **caps(
                (0x40, 0x05, (0x018A | 1).to_bytes(2, "little")),  # 32 vectors, 64-bit, mask, on
                (
                    0x60,
                    0x11,
                    (31).to_bytes(2, "little")
                    + (0x80 | 2).to_bytes(4, "little")
                    + (0x280 | 2).to_bytes(4, "little"),
                ),
                (
                    0x80,
                    0x10,
                    b"\x02\x00"
                    + (1 << 28).to_bytes(4, "little")
                    + bytes(4)
                    + (0x43).to_bytes(4, "little")
                    + bytes(2)
                    + (0x22).to_bytes(2, "little"),
                ),
            ),
            0x100: (0x15 | 1 << 16).to_bytes(4, "little")
            + (0b111 << 4).to_bytes(4, "little")
            + (2 | 1 << 5 | 1 << 8).to_bytes(4, "little"),
        }
    )
    assert space.msi_vectors() == 32
    assert space.msix() == pci.Msix(32, 2, 0x80, 2, 0x280)
    express = space.express()
    assert express == pci.Express(5.0, 2, 8.0, 4, True, True)
    assert space.resizable_bars() == (pci.ResizableBar(2, (1 << 20, 2 << 20, 4 << 20), 2 << 20),)
    assert [cap.id for cap in space.capabilities()] == [
        CapId.MSI,
        CapId.MSIX,
        CapId.EXP,
        ExtCapId.REBAR,
    ]


def test_a_function_without_capabilities_has_none() -> None:
    space = config({})
    assert list(space.capabilities()) == []
    assert (space.msi_vectors(), space.msix(), space.express()) == (0, None, None)
    assert space.resizable_bars() == ()


def test_a_list_that_loops_is_refused() -> None:
    looping = caps((0x40, 0x01, b""), (0x50, 0x05, bytes(10)))
    looping[0x50] = b"\x05\x40"
    with pytest.raises(EndpointError, match="loops at 0x40"):
        list(config(looping).capabilities())


def test_an_extended_list_that_loops_is_refused() -> None:
    header = (0x0B | 1 << 16 | 0x100 << 20).to_bytes(4, "little")
    with pytest.raises(EndpointError, match="loops at 0x100"):
        list(config({0x100: header}).capabilities())


def test_a_pointer_into_the_header_is_refused() -> None:
    with pytest.raises(EndpointError, match="points to 0x10"):
        list(config({0x06: b"\x10", 0x34: b"\x10"}).capabilities())


@given(data=st.binary(min_size=256, max_size=4096), has_list=st.booleans())
def test_no_config_space_hangs_or_crashes_the_walk(data: bytes, has_list: bool) -> None:
    memory = bytearray(data)
    memory[0x06] |= 0x10 if has_list else 0
    io = Bytes(memory)
    space = ConfigSpace(TrappedWindow(io.read, io.write, len(memory)))
    for look in (
        lambda: list(space.capabilities()),
        space.msi_vectors,
        space.msix,
        space.express,
        space.resizable_bars,
        lambda: pci.read_bars(space, [4096] * 6),
    ):
        try:
            look()
        except EndpointError as error:
            assert error.message  # noqa: PT017 - any other exception is the failure


def test_bars_of_every_kind() -> None:
    registers = [0xFE000008, 0x0000E001, 0xD000000C, 0x00000001, 0x00000000, 0xFD000000]
    space = config(
        {0x10 + 4 * index: value.to_bytes(4, "little") for index, value in enumerate(registers)}
    )
    bars = pci.read_bars(space, [1 << 20, 256, 1 << 30, 0, 0, 128])
    assert bars[0] == pci.Bar(0, 1 << 20, True, False, True, 0xFE000000)
    assert bars[1] == pci.Bar(1, 256, False, False, False, 0xE000)
    assert bars[2] == pci.Bar(2, 1 << 30, True, True, True, 0x1D0000000)
    assert bars[3] is None  # the upper half of BAR2, whatever size is claimed for it
    assert bars[4] is None
    assert bars[5] == pci.Bar(5, 128, True, False, False, 0xFD000000)
    assert pci.read_bars(space, [1 << 20, 256, 1 << 30, 4096, 0, 128])[3] is None


def test_a_64_bit_bar5_is_refused() -> None:
    with pytest.raises(EndpointError, match="BAR5"):
        pci.read_bars(config({0x24: b"\x04"}), [0, 0, 0, 0, 0, 4096])


def test_known_parts_are_defaults_and_never_a_gate() -> None:
    assert parts.part_of(0x104C, 0xB00C).reg_bar == 2
    assert parts.part_of(0x1D87, 0x3588).align == 65536
    assert parts.part_of(0x1234, 0x5678) == parts.UNKNOWN_PART
    assert (parts.UNKNOWN_PART.reg_bar, parts.UNKNOWN_PART.align) == (0, 1)
