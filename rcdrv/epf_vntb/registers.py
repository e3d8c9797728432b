"""Control block of pci-epf-vntb, little endian, and the BAR of each part of the bridge.

Source: ``drivers/ntb/hw/epf/ntb_hw_epf.c``, ``drivers/pci/endpoint/functions/pci-epf-vntb.c``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from rcdrv.errors import UsageError


class Reg(IntEnum):
    """Offsets in the control BAR; 32 bits wide unless noted."""

    COMMAND = 0x00
    ARGUMENT = 0x04
    CMD_STATUS = 0x08
    """16 bits. A 32-bit write would change LINK_STATUS too."""
    LINK_STATUS = 0x0A
    """16 bits."""
    TOPOLOGY = 0x0C
    ADDR_LOW = 0x10
    ADDR_HIGH = 0x14
    SIZE_LOW = 0x18
    SIZE_HIGH = 0x1C
    MW_COUNT = 0x20
    MW1_OFFSET = 0x24
    """Reserved, 0. In pci-epf-ntb the offset of MW1, which is never 0."""
    SPAD_OFFSET = 0x28
    SPAD_COUNT = 0x2C
    DB_ENTRY_SIZE = 0x30


def db_data(slot: int) -> int:
    """Return the offset of DB_DATA[slot]."""
    return 0x34 + 4 * slot


def db_offset(slot: int) -> int:
    """Return the offset of DB_OFFSET[slot]."""
    return 0xB4 + 4 * slot


BLOCK_SIZE = 0x134
"""End of DB_OFFSET[31]; the scratchpads follow."""

NARROW = (Reg.CMD_STATUS, Reg.LINK_STATUS)
"""Registers with 16-bit accesses."""


class Command(IntEnum):
    """Values of COMMAND."""

    CONFIGURE_DOORBELL = 1
    TEARDOWN_DOORBELL = 2
    CONFIGURE_MW = 3
    TEARDOWN_MW = 4
    LINK_UP = 5
    LINK_DOWN = 6


class CommandStatus(IntEnum):
    """Values of CMD_STATUS; 0 until the endpoint answers."""

    OK = 1
    ERROR = 2


LINK_IS_UP = 1 << 0

MAX_SLOTS = 32
FIRST_SLOT = 2
"""Slot of doorbell 0, and MSI vector of the endpoint's doorbell 0. Slot 0 is for link events, which
pci-epf-vntb never raises; slot 1 is unused (enum epf_irq_slot)."""

MIN_VECTORS, MAX_VECTORS = 4, 32
"""NTB_EPF_MIN_DB_COUNT + 1, NTB_EPF_MAX_DB_COUNT + 1"""

MAX_WINDOWS = 4
SMALLEST_WINDOW_ALIGN = 4096


@dataclass(frozen=True)
class BarMap:
    """BAR of each part of the bridge."""

    control: int
    peer_spad: int
    """If the control BAR: the endpoint's scratchpads follow the host's. Else at offset 0."""
    doorbell: int
    windows: tuple[int, ...]

    def changed(
        self,
        *,
        control: int | None = None,
        doorbell: int | None = None,
        peer_spad: int | None = None,
        windows: tuple[int, ...] = (),
    ) -> BarMap:
        """Return the map with the user's changes. The scratchpads follow a moved control BAR."""
        moved = self
        if control is not None:
            spad = control if self.peer_spad == self.control else self.peer_spad
            moved = replace(moved, control=control, peer_spad=spad)
        if peer_spad is not None:
            moved = replace(moved, peer_spad=peer_spad)
        if doorbell is not None:
            moved = replace(moved, doorbell=doorbell)
        if windows:
            moved = replace(moved, windows=windows)
        return moved


RCAR_MAP = BarMap(control=0, peer_spad=0, doorbell=4, windows=(2,))

# From ntb_epf_pci_tbl, whose map of 104c:b00d fits only pci-epf-ntb. pci-epf-vntb has the peer's
# scratchpads in the control BAR (vntb_epf_spad_read()), and by default assigns the BARs in order
# (epf_ntb_init_epc_bar()): with the kernel's map, writes to peer scratchpads ring doorbells.
_MAPS = {
    (0x104C, 0xB00D): BarMap(control=0, peer_spad=0, doorbell=1, windows=(2, 3, 4, 5)),
    (0x1957, 0x0809): BarMap(control=0, peer_spad=0, doorbell=2, windows=(4, 5)),
    (0x1912, 0x0030): RCAR_MAP,
}


def map_of(vendor: int, device: int) -> BarMap | None:
    """Return the BAR map of pci-epf-vntb under this ID; None if it is unknown."""
    return _MAPS.get((vendor, device))


def choose_map(
    vendor: int,
    device: int,
    *,
    control: int | None = None,
    doorbell: int | None = None,
    peer_spad: int | None = None,
    windows: tuple[int, ...] = (),
) -> BarMap:
    """Return the BAR map of this ID with the user's changes.

    :raises UsageError: the ID is unknown, and the user does not name all BARs
    """
    known = map_of(vendor, device)
    if known is not None:
        return known.changed(
            control=control, doorbell=doorbell, peer_spad=peer_spad, windows=windows
        )
    if control is None or doorbell is None or not windows:
        raise UsageError(
            f"no BAR map of a pci-epf-vntb is known for {vendor:04x}:{device:04x}",
            hint="is it a pci-epf-test? rcdrv check, ring and test drive that. For a pci-epf-vntb,"
            " `control`, `doorbell` and `windows` say where the endpoint's configfs put them",
        )
    return BarMap(control, control if peer_spad is None else peer_spad, doorbell, windows)
