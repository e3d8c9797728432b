"""Regions of a function's BARs, as plain data."""

from __future__ import annotations

from typing import NamedTuple


class Region(NamedTuple):
    offset: int
    size: int
    name: str
    role: str
    """Its colour: ``registers``, ``msix``, ``doorbell`` or ``window``."""


class Bar(NamedTuple):
    """One BAR and its known regions, in any order; they may overlap."""

    number: int
    size: int
    what: str
    """``resizable``, ``64-bit prefetchable``, ``reserved``..."""
    regions: tuple[Region, ...] = ()
    reserved: bool = False


TEST_REGISTERS = Region(0, 0x80, "test registers", "registers")
"""Bytes of pci-epf-test's registers with padding (pci_epf_test_alloc_space())."""


def msix_regions(vectors: int, table: int, pba: int) -> list[Region]:
    return [
        Region(table, vectors * 16, "MSI-X table", "msix"),
        Region(pba, -(-vectors // 64) * 8, "PBA", "msix"),
    ]
