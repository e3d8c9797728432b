"""Layouts: what a file may say, what follows from it, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.errors import UsageError
from rcdrv.sim.description import (
    BarLayout,
    BarType,
    Dma,
    DoorbellBackend,
    DoorbellLayout,
    G,
    Intx,
    K,
    Layout,
    M,
    Reset,
    Trap,
)
from rcdrv.sim.endpoint import SimEndpoint
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.functions import doorbell_place
from rcdrv.sim.layout import load_layout, parse_layout


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any endpoint that can be built."""
    table: dict[str, object] = {}
    wide_before = False
    usable = []
    for index in range(6):
        if wide_before or not draw(st.booleans()):
            wide_before = False
            continue
        kind = draw(st.sampled_from([kind for kind in BarType if kind is not BarType.DISABLED]))
        wide = index < 5 and draw(st.booleans())
        smallest = 20 if kind is BarType.RESIZABLE else 12
        bar: dict[str, object] = {
            "type": kind.value,
            "size": 1 << draw(st.integers(smallest, 36 if wide else 31)),
            "wide": wide,
            "prefetchable": draw(st.booleans()),
        }
        table[f"bar{index}"] = bar
        wide_before = wide
        if kind is not BarType.RESERVED:
            usable.append(index)
    if not usable:
        table["bar0"] = {"type": "programmable", "size": 4 * K, "wide": True}
        table.pop("bar1", None)
        usable = [0]
    table["register_bar"] = draw(st.sampled_from([-1, *usable]))
    table["msi"] = draw(st.integers(0, 32))
    table["msix"] = draw(st.integers(0, 128))
    table["description"] = draw(st.text())
    for key, enum in (("intx", Intx), ("dma", Dma), ("reset", Reset), ("trap", Trap)):
        table[key] = draw(st.sampled_from(enum)).value
    for key in ("dynamic_inbound", "subrange", "unaligned_access", "ep_iommu", "announce_intx"):
        table[key] = draw(st.booleans())
    table["faults"] = draw(st.lists(st.sampled_from(sorted(FAULTS)), max_size=3))
    backend = draw(st.sampled_from(["none", "msi", "embedded"]))
    table["doorbell"] = {
        "backend": backend,
        "address": draw(st.integers(0, (1 << 62) - 1)) * 4,
        "data": draw(st.integers(0, 0xFFFF_FFFF)),
    }
    return parse_layout(table)


@given(layouts())
def test_a_layout_that_exists_can_be_built(layout: Layout) -> None:
    endpoint = SimEndpoint(layout)
    try:
        for bar, region in zip(endpoint.controller.seen_bars, endpoint.regions(), strict=False):
            assert region.size == (bar.size if bar else 0)
        place = doorbell_place(layout)
        if place is not None:
            assert place[1] % 4 == 0
            assert place[1] + 4 <= layout.bar(place[0]).size
    finally:
        endpoint.close()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ("hertz=3", "hertz"),
        ("bar2.colour=3", "bar2.colour"),
        ("bar7.size=1", "bar7"),
        ("vendor=0x10000", "vendor"),
        ("vendor=many", "vendor"),
        ("msi=33", "msi"),
        ("msix=2049", "msix"),
        ("reset=hard", "reset"),
        ("ep_iommu=1", "ep_iommu"),
        ("bar1.size=100000", "bar1.size"),
        ("bar1.size=512K", "bar1.size"),
        ("bar1.size=8", "bar1.size"),
        ("bar1.size=4G", "bar1.size"),
        ("bar1.wide=true", "bar1.wide"),
        ("bar5.wide=true", "bar5.wide"),
        ("bar1.type=soft", "bar1.type"),
        ("register_bar=4", "register_bar"),
        ("msix_bar=4,msix=2048,bar4.size=16K", "msix"),
        ("msix_table=0x20", "msix_table"),
        ("msix_table=0x84", "msix_table"),
        ("doorbell.offset=0xa2", "doorbell.offset"),
        ("doorbell.offset=0x10000", "doorbell.offset"),
        ("doorbell.backend=bell", "doorbell.backend"),
        ("doorbell.backend=msi,doorbell.address=0x42", "doorbell.address"),
        ("doorbell=3", "doorbell"),
        ("register_bar=2,inbound_windows=2", "inbound_windows"),
        ("function=epf_mhi", "function"),
        ("fault=irq-lots", "faults[0]"),
        ("fault=silent=1", "faults[0]"),
        ("fault=slow=soon", "faults[0]"),
        ("fault=irq-lost=mine", "faults[0]"),
        ("align=3", "align"),
    ],
)
def test_errors_name_the_key(changes: str, names: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_layout(f"rk3588,{changes}")
    assert caught.value.message.startswith(f"rk3588: {names}:") or (
        f"rk3588: {names} " in caught.value.message
    )
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ({"bar0": {"type": "fixed"}}, "bar0.size"),
        ({"bar0": {"type": "reserved", "size": 4096}}, "no BAR"),
        ({"bar0": 4096}, "bar0"),
        ({"bar0": {}, "faults": "silent"}, "faults"),
        ({"bar0": {}, "faults": [3]}, "faults[0]"),
        ({"bar0": {}, "hz": True}, "hz"),
        ({"bar0": {}, "description": 3}, "description"),
        ({"bar0": {"size": 64}}, "bar0.size"),
        ({"bar0": {}, "msix": 4, "msix_bar": 3}, "msix_bar"),
        ({"bar0": {}, "doorbell": {"backend": "exposed", "bar": 1}}, "doorbell.bar"),
        ({}, "no BAR"),
    ],
)
def test_errors_in_documents(table: dict[str, object], names: str) -> None:
    with pytest.raises(UsageError, match="layout: ") as caught:
        parse_layout(table)
    assert names in caught.value.message


@pytest.mark.parametrize("spec", ["rk3588,hz", "rk3588,=3", "rk3588,hz.a=3", "", "board"])
def test_bad_specs(spec: str) -> None:
    with pytest.raises(UsageError):
        load_layout(spec)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('bar3 = { size = "16K" }\n[doorbell]\nbackend = "none"\n')
    layout = load_layout(f"{path},msi=4,fault=silent,fault=slow=3,reset=bus")
    assert layout.bars[3] == BarLayout(BarType.PROGRAMMABLE, 16 * K)
    assert layout.register_bar == 3
    assert layout.faults == ("silent", "slow=3")
    assert layout.reset is Reset.BUS
    for content, says in (("bar0 = [", "not TOML"), ("\xff", "not UTF-8")):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(UsageError, match=says):
            load_layout(str(path))
    with pytest.raises(UsageError, match="No such file"):
        load_layout(str(tmp_path / "other.toml"))


def test_what_the_kernel_derives() -> None:
    layout = parse_layout({"msix": 2048, **{f"bar{n}": {} for n in range(6)}})
    # 128 bytes of registers, 2048 entries of 16 bytes and 256 bytes of PBA, to a power of two.
    assert layout.bar(0).size == 64 * K
    assert (layout.msix_bar, layout.msix_table, layout.msix_pba) == (0, 0x80, 0x8080)
    assert [layout.bar(n).size for n in range(1, 6)] == [128 * K] * 4 + [M]
    assert parse_layout({"bar0": {}}).bar(0).size == 128
    assert parse_layout({"bar0": {"type": "resizable"}}).bar(0).size == M


def test_the_doorbell_goes_to_the_next_bar_that_the_hardware_has() -> None:
    embedded = {"backend": "embedded", "address": 0x4_1234_50A0}
    layout = parse_layout(
        {
            "bar0": {"wide": True},
            "bar2": {"type": "reserved", "size": 4 * K, "wide": True},
            "bar4": {"wide": True, "size": 8 * G},
            "doorbell": embedded,
        }
    )
    assert doorbell_place(layout) == (4, 0x4_1234_50A0 % (8 * G))
    assert doorbell_place(parse_layout({"bar0": {}, "doorbell": embedded})) is None
    assert layout.doorbell == DoorbellLayout(DoorbellBackend.EMBEDDED, 0x4_1234_50A0)


def test_list_layout_values_from_text() -> None:
    layout = load_layout("rcar-s4,faults=silent+slow=20,bar2.size=0x200000,ep_iommu=true")
    assert layout.faults == ("silent", "slow=20")
    assert layout.bar(2).size == 2 * M
    assert layout.ep_iommu
