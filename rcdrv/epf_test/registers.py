"""The registers of pci-epf-test: little endian, 32 bits each, at offset 0 of the test register BAR.

Source: ``struct pci_epf_test_reg`` and the macros of
``drivers/pci/endpoint/functions/pci-epf-test.c``, with the names of its counterpart
``drivers/misc/pci_endpoint_test.c`` (Linux 7.3).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

BLOCK_SIZE = 0x40
"""Bytes. Behind the block, at 0x80, stands the MSI-X table where the endpoint has one."""

NO_BAR = 0xFFFFFFFF
"""DB_BAR when no doorbell is enabled any more; before the first one it reads 0."""


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
    """COMMAND: exactly one bit; the endpoint clears it when it takes the command."""

    RAISE_INTX_IRQ = 1 << 0
    RAISE_MSI_IRQ = 1 << 1
    RAISE_MSIX_IRQ = 1 << 2
    READ = 1 << 3
    """The endpoint reads, from SRC."""
    WRITE = 1 << 4
    """The endpoint writes, to DST."""
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
    """Set before the interrupt is raised, and also when none can be."""
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
"""The bits of which an answer to a command has one. The RAISE commands answer with the interrupt
alone."""


class Caps(IntFlag):
    """CAPS: what the endpoint announces. Older endpoint kernels know fewer bits."""

    UNALIGNED_ACCESS = 1 << 0
    MSI = 1 << 1
    MSIX = 1 << 2
    INTX = 1 << 3
    SUBRANGE_MAPPING = 1 << 4
    DYNAMIC_INBOUND_MAPPING = 1 << 5
    """Inbound mappings can change at run time: doorbells are possible."""
    BAR0_RESERVED = 1 << 6
    BAR1_RESERVED = 1 << 7
    BAR2_RESERVED = 1 << 8
    BAR3_RESERVED = 1 << 9
    BAR4_RESERVED = 1 << 10
    BAR5_RESERVED = 1 << 11


KNOWN_CAPS = sum(Caps)


def swapped_caps(value: int) -> Caps | None:
    """The CAPS that a big-endian endpoint means which writes them in its own byte order, or None.

    Each of today's bits has its byte-swapped place above all of them.
    """
    swapped = int.from_bytes(value.to_bytes(4, "big"), "little")
    return Caps(swapped) if value and not value & KNOWN_CAPS and not swapped & ~KNOWN_CAPS else None


class Flags(IntFlag):
    """FLAGS."""

    USE_DMA = 1 << 0


class IrqType(IntEnum):
    """IRQ_TYPE: the interrupt that the endpoint raises when it has answered."""

    INTX = 0
    MSI = 1
    MSIX = 2


def bit_names(value: IntFlag) -> str:
    """The set bits by name, highest first: ``DOORBELL_SUCCESS|IRQ_RAISED``; unknown ones in hex.

    A register that is not there reads ``all ones``.
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
    """What a register's value means, for people; empty where the number says it all."""
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
