"""Test registers of the endpoint.

Transcribed from pci-epf-test.c independently of the driver's :mod:`rcdrv.epf_test.registers`; tests
compare the two.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class SimRegister(IntEnum):
    """Offsets in the register BAR; 32-bit, little endian (struct pci_epf_test_reg)."""

    MAGIC = 0x00
    COMMAND = 0x04
    STATUS = 0x08
    SRC_ADDR = 0x0C
    DST_ADDR = 0x14
    SIZE = 0x1C
    CHECKSUM = 0x20
    IRQ_TYPE = 0x24
    IRQ_NUMBER = 0x28
    FLAGS = 0x2C
    CAPS = 0x30
    DB_BAR = 0x34
    DB_OFFSET = 0x38
    DB_DATA = 0x3C


class SimCommand(IntEnum):
    """COMMAND is exactly one of these bits."""

    RAISE_INTX = 1 << 0
    RAISE_MSI = 1 << 1
    RAISE_MSIX = 1 << 2
    READ = 1 << 3
    WRITE = 1 << 4
    COPY = 1 << 5
    ENABLE_DOORBELL = 1 << 6
    DISABLE_DOORBELL = 1 << 7
    BAR_SUBRANGE_SETUP = 1 << 8
    BAR_SUBRANGE_CLEAR = 1 << 9


class SimStatus(IntFlag):
    READ_SUCCESS = 1 << 0
    READ_FAIL = 1 << 1
    WRITE_SUCCESS = 1 << 2
    WRITE_FAIL = 1 << 3
    COPY_SUCCESS = 1 << 4
    COPY_FAIL = 1 << 5
    IRQ_RAISED = 1 << 6
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


class SimCaps(IntFlag):
    """Bits of CAPS; BARn_RESERVED is BAR0_RESERVED << n."""

    UNALIGNED_ACCESS = 1 << 0
    MSI = 1 << 1
    MSIX = 1 << 2
    INTX = 1 << 3
    SUBRANGE_MAPPING = 1 << 4
    DYNAMIC_INBOUND_MAPPING = 1 << 5
    BAR0_RESERVED = 1 << 6


VERDICTS = tuple(3 << bit for bit in (0, 2, 4, 10, 12, 14, 16))
"""Pairs of STATUS bits for success and failure, which are adjacent for every command."""

USE_DMA = 1 << 0
NO_BAR = 0xFFFF_FFFF

KMALLOC_MAX = 4 << 20
"""The largest kzalloc() with 4 KiB pages; more warns and fails (include/linux/slab.h)."""

LARGEST_SUBRANGE = 256 << 20
"""Largest BAR whose memory BAR_SUBRANGE_SETUP fills. A larger one is sparse here; a real endpoint's
dma_alloc_coherent() could not allocate it."""
