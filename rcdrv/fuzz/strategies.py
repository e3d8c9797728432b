"""Layouts to try, as hypothesis strategies: tables as a TOML file has them.

A plausible layout is what some controller could have; a hostile one adds a fault, CAPS that
contradict the rest, or a doorbell where none belongs. A key stands in a table only where it says
something, so that what is found is short from the start.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from rcdrv.sim.faults import FAULTS

Table = dict[str, Any]

K, M, G = 1 << 10, 1 << 20, 1 << 30

SMALLEST, LARGEST = 16, 64 * G
_LARGEST_32BIT = 2 * G
_REGISTERS = 0x80
_WORDWISE = 4 * K
"""The endpoint takes a BAR with an exposed doorbell word by word, so such a BAR is small."""

# Most BARs are small, as in the field, and because large ones take time.
_SMALL = [1 << bit for bit in range(4, 18)]
_SIZES = st.sampled_from(
    [128 * K, *_SMALL, *_SMALL, *(1 << bit for bit in range(18, 21)), *_SMALL]
    + [1 << bit for bit in range(21, 37)]
)

_RESIZABLE_SIZES = st.sampled_from([1 << bit for bit in range(20, 37)])

_TYPES = st.sampled_from(["programmable", "programmable", "fixed", "reserved", "resizable"])

_IDS = st.sampled_from(
    [
        {},  # the ID that everyone configures by hand
        {"vendor": 0x1AF4, "device": 0x1100},  # one that no table has
        {"vendor": 0x1D87, "device": 0x3588},
        {"vendor": 0x104C, "device": 0xB00C},
        {"vendor": 0x104C, "device": 0xB00D},
    ]
)

_BASES = st.sampled_from(
    [0, 0x4805_0000, 0xE65D_5000, 0xFFFF_F000, 0x8_0000_0000, 0xFF_FFFF_F000, 0xFFFF_FFFF_0000_0000]
)

_FAULT_ARGUMENTS: dict[str, SearchStrategy[int]] = {
    "slow": st.sampled_from([1, 20, 200]),
    "wrong-bar": st.integers(0, 6),
    "db-bar-absent": st.sampled_from([6, 7, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]),
    "bad-offset": st.sampled_from([0, 4, 0x1000, 0x8000_0000, 0xFFFF_FFFC, 0xFFFF_FFFF]),
    "unaligned-offset": st.sampled_from([1, 2, 3, 4, 0x1002]),
    "bar-alias": st.integers(0, 5),
    "all-ones": st.integers(0, 300),
    "vanish": st.integers(0, 300),
}


@st.composite
def tables(draw: DrawFn, *, hostile: bool = True) -> Table:
    """The table of a layout. Not each one fits together: parse_layout() refuses the rest."""
    table: Table = dict(draw(_IDS))
    bars = _bars(draw)
    usable = [index for index, bar in bars.items() if bar["type"] != "reserved"]
    if not usable:
        bars = {0: {"type": "programmable", "size": _REGISTERS}}
        usable = [0]
    register_bar = draw(st.sampled_from(usable))
    if register_bar != usable[0]:
        table["register_bar"] = register_bar
    bars[register_bar]["size"] = max(_REGISTERS, bars[register_bar]["size"])
    _interrupts(draw, table, bars, register_bar)
    _controller(draw, table, len(usable))
    doorbell = _doorbell(draw, bars, register_bar, hostile)
    if hostile:
        _hostility(draw, table, bars)
    table.update((f"bar{index}", bar) for index, bar in bars.items())
    if doorbell:
        table["doorbell"] = doorbell
    return table


def _bars(draw: DrawFn) -> dict[int, Table]:
    bars: dict[int, Table] = {}
    index = 0
    while index < 6:
        if draw(st.integers(0, 3)):
            bar: Table = {"type": draw(_TYPES), "size": draw(_SIZES)}
            if bar["type"] == "resizable":
                bar["size"] = draw(_RESIZABLE_SIZES)
            if index == 5:
                bar["size"] = min(_LARGEST_32BIT, bar["size"])
            elif bar["size"] > _LARGEST_32BIT or not draw(st.integers(0, 4)):
                bar["wide"] = True
            if not draw(st.integers(0, 4)):
                bar["prefetchable"] = True
            bars[index] = bar
            index += bar.get("wide", False)
        index += 1
    return bars


def _interrupts(draw: DrawFn, table: Table, bars: dict[int, Table], register_bar: int) -> None:
    msi = draw(st.sampled_from([0, 1, 2, 3, 8, 32]))
    if msi:
        table["msi"] = msi
    msix = draw(st.sampled_from([0, 0, 1, 3, 32, 2048]))
    if msix:
        table["msix"] = msix
        needed = 1 << (0x80 + msix * 16 + -(-msix // 64) * 8 - 1).bit_length()
        bar = draw(st.sampled_from([register_bar, *bars]))
        if bar != register_bar:
            table["msix_bar"] = bar
        bars[bar]["size"] = max(needed, bars[bar]["size"])
    intx = draw(st.sampled_from(["none", "pulse", "level"]))
    if intx != "none":
        table["intx"] = intx
    if not draw(st.integers(0, 3)):
        table["announce_intx"] = True
    if not draw(st.integers(0, 7)):
        table["intx_pin"] = draw(st.sampled_from([0, 2, 4]))


def _controller(draw: DrawFn, table: Table, usable: int) -> None:
    options: dict[str, SearchStrategy[Any]] = {
        "align": st.sampled_from([4, 256, 64 * K, 1 * M]),
        "inbound_windows": st.integers(usable, usable + 2),
        "dynamic_inbound": st.just(False),
        "subrange": st.just(False),
        "outbound_size": st.sampled_from([4 * K, 8 * K, 64 * K]),
        "reset": st.sampled_from(["none", "bus"]),
        "ep_iommu": st.just(True),
        "hz": st.sampled_from([100, 250, 300]),
    }
    for key, values in options.items():
        if not draw(st.integers(0, 3)):
            table[key] = draw(values)
    dma = draw(st.sampled_from(["slave", "none", "memcpy", "slave"]))
    if dma != "none":
        table["dma"] = dma
    outbound = draw(st.sampled_from([4 * K, 4 * K, 4, 256, 1 * K, 64 * K]))
    if outbound != 4 * K:
        table["outbound_align"] = outbound
    # Where it is aligned by nobody, coarser windows depend on where the buffers are.
    if outbound <= 4 * K and not draw(st.integers(0, 3)):
        table["unaligned_access"] = False


def _doorbell(draw: DrawFn, bars: dict[int, Table], register_bar: int, hostile: bool) -> Table:
    backend = draw(st.sampled_from(["embedded", "msi", "exposed", "exposed", "none"]))
    if backend == "none":
        return {}
    if backend != "exposed":
        target = next((i for i in sorted(bars) if i > register_bar), register_bar)
        return {
            "backend": backend,
            "address": draw(_BASES) | draw(_offsets(min(bars[target]["size"], G))),
            "data": draw(st.sampled_from([0, 1, 8192])) if backend == "msi" else 0,
        }
    candidates = [index for index, bar in bars.items() if bar["type"] == "reserved"]
    if hostile and not draw(st.integers(0, 5)):
        candidates += [i for i, bar in bars.items() if _REGISTERS <= bar["size"] <= _WORDWISE]
    if not candidates:
        return {}
    bar = draw(st.sampled_from(candidates))
    offset = draw(_offsets(min(bars[bar]["size"], 4 * G)))
    if bar == register_bar:
        offset = max(offset, _REGISTERS - 4)  # sharing its page with the registers, not its words
    return {"backend": "exposed", "bar": bar, "offset": offset}


def _offsets(size: int) -> SearchStrategy[int]:
    """Words of a BAR: the first and the last, those at page edges, and any other."""
    edges = {0, 4, 0x40, 0x80, 0xA0, 0xFFC, 0x1000, 0xD50A0, size // 2, size - 4}
    inside = sorted(offset for offset in edges if 0 <= offset <= size - 4)
    return st.sampled_from(inside) | st.integers(0, size // 4 - 1).map(lambda word: 4 * word)


def _hostility(draw: DrawFn, table: Table, bars: dict[int, Table]) -> None:
    if not draw(st.integers(0, 1)):
        name = draw(st.sampled_from(sorted(FAULTS)))
        argument = ""
        if FAULTS[name].choices:
            argument = draw(st.sampled_from(FAULTS[name].choices))
        elif name in _FAULT_ARGUMENTS and draw(st.booleans()):
            argument = str(draw(_FAULT_ARGUMENTS[name]))
        table["faults"] = [f"{name}={argument}" if argument else name]
    if not draw(st.integers(0, 7)):
        # CAPS of another kernel, or of none. What is reserved stays so: writing there is harm
        # that an endpoint which does not say so has to answer for itself.
        reserved = sum(0x40 << i for i, bar in bars.items() if bar["type"] == "reserved")
        table["caps"] = (
            draw(st.integers(0, 63)) | draw(st.sampled_from([0, 0x80, 0xFC0])) | reserved
        )
