"""Data classes of an endpoint: its controller, its BARs and its endpoint function.

:mod:`rcdrv.sim.layout` reads them from TOML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from rcdrv.errors import UsageError
from rcdrv.sim.checks import Check, boolean, choice, integer, power_of_two, text
from rcdrv.sim.faults import parse_fault

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40

REGISTERS_SIZE = 0x80
"""Size of the test registers with padding (pci_epf_test_alloc_space); the MSI-X table follows."""

MSIX_ENTRY_SIZE = 16

DEFAULT_BAR_SIZES = (128 * K, 128 * K, 128 * K, 128 * K, 128 * K, 1 * M)
"""pci-epf-test.c, default_bar_size."""

SMALLEST_EPF_BAR = 128
"""pci-epf-core.c, pci_epf_get_required_bar_size."""

EP_PAGE = 4 * K
"""The page size of the endpoint's kernel and IOMMU."""

_IOVA_TOP = 0xFFFF_F000
"""Address that dma_map_resource() gives the first page: the last below 4 GiB
(drivers/iommu/iova.c)."""


class BarType(str, Enum):
    """enum pci_epc_bar_type."""

    PROGRAMMABLE = "programmable"
    FIXED = "fixed"
    RESIZABLE = "resizable"
    """Has the Resizable BAR capability and at least 1 MiB."""
    RESERVED = "reserved"
    """Shows the controller's own registers; no endpoint function may use it."""
    DISABLED = "disabled"
    """There is no such BAR, as if it were left out."""


class Intx(str, Enum):
    """Behaviour of the controller's raise_irq for INTx."""

    NONE = "none"
    """Returns an error (dw_pcie_ep_raise_intx_irq)."""
    PULSE = "pulse"
    """Asserts the line for 1-2 ms."""
    LEVEL = "level"
    """Asserts the line until the host has handled the interrupt."""


class MaskedVector(str, Enum):
    """Treatment of an MSI-X interrupt whose vector the host has masked in the table."""

    DROPPED = "dropped"
    """Refused and discarded (dw_pcie_ep_raise_msix_irq)."""
    PENDING = "pending"
    """The pending bit is set, and the interrupt is sent when unmasked (PCIe 6.1.4)."""
    SENT = "sent"
    """The mask is ignored (cdns_pcie_ep_send_msix_irq)."""


class Dma(str, Enum):
    """Kind of channels of the endpoint's DMA engine."""

    NONE = "none"
    SLAVE = "slave"
    """Between local and PCI memory, one direction per channel: DesignWare eDMA."""
    MEMCPY = "memcpy"


class Reset(str, Enum):
    """How the function can be reset."""

    FLR = "flr"
    """Function level reset: config space only; the endpoint's software does not notice."""
    BUS = "bus"
    """The link goes down and up, and the endpoint's software sets the function up again."""
    NONE = "none"


class DoorbellBackend(str, Enum):
    """Source of doorbells for ENABLE_DOORBELL (drivers/pci/endpoint/pci-ep-msi.c)."""

    NONE = "none"
    MSI = "msi"
    """The endpoint's own MSI controller (GIC ITS), mapped into a BAR on demand."""
    EMBEDDED = "embedded"
    """An interrupt-emulation register of the DMA engine, mapped into a BAR on demand."""
    EXPOSED = "exposed"
    """The same register, in a reserved BAR that always shows it."""


class Trap(str, Enum):
    """BAR accesses that reach the endpoint as messages."""

    AUTO = "auto"
    """``all`` with an access log, else ``sparse``."""
    SPARSE = "sparse"
    """Pages of the doorbell and of the MSI-X structures, and BARs that cannot be mapped."""
    ALL = "all"


def _faults(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{path}: {value!r} is not a list of strings")
    for index, fault in enumerate(value):
        parse_fault(text(fault, f"{path}[{index}]"), f"{path}[{index}]")
    return tuple(value)


def _key(default: Any, check: Check) -> Any:
    return field(default=default, metadata={"check": check})


_ADDRESS = integer(0, (1 << 64) - 1)


@dataclass(frozen=True)
class BarLayout:
    """One BAR. ``size`` is in bytes, a power of two from 16."""

    type: BarType = BarType.PROGRAMMABLE
    size: int = _key(0, power_of_two(16, 64 * T))
    wide: bool = False
    """A 64-bit BAR: the next BAR register is its upper half."""
    prefetchable: bool = False


@dataclass(frozen=True)
class DoorbellLayout:
    """The doorbell register, in the endpoint's own address space or in a reserved BAR."""

    backend: DoorbellBackend = DoorbellBackend.NONE
    address: int = _key(0, _ADDRESS)
    """Physical address of the 32-bit register on the endpoint, if mapped on demand."""
    iova: int = _key(0, _ADDRESS)
    """The address used instead with ``ep_iommu``; 0: in the last page below 4 GiB."""
    data: int = _key(0, integer(0, 0xFFFF_FFFF))
    """Value that rings: the MSI data (first event number), or 0 for an embedded doorbell."""
    bar: int = _key(0, integer(0, 5))
    """BAR of an exposed doorbell; its offset follows."""
    offset: int = _key(0, integer(0, 0xFFFF_FFFC))


@dataclass(frozen=True)
class Layout:
    """A whole endpoint. Build one with :func:`load_layout` or :func:`parse_layout`."""

    description: str = ""
    function: str = "epf_test"
    """The endpoint function behind the controller."""

    vendor: int = _key(0x104C, integer(0, 0xFFFE))
    device: int = _key(0xB500, integer(0, 0xFFFF))
    class_code: int = _key(0xFF00, integer(0, 0xFFFF))
    """Base class and subclass."""
    intx_pin: int = _key(1, integer(0, 4))
    """Config space INTERRUPT_PIN: 0 none, 1-4 INTA-INTD. pci-epf-test always announces INTA."""
    link_speed: int = _key(3, integer(1, 6))
    """PCIe generation."""
    link_width: int = _key(1, power_of_two(1, 16))

    msi: int = _key(0, integer(0, 32))
    """MSI vectors (pci_epc_set_msi()); 0 leaves the capability out. The host sees the next power of
    two."""
    msix: int = _key(0, integer(0, 2048))
    """MSI-X vectors (pci_epc_set_msix()), likewise."""
    msix_bar: int = _key(-1, integer(-1, 5))
    """BAR of the MSI-X table and PBA; -1: behind the registers, in the register BAR."""
    msix_table: int = _key(-1, integer(-1, 0xFFFF_FFF8))
    msix_pba: int = _key(-1, integer(-1, 0xFFFF_FFF8))
    msix_masked: MaskedVector = MaskedVector.DROPPED
    intx: Intx = Intx.NONE
    announce_intx: bool = False
    """CAPS has INTX (struct pci_epc_features.intx_capable)."""

    bars: tuple[BarLayout | None, ...] = (None,) * 6
    register_bar: int = _key(-1, integer(-1, 5))
    """-1: the first usable BAR, as pci-epf-test chooses."""
    align: int = _key(4 * K, power_of_two(4, 1 * G))
    """Granularity of inbound windows: their targets and sizes are multiples of it."""
    inbound_windows: int = _key(16, integer(1, 256))
    """One for each BAR that is not reserved, two while it is mapped in halves."""
    dynamic_inbound: bool = True
    """CAPS has DYNAMIC_INBOUND_MAPPING."""
    subrange: bool = True
    """A BAR can be mapped in pieces; CAPS has SUBRANGE_MAPPING."""
    unaligned_access: bool = True
    """The controller driver aligns outbound addresses itself; CAPS has UNALIGNED_ACCESS."""
    outbound_align: int = _key(4 * K, power_of_two(4, 1 * G))
    """Granularity of outbound windows. Without ``unaligned_access``, lower address bits are
    lost."""
    outbound_size: int = _key(64 * M, integer(4 * K, 1 * T))
    """The endpoint's address space for all its outbound windows together."""
    dma: Dma = Dma.NONE
    ats: bool = False
    """Config space announces Address Translation Services."""
    reset: Reset = Reset.FLR
    caps: int = _key(-1, integer(-1, 0xFFFF_FFFF))
    """-1: CAPS is derived from other keys. Else its value, for endpoints with older kernels."""

    doorbell: DoorbellLayout = field(default_factory=DoorbellLayout)
    tables: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The settings of endpoint functions, by the name of their table."""
    ep_iommu: bool = False
    """The endpoint's own IOMMU translates what its PCIe controller accesses."""

    hz: int = _key(1000, integer(1, 10_000))
    """CONFIG_HZ of the endpoint's kernel: 100, 250, 300 or 1000. A 1 ms delayed work takes one to
    two jiffies, so a command is taken within 2 ms at 1000 and within 8 ms at 250, the default of
    arm64."""
    trap: Trap = Trap.AUTO
    faults: tuple[str, ...] = _key((), _faults)
    """NAME or NAME=ARGUMENT, as :mod:`rcdrv.sim.faults` lists them."""

    @property
    def sizes(self) -> list[int]:
        """Size of each BAR in bytes; 0 if there is none."""
        return [0 if bar is None else bar.size for bar in self.bars]

    def bar(self, index: int) -> BarLayout:
        """Return the BAR at ``index``, which must exist."""
        bar = self.bars[index]
        if bar is None:
            raise UsageError(f"the layout has no BAR{index}")
        return bar

    def next_free_bar(self, start: int) -> int | None:
        """Return the first BAR from ``start`` on that an endpoint function may use.

        Like pci_epc_get_next_free_bar(), except that the upper half of any 64-bit BAR is skipped:
        the kernel checks only the BAR before ``start``, but the hardware has no BAR there.
        """
        return next((index for index in self.usable_bars if index >= start), None)

    @property
    def usable_bars(self) -> list[int]:
        """Return the BARs that an endpoint function may use."""
        return [
            index
            for index, bar in enumerate(self.bars)
            if bar is not None and bar.type is not BarType.RESERVED
        ]

    @property
    def msi_capable(self) -> int:
        """MSI vectors that config space announces."""
        return 1 << (self.msi - 1).bit_length() if self.msi else 0

    @property
    def doorbell_address(self) -> int:
        """The endpoint's bus address of an on-demand doorbell."""
        doorbell = self.doorbell
        if not self.ep_iommu:
            return doorbell.address
        return doorbell.iova or _IOVA_TOP | doorbell.address % EP_PAGE


def checks_of(kind: type) -> dict[str, Check]:
    """Return the check of each key of a table in a file: its own, or that of its default's type."""
    found = {}
    for one in fields(kind):
        if "check" in one.metadata:
            found[one.name] = one.metadata["check"]
        elif isinstance(one.default, Enum):
            found[one.name] = choice(type(one.default))
        elif isinstance(one.default, bool | str):
            found[one.name] = boolean if isinstance(one.default, bool) else text
    return found


def pba_size(vectors: int) -> int:
    """Return the bytes of an MSI-X pending bit array."""
    return -(-vectors // 64) * 8
