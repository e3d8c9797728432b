"""Config space: what a host reads, what its writes change, and what they cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.sim import config_space as cs
from rcdrv.sim.description import BarType, Layout
from rcdrv.sim.faults import Faults
from rcdrv.sim.layout import load_layout, parse_layout, preset_names

PRESETS = preset_names()


def get(config: cs.SimConfigSpace, offset: int, size: int) -> int:
    return int.from_bytes(config.read(offset, size), "little")


def put(config: cs.SimConfigSpace, offset: int, size: int, value: int) -> bool:
    return config.write(offset, value.to_bytes(size, "little"))


def capabilities(config: cs.SimConfigSpace) -> dict[int, int]:
    found: dict[int, int] = {}
    offset = get(config, cs.CAPABILITIES, 1)
    while offset:
        assert offset not in found.values()
        found[get(config, offset, 1)] = offset
        offset = get(config, offset + 1, 1)
    return found


def extended(config: cs.SimConfigSpace) -> dict[int, int]:
    found: dict[int, int] = {}
    offset = 0x100
    while offset:
        assert offset not in found.values()
        header = get(config, offset, 4)
        found[header & 0xFFFF] = offset
        offset = header >> 20
    return found


writes = st.lists(
    st.integers(0, cs.SIZE - 1).flatmap(
        lambda offset: st.tuples(
            st.just(offset), st.binary(min_size=1, max_size=min(16, cs.SIZE - offset))
        )
    ),
    max_size=30,
)

READ_ONLY = [
    *range(0x04),  # IDs
    *range(0x08, 0x0C),  # revision, class
    0x0E,  # header type
    *range(0x2C, 0x38),  # subsystem, ROM, capability pointer
    0x3D,
    *range(cs.PM, cs.PM + 4),
    *range(cs.EXPRESS, cs.EXPRESS + 8),
    *range(cs.EXPRESS + 12, cs.EXPRESS + 16),
    *range(0xC0, 0x104),
    *range(cs.REBAR, cs.SIZE),
]


@given(st.sampled_from(PRESETS), writes)
def test_no_write_changes_what_is_read_only(preset: str, accesses: list[tuple[int, bytes]]) -> None:
    config = cs.SimConfigSpace(load_layout(preset))
    before = config.read(0, cs.SIZE)
    for offset, data in accesses:
        config.write(offset, data)
    after = config.read(0, cs.SIZE)
    assert [after[offset] for offset in READ_ONLY] == [before[offset] for offset in READ_ONLY]
    sized = bar_bits(load_layout(preset))
    for offset, fixed in sized.items():
        assert (int.from_bytes(after[offset : offset + 4], "little") ^ fixed[1]) & fixed[0] == 0
    config.reset()
    assert config.read(0, cs.SIZE) == before


def bar_bits(layout: Layout) -> dict[int, tuple[int, int]]:
    """offset -> (read-only bits, their value) of each BAR register."""
    bits = {cs.BAR0 + 4 * index: (0xFFFF_FFFF, 0) for index in range(6)}
    for index, bar in enumerate(layout.bars):
        if bar is not None:
            flags = bar.wide << 2 | bar.prefetchable << 3
            fixed = bar.size - 1 | 0xF
            bits[cs.BAR0 + 4 * index] = (fixed & 0xFFFF_FFFF, flags)
            if bar.wide:
                bits[cs.BAR0 + 4 * index + 4] = (fixed >> 32, 0)
    return bits


@given(
    st.integers(0, 4),
    st.integers(4, 46),
    st.booleans(),
    st.lists(st.integers(0, 0xFFFF_FFFF), max_size=3),
)
def test_sizing_a_bar_yields_its_size(
    index: int, exponent: int, prefetchable: bool, addresses: list[int]
) -> None:
    wide = exponent > 31
    kind = "programmable" if exponent > 6 else "reserved"
    bar = {"type": kind, "size": 1 << exponent, "wide": wide, "prefetchable": prefetchable}
    other = (index + 2) % 6
    layout = parse_layout({f"bar{index}": bar, f"bar{other}": {"size": 4096}})
    config = cs.SimConfigSpace(layout)
    offset = cs.BAR0 + 4 * index
    for address in addresses:
        put(config, offset, 4, address)
    size = 8 if wide else 4
    for half in range(0, size, 4):
        put(config, offset + half, 4, 0xFFFF_FFFF)
    value = get(config, offset, size)
    assert value & 0xF == wide << 2 | prefetchable << 3
    assert (1 << 8 * size) - (value & ~0xF) == 1 << exponent


@pytest.mark.parametrize("preset", PRESETS)
def test_capabilities(preset: str) -> None:
    layout = load_layout(preset)
    config = cs.SimConfigSpace(layout)
    found = capabilities(config)
    assert get(config, cs.STATUS, 2) & cs.STATUS_CAPABILITIES
    assert set(found) == {0x01, 0x05, 0x10} | ({0x11} if layout.msix else set())
    control = get(config, found[0x05] + 2, 2)
    assert 1 << (control >> 1 & 7) == layout.msi
    assert control & 0x81 == 0x80
    if layout.msix:
        assert get(config, found[0x11] + 2, 2) == layout.msix - 1
        assert get(config, found[0x11] + 4, 4) == layout.register_bar | 0x80
        assert get(config, found[0x11] + 8, 4) == layout.register_bar | 0x280
    assert get(config, found[0x10] + 4, 4) >> 28 & 1
    status = get(config, found[0x10] + 0x12, 2)
    assert (status & 0xF, status >> 4 & 0x3F) == (layout.link_speed, layout.link_width)
    resizable = [n for n, bar in enumerate(layout.bars) if bar and bar.type is BarType.RESIZABLE]
    offsets = extended(config)
    assert (0x15 in offsets) == bool(resizable)
    for slot, index in enumerate(resizable):
        entry = offsets[0x15] + 4 + 8 * slot
        control = get(config, entry + 4, 4)
        assert control & 7 == index
        assert 1 << 20 + (control >> 8 & 0x3F) == layout.bar(index).size
        assert get(config, entry, 4) == 1 << 4 + (control >> 8 & 0x3F)
        if slot == 0:
            assert control >> 5 & 7 == len(resizable)


def test_no_vectors_no_capability() -> None:
    assert set(capabilities(cs.SimConfigSpace(load_layout("rk3588,msi=0,msix=0")))) == {0x01, 0x10}


def test_the_fault_cap_loop() -> None:
    config = cs.SimConfigSpace(load_layout("rk3588"), Faults(["cap-loop"]))
    with pytest.raises(AssertionError):
        capabilities(config)
    assert extended(config)
    for preset in ("rk3588", "imx8m"):  # with and without resizable BARs
        config = cs.SimConfigSpace(load_layout(preset), Faults(["cap-loop=extended"]))
        with pytest.raises(AssertionError):
            extended(config)
        assert capabilities(config)


def test_flr_is_asked_for_by_one_bit_that_reads_zero() -> None:
    config = cs.SimConfigSpace(load_layout("rk3588"))
    control = cs.EXPRESS + 8
    assert not put(config, control, 2, 0x2810)
    assert put(config, control, 2, 0xA810)
    assert put(config, control + 1, 1, 0x80)
    assert put(config, control - 4, 8, 1 << 47)
    assert get(config, control, 2) >> 15 == 0
    assert not put(cs.SimConfigSpace(load_layout("rk3588,reset=bus")), control, 2, 0x8000)


def test_power_states() -> None:
    config = cs.SimConfigSpace(load_layout("rk3588"))
    put(config, cs.COMMAND, 2, cs.COMMAND_MEMORY | cs.COMMAND_MASTER)
    assert config.responds
    assert config.masters
    for unsupported in (1, 2):
        put(config, cs.PM + 4, 2, unsupported)
        assert config.responds
    put(config, cs.PM + 4, 2, 3)
    assert not config.responds
    assert not config.masters
    assert not config.intx_enabled
    put(config, cs.PM + 4, 2, 0)
    assert config.responds
    assert get(config, cs.COMMAND, 2) == cs.COMMAND_MEMORY | cs.COMMAND_MASTER
