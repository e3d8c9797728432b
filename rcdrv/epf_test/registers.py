"""Registers of pci-epf-test: 32 bits each, little endian, from offset 0 of the register BAR.

Source (Linux 7.3): ``struct pci_epf_test_reg`` and the macros of
``drivers/pci/endpoint/functions/pci-epf-test.c``; the names are those of
``drivers/misc/pci_endpoint_test.c``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

BLOCK_SIZE = 0x40
"""Size of the registers in bytes. An MSI-X table, if any, follows at 0x80."""

NO_BAR = 0xFFFFFFFF
"""Value of DB_BAR after a doorbell is disabled; before the first ENABLE it is 0."""


class Reg(IntEnum):
    """Byte offset of each register."""

    MAGIC = 0x00
    COMMAND = 0x04
    STATUS = 0x08
    SRC_ADDR_LOW = 0x0C
    SRC_ADDR_HIGH = 0x10
    DST_ADDR_LOW = 0x14
    DST_ADDR_HIGH = 0x18
    SIZE = 0x1C
    CHECKSUM = 0x20
    IRQ_TYPE = 0x24
    IRQ_NUMBER = 0x28
    FLAGS = 0x2C
    CAPS = 0x30
    DB_BAR = 0x34
    DB_OFFSET = 0x38
    DB_DATA = 0x3C


class Command(IntFlag):
    """COMMAND: exactly one bit, which the endpoint clears when it takes the command."""

    RAISE_INTX_IRQ = 1 << 0
    RAISE_MSI_IRQ = 1 << 1
    RAISE_MSIX_IRQ = 1 << 2
    READ = 1 << 3
    """The endpoint reads from SRC."""
    WRITE = 1 << 4
    """The endpoint writes to DST."""
    COPY = 1 << 5
    ENABLE_DOORBELL = 1 << 6
    DISABLE_DOORBELL = 1 << 7
    BAR_SUBRANGE_SETUP = 1 << 8
    BAR_SUBRANGE_CLEAR = 1 << 9


class Status(IntFlag):
    """STATUS: written by the endpoint, cleared by the root complex."""

    READ_SUCCESS = 1 << 0
    READ_FAIL = 1 << 1
    WRITE_SUCCESS = 1 << 2
    WRITE_FAIL = 1 << 3
    COPY_SUCCESS = 1 << 4
    COPY_FAIL = 1 << 5
    IRQ_RAISED = 1 << 6
    """Set before the interrupt is raised, also if raising it fails."""
    SRC_ADDR_INVALID = 1 << 7
    DST_ADDR_INVALID = 1 << 8
    DOORBELL_SUCCESS = 1 << 9
    DOORBELL_ENABLE_SUCCESS = 1 << 10
    DOORBELL_ENABLE_FAIL = 1 << 11
    DOORBELL_DISABLE_SUCCESS = 1 << 12
    DOORBELL_DISABLE_FAIL = 1 << 13
    BAR_SUBRANGE_SETUP_SUCCESS = 1 << 14
    BAR_SUBRANGE_SETUP_FAIL = 1 << 15
    BAR_SUBRANGE_CLEAR_SUCCESS = 1 << 16
    BAR_SUBRANGE_CLEAR_FAIL = 1 << 17
    NO_RESOURCE = 1 << 18


ANSWERS = {
    Command.READ: Status.READ_SUCCESS | Status.READ_FAIL,
    Command.WRITE: Status.WRITE_SUCCESS | Status.WRITE_FAIL,
    Command.COPY: Status.COPY_SUCCESS | Status.COPY_FAIL,
    Command.ENABLE_DOORBELL: Status.DOORBELL_ENABLE_SUCCESS | Status.DOORBELL_ENABLE_FAIL,
    Command.DISABLE_DOORBELL: Status.DOORBELL_DISABLE_SUCCESS | Status.DOORBELL_DISABLE_FAIL,
    Command.BAR_SUBRANGE_SETUP: (
        Status.BAR_SUBRANGE_SETUP_SUCCESS | Status.BAR_SUBRANGE_SETUP_FAIL
    ),
    Command.BAR_SUBRANGE_CLEAR: (
        Status.BAR_SUBRANGE_CLEAR_SUCCESS | Status.BAR_SUBRANGE_CLEAR_FAIL
    ),
}
"""Bits of which the answer to a command has one. RAISE commands answer by the interrupt alone."""


class Caps(IntFlag):
    """CAPS: announced capabilities. Older endpoint kernels define fewer bits."""

    UNALIGNED_ACCESS = 1 << 0
    MSI = 1 << 1
    MSIX = 1 << 2
    INTX = 1 << 3
    SUBRANGE_MAPPING = 1 << 4
    DYNAMIC_INBOUND_MAPPING = 1 << 5
    """Inbound mappings can change at run time, which doorbells need."""
    BAR0_RESERVED = 1 << 6
    BAR1_RESERVED = 1 << 7
    BAR2_RESERVED = 1 << 8
    BAR3_RESERVED = 1 << 9
    BAR4_RESERVED = 1 << 10
    BAR5_RESERVED = 1 << 11


KNOWN_CAPS = sum(Caps)


def swapped_caps(value: int) -> Caps | None:
    """Return CAPS as meant by an endpoint that writes it big-endian, or None if it does not.

    The byte-swapped position of every known bit is above all known bits.
    """
    swapped = int.from_bytes(value.to_bytes(4, "big"), "little")
    return Caps(swapped) if value and not value & KNOWN_CAPS and not swapped & ~KNOWN_CAPS else None


class Flags(IntFlag):
    USE_DMA = 1 << 0


class IrqType(IntEnum):
    """IRQ_TYPE: the interrupt that the endpoint raises with its answer."""

    INTX = 0
    MSI = 1
    MSIX = 2


def bit_names(value: IntFlag) -> str:
    """Return the set bits by name, highest first: ``DOORBELL_SUCCESS|IRQ_RAISED``.

    Unknown bits are hexadecimal; 0xffffffff is ``all ones``.
    """
    if value == 0xFFFFFFFF:
        return "all ones"
    names = []
    known = 0
    for bit in reversed(type(value)):
        known |= bit.value
        if value & bit:
            names.append(str(bit.name))
    rest = int(value) & ~known
    if rest:
        names.append(f"{rest:#x}")
    return "|".join(names) or "none"


def decode(register: Reg, value: int) -> str:
    """Return the meaning of a register's value for display; empty for plain numbers."""
    flags: dict[Reg, type[IntFlag]] = {
        Reg.COMMAND: Command,
        Reg.STATUS: Status,
        Reg.FLAGS: Flags,
        Reg.CAPS: Caps,
    }
    if value == 0xFFFFFFFF and register is not Reg.DB_BAR:
        return "all ones"
    swapped = swapped_caps(value) if register is Reg.CAPS else None
    if swapped is not None:
        return f"look byte-swapped: {bit_names(swapped)}"
    if register in flags:
        return bit_names(flags[register](value))
    if register is Reg.IRQ_TYPE:
        return IrqType(value).name if value <= IrqType.MSIX else "not an interrupt type"
    if register is Reg.DB_BAR:
        return "no doorbell" if value == NO_BAR else f"BAR{value}" if value < 6 else "not a BAR"
    return ""
