"""Each preset is the part that its name says, as Linux 7.3 drives it."""

from __future__ import annotations

import pytest

from rcdrv.device import IrqKind
from rcdrv.sim.description import K, M
from rcdrv.sim.epf_test.registers import (
    NO_BAR,
    USE_DMA,
    SimCaps,
    SimCommand,
    SimRegister,
    SimStatus,
)
from rcdrv.sim.functions import doorbell_place
from rcdrv.sim.layout import load_layout, preset_names

from .host import MEMORY_BASE, Host

DWC = SimCaps.UNALIGNED_ACCESS | SimCaps.SUBRANGE_MAPPING | SimCaps.DYNAMIC_INBOUND_MAPPING


def reserved(bar: int) -> SimCaps:
    return SimCaps(SimCaps.BAR0_RESERVED << bar)


CAPS = {
    "rk3588": DWC | SimCaps.MSI | SimCaps.MSIX | reserved(4),
    "rcar-s4": DWC | SimCaps.MSI,
    "imx95": DWC | SimCaps.MSI,
    "imx8m": DWC | SimCaps.MSI,
    "am654": DWC | SimCaps.MSI | SimCaps.MSIX | reserved(0) | reserved(1),
    "tegra194": DWC | SimCaps.MSI | reserved(2) | reserved(4),
    "j721e": SimCaps.MSI | SimCaps.MSIX,
    "generic": DWC | SimCaps.MSI | SimCaps.MSIX | SimCaps.INTX,
}

IDS = {
    "rk3588": (0x1D87, 0x3588),
    "rcar-s4": (0x1912, 0x0031),
    "imx95": (0x1957, 0x0808),
    "imx8m": (0x1957, 0x0808),
    "am654": (0x104C, 0xB00C),
    "tegra194": (0x10DE, 0x1AD4),
    "j721e": (0x104C, 0xB00D),
    "generic": (0x104C, 0xB500),
}

BARS = {
    "rk3588": (M, M, M, M, 64 * K, M),
    "rcar-s4": (M, 0, M, 0, 256, 0),
    "imx95": (128, 64 * K, 128 * K, 128 * K, 128 * K, M),
    "imx8m": (128, 0, 128 * K, 0, 256, 0),
    "am654": (16 * K, 64 * K, M, 64 * K, 256, M),
    "tegra194": (128, 0, 128 * K, 0, 4 * K, 0),
    "j721e": (1 * K, 128 * K, 128 * K, 128 * K, 128 * K, M),
    "generic": (1 * K, 128 * K, 128 * K, 128 * K, 128 * K, M),
}

DOORBELL = {
    "rk3588": (4, 0xA0, 0),
    "rcar-s4": (2, 0xD50A0, 0),
    "imx95": (1, 0x40, 0x2A),
    "imx8m": (2, 0xA0, 0),
    "generic": (1, 0x10A0, 0),
}


VNTB = {"rcar-s4-vntb", "rcar-s4-vntb-polled", "rk3588-vntb"}
"""Those with another function; test_epf_vntb.py has them."""


def test_all_are_here() -> None:
    assert preset_names() == sorted({*CAPS, *VNTB})


@pytest.mark.parametrize("preset", CAPS)
def test_identity(preset: str) -> None:
    host = Host(preset)
    assert (host.read_config(0, 2), host.read_config(2, 2)) == IDS[preset]
    assert host.read_config(0x0A, 2) == 0xFF00
    assert host.read_config(0x3D, 1) == 1
    assert SimCaps(host.get(SimRegister.CAPS)) == CAPS[preset]
    assert tuple(region.size for region in host.endpoint.regions()[:6]) == BARS[preset]
    assert host.layout.register_bar == (2 if preset == "am654" else 0)
    msix = 32 if SimCaps.MSIX in CAPS[preset] else 0
    assert tuple(host.endpoint.irq_counts()) == (1, 32, msix, 0, 0)


@pytest.mark.parametrize("preset", CAPS)
@pytest.mark.parametrize("ep_iommu", [False, True])
def test_doorbell(preset: str, ep_iommu: bool) -> None:
    host = Host(preset, ep_iommu=ep_iommu)
    status = host.command(SimCommand.ENABLE_DOORBELL)
    if preset not in DOORBELL:
        assert status == SimStatus.DOORBELL_ENABLE_FAIL | SimStatus.IRQ_RAISED
        assert host.get(SimRegister.DB_BAR) == 0
        return
    assert status == SimStatus.DOORBELL_ENABLE_SUCCESS | SimStatus.IRQ_RAISED
    bar, offset, data = DOORBELL[preset]
    assert host.get(SimRegister.DB_BAR) == bar
    assert host.get(SimRegister.DB_DATA) == data
    if ep_iommu and preset != "rk3588":
        assert host.get(SimRegister.DB_OFFSET) != offset
        assert host.get(SimRegister.DB_OFFSET) % (4 * K) == offset % (4 * K)
    else:
        assert host.get(SimRegister.DB_OFFSET) == offset
    host.ring()
    assert host.fired == [(IrqKind.MSI, 0)]
    assert host.get(SimRegister.STATUS) == SimStatus.DOORBELL_SUCCESS | SimStatus.IRQ_RAISED
    assert host.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_SUCCESS
    assert host.get(SimRegister.DB_BAR) == NO_BAR
    assert not host.events("stray")


@pytest.mark.parametrize("preset", CAPS)
def test_intx(preset: str) -> None:
    host = Host(preset)
    status = host.command(SimCommand.RAISE_INTX, irq=0, number=0)
    assert status == SimStatus.IRQ_RAISED
    arrives = preset in ("am654", "tegra194", "j721e", "generic")
    assert host.fired == ([(IrqKind.INTX, 0)] if arrives else [])


@pytest.mark.parametrize("preset", CAPS)
def test_dma_engine(preset: str) -> None:
    host = Host(preset)
    addresses = {"src_addr": MEMORY_BASE, "dst_addr": MEMORY_BASE + 64 * K, "size": 1025}
    write = host.command(SimCommand.WRITE, flags=USE_DMA, **addresses)
    copy = host.command(SimCommand.COPY, flags=USE_DMA, **addresses)
    if preset in ("am654", "tegra194", "j721e"):
        assert (write, copy) == (0, 0)
    else:
        assert write & SimStatus.WRITE_SUCCESS
        assert copy & (SimStatus.COPY_SUCCESS if preset == "generic" else SimStatus.COPY_FAIL)


@pytest.mark.parametrize("preset", CAPS)
def test_subrange(preset: str) -> None:
    host = Host(preset)
    for index, bar in enumerate(host.layout.bars):
        status = host.command(SimCommand.BAR_SUBRANGE_SETUP, size=index)
        usable = (
            preset != "j721e"
            and bar is not None
            and not reserved(index) & CAPS[preset]
            and index != host.layout.register_bar
            and bar.size // 2 >= host.layout.align
        )
        expected = (
            SimStatus.BAR_SUBRANGE_SETUP_SUCCESS if usable else SimStatus.BAR_SUBRANGE_SETUP_FAIL
        )
        assert status & ~SimStatus.IRQ_RAISED == expected, index


@pytest.mark.parametrize("preset", CAPS)
def test_everything_that_may_be_mapped_is_plain_memory(preset: str) -> None:
    layout = load_layout(f"{preset},trap=sparse")
    host = Host(layout)
    place = doorbell_place(layout)
    for index, region in enumerate(host.endpoint.regions()[:6]):
        for area in region.areas:
            assert area.offset % 4096 == area.size % 4096 == 0
            if place is not None and place[0] == index:
                assert not area.offset <= place[1] < area.offset + area.size
            if layout.msix and layout.msix_bar == index:
                assert area.offset > layout.msix_pba
        trapped = region.size - sum(area.size for area in region.areas)
        whole = region.size < 4096 or reserved(index) & CAPS[preset]
        assert trapped <= (region.size if whole else 8192)
