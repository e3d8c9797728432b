"""Config space of a PCI function: header, COMMAND, BARs, capabilities.

Offsets and bits are those of the PCI Local Bus 3.0 and PCI Express Base 6.0 specifications, with
the names of ``include/uapi/linux/pci_regs.h``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum, IntFlag
from types import MappingProxyType

from rcdrv.errors import EndpointError
from rcdrv.mmio import Window
from rcdrv.record import record

BASE_CLASS_BRIDGE = 0x06
BASE_CLASS_OTHERS = 0xFF
CLASS_NO_MATCHING = 0xFF00
"""Base class 0xff, "does not fit in any defined class": what pci-epf-test gives itself."""
CLASS_MEMORY_RAM = 0x0500
"""RAM memory controller: what pci-epf-vntb gives itself."""


class Command(IntFlag):
    """The COMMAND register, config offset 0x04."""

    IO = 1 << 0
    MEMORY = 1 << 1
    """Memory decoding. Off: a mapped BAR access ends in SIGBUS."""
    BUS_MASTER = 1 << 2
    """The function may send requests: DMA, and MSI, which is a memory write."""
    SPECIAL = 1 << 3
    INVALIDATE = 1 << 4
    VGA_PALETTE = 1 << 5
    PARITY = 1 << 6
    WAIT = 1 << 7
    SERR = 1 << 8
    FAST_BACK = 1 << 9
    INTX_DISABLE = 1 << 10


class CapId(IntEnum):
    """Capability IDs that rcdrv looks into."""

    PM = 0x01
    MSI = 0x05
    EXP = 0x10
    MSIX = 0x11


class ExtCapId(IntEnum):
    """Extended capability IDs (config offset 0x100 on) that rcdrv looks into."""

    AER = 0x01
    ATS = 0x0F
    REBAR = 0x15


_NAMES: Mapping[int, str] = MappingProxyType(
    {
        0x01: "Power Management",
        0x03: "Vital Product Data",
        0x05: "MSI",
        0x09: "Vendor Specific",
        0x10: "PCI Express",
        0x11: "MSI-X",
        0x12: "SATA",
        0x13: "Advanced Features",
    }
)
_EXT_NAMES: Mapping[int, str] = MappingProxyType(
    {
        0x01: "Advanced Error Reporting",
        0x02: "Virtual Channel",
        0x03: "Device Serial Number",
        0x0B: "Vendor Specific",
        0x0D: "Access Control Services",
        0x0E: "Alternative Routing-ID",
        0x0F: "Address Translation",
        0x10: "Single Root I/O Virtualization",
        0x15: "Resizable BAR",
        0x18: "Latency Tolerance Reporting",
        0x19: "Secondary PCI Express",
        0x1E: "L1 PM Substates",
        0x1F: "Precision Time Measurement",
        0x25: "Data Link Feature",
        0x26: "Physical Layer 16.0 GT/s",
        0x27: "Lane Margining",
    }
)


@record
class Capability:
    """One entry of a capability list."""

    id: int
    offset: int
    extended: bool = False

    @property
    def name(self) -> str:
        names = _EXT_NAMES if self.extended else _NAMES
        return names.get(self.id, f"capability {self.id:#x}")


@record
class Msix:
    """The MSI-X capability: where the table and the pending bits are."""

    vectors: int
    table_bar: int
    table_offset: int
    pba_bar: int
    pba_offset: int

    @property
    def place(self) -> tuple[int, int]:
        """BAR and offset of the table."""
        return self.table_bar, self.table_offset

    @property
    def table_size(self) -> int:
        """Bytes: 16 a vector."""
        return 16 * self.vectors


_LINK_SPEEDS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}


@record
class Link:
    """A PCI Express link, seen from one end."""

    speed: float
    """GT/s, as the link runs now; 0 if down or unknown."""
    width: int
    """Lanes now."""
    max_speed: float
    max_width: int

    def __str__(self) -> str:
        return f"{self.speed:g} GT/s x{self.width}" if self.speed and self.width else "down"

    @property
    def most(self) -> str:
        return f"{self.max_speed:g} GT/s x{self.max_width}"

    def document(self) -> dict[str, float]:
        return {
            "speed_gts": self.speed,
            "width": self.width,
            "max_speed_gts": self.max_speed,
            "max_width": self.max_width,
        }


@record
class Express(Link):
    """The PCI Express capability."""

    is_endpoint: bool
    has_flr: bool
    """The function has Function Level Reset."""


@record
class ResizableBar:
    """One BAR of the Resizable BAR capability."""

    bar: int
    sizes: tuple[int, ...]
    """The sizes in bytes that the BAR supports, ascending."""
    size: int
    """The size in bytes that it has now."""


@record
class Bar:
    """One base address register, as config space describes it."""

    index: int
    size: int
    """Bytes."""
    is_memory: bool
    is_64bit: bool
    prefetchable: bool
    address: int
    """The bus address in the register; 0 when none is assigned."""

    def describe(self) -> str:
        if not self.is_memory:
            return "I/O"
        kind = "64-bit" if self.is_64bit else "32-bit"
        return kind + (" prefetchable" if self.prefetchable else "")


class ConfigSpace:
    """Config space of one function, through a window of 256 or 4096 bytes."""

    def __init__(self, window: Window) -> None:
        self.window = window

    @property
    def vendor_id(self) -> int:
        return self.window.read16(0x00)

    @property
    def device_id(self) -> int:
        return self.window.read16(0x02)

    @property
    def is_silent(self) -> bool:
        """Whether nothing answers: class and revision read all ones, which no function has.

        VENDOR_ID does not tell. VFIO copies it when the function is opened, and answers with the
        copy from then on (init_pci_cap_basic_perm() in drivers/vfio/pci/vfio_pci_config.c).
        """
        return self.window.read32(0x08) == 0xFFFFFFFF

    @property
    def command(self) -> Command:
        return Command(self.window.read16(0x04))

    @command.setter
    def command(self, value: Command) -> None:
        self.window.write16(0x04, int(value) & 0xFFFF)

    @property
    def status(self) -> int:
        return self.window.read16(0x06)

    @property
    def revision(self) -> int:
        return self.window.read8(0x08)

    @property
    def class_code(self) -> int:
        """24 bits: base class, subclass, programming interface."""
        return self.window.read32(0x08) >> 8

    @property
    def subsystem(self) -> tuple[int, int]:
        return self.window.read16(0x2C), self.window.read16(0x2E)

    @property
    def interrupt_pin(self) -> int:
        """0 none, 1-4 INTA-INTD."""
        return self.window.read8(0x3D)

    # -- capability lists ---------------------------------------------------------------------

    def capabilities(self) -> Iterator[Capability]:
        """Walk both lists, in order.

        :raises EndpointError: a list loops, or points into the header or past the end
        """
        yield from self._classic()
        if self.window.size > 0x100:
            yield from self._extended()

    def _classic(self) -> Iterator[Capability]:
        if not self.status & 0x10:  # PCI_STATUS_CAP_LIST
            return
        seen: set[int] = set()
        # The two low bits of a pointer are reserved and have to be masked.
        offset = self.window.read8(0x34) & 0xFC
        while offset:
            self._check_link(offset, 0x40, min(self.window.size, 0x100), seen)
            entry = self.window.read16(offset)
            if entry & 0xFF == 0xFF:  # the device went away midway: no list that loops
                return
            yield Capability(entry & 0xFF, offset)
            offset = (entry >> 8) & 0xFC

    def _extended(self) -> Iterator[Capability]:
        seen: set[int] = set()
        offset = 0x100
        while offset:
            self._check_link(offset, 0x100, self.window.size, seen)
            header = self.window.read32(offset)
            if header in (0, 0xFFFFFFFF):
                # An empty list is one header of zeros; all ones is a function without one.
                return
            yield Capability(header & 0xFFFF, offset, extended=True)
            offset = (header >> 20) & 0xFFC

    @staticmethod
    def _check_link(offset: int, first: int, end: int, seen: set[int]) -> None:
        if not first <= offset <= end - 4:
            raise EndpointError(
                f"the capability list points to {offset:#x}, outside {first:#x}-{end - 1:#x}"
            )
        if offset in seen:
            raise EndpointError(f"the capability list loops at {offset:#x}")
        seen.add(offset)

    def find(self, cap: CapId | ExtCapId) -> Capability | None:
        """The first capability with this ID, or None."""
        extended = isinstance(cap, ExtCapId)
        for entry in self.capabilities():
            if entry.id == cap and entry.extended is extended:
                return entry
        return None

    def _room(self, cap: Capability, size: int) -> None:
        end = self.window.size if cap.extended else min(self.window.size, 0x100)
        if cap.offset + size > end:
            raise EndpointError(f"the {cap.name} capability at {cap.offset:#x} does not fit")

    def bar_mask(self, index: int, *, is_64bit: bool) -> int:
        """Return what the register of a BAR reads after all ones were written: size and type.

        The register is put back. Memory decoding may stay on: this is for registers that the
        kernel virtualizes, or that decode nothing (vfio-user).
        """
        mask = 0
        for number in range(2 if is_64bit else 1):
            at = 0x10 + 4 * (index + number)
            before = self.window.read32(at)
            self.window.write32(at, 0xFFFFFFFF)
            mask |= self.window.read32(at) << 32 * number
            self.window.write32(at, before)
        return mask

    # -- single capabilities ------------------------------------------------------------------

    def msi_vectors(self) -> int:
        """Vectors that the function requests by its MSI capability: 1, 2, 4, 8, 16 or 32.

        0 without the capability, or when it reads all ones.
        """
        cap = self.find(CapId.MSI)
        if cap is None:
            return 0
        self._room(cap, 10)
        control = self.window.read16(cap.offset + 2)
        if control == 0xFFFF:  # the device went away midway
            return 0
        log2 = control >> 1 & 7
        if log2 > 5:
            raise EndpointError(f"the MSI capability asks for 2^{log2} vectors; 32 is the most")
        return 1 << log2

    def msix(self) -> Msix | None:
        """The MSI-X capability; None without one, or when it reads all ones."""
        cap = self.find(CapId.MSIX)
        if cap is None:
            return None
        self._room(cap, 12)
        control = self.window.read16(cap.offset + 2)
        table = self.window.read32(cap.offset + 4)
        pba = self.window.read32(cap.offset + 8)
        if 0xFFFFFFFF in (table, pba):  # the device went away midway
            return None
        for what, bar in (("table", table & 7), ("PBA", pba & 7)):
            if bar > 5:
                raise EndpointError(f"the MSI-X {what} is said to be in BAR{bar}")
        return Msix(
            vectors=(control & 0x7FF) + 1,
            table_bar=table & 7,
            table_offset=table & ~7,
            pba_bar=pba & 7,
            pba_offset=pba & ~7,
        )

    def express(self) -> Express | None:
        cap = self.find(CapId.EXP)
        if cap is None:
            return None
        self._room(cap, 0x14)
        flags = self.window.read16(cap.offset + 0x02)
        devcap = self.window.read32(cap.offset + 0x04)
        linkcap = self.window.read32(cap.offset + 0x0C)
        linksta = self.window.read16(cap.offset + 0x12)
        return Express(
            is_endpoint=flags >> 4 & 0xF in (0, 1),  # endpoint, legacy endpoint
            has_flr=bool(devcap & 1 << 28),
            speed=_LINK_SPEEDS.get(linksta & 0xF, 0.0),
            width=linksta >> 4 & 0x3F,
            max_speed=_LINK_SPEEDS.get(linkcap & 0xF, 0.0),
            max_width=linkcap >> 4 & 0x3F,
        )

    def resizable_bars(self) -> tuple[ResizableBar, ...]:
        """Return the entries of the Resizable BAR capability; none without it, or when it reads
        all ones.

        :raises EndpointError: it contradicts itself, or a BAR of it advertises no size, which the
            specification forbids (dw_pcie_ep_init_rebar_registers() restores one after a reset)
        """
        cap = self.find(ExtCapId.REBAR)
        if cap is None:
            return ()
        self._room(cap, 12)
        first = self.window.read32(cap.offset + 8)
        if first == 0xFFFFFFFF:  # the device went away midway
            return ()
        count = first >> 5 & 7
        if not 1 <= count <= 6:
            raise EndpointError(f"the Resizable BAR capability is for {count} BARs")
        self._room(cap, 4 + 8 * count)
        entries = []
        for index in range(count):
            supported = self.window.read32(cap.offset + 4 + 8 * index)
            control = self.window.read32(cap.offset + 8 + 8 * index)
            # Bit 4 means 1 MiB, every further bit twice that; control has the next 16 sizes.
            mask = supported >> 4 | (control >> 16) << 28
            sizes = tuple(1 << 20 + bit for bit in range(44) if mask >> bit & 1)
            if control & 7 > 5:
                raise EndpointError(f"the Resizable BAR capability names a BAR{control & 7}")
            if not sizes:
                raise EndpointError(
                    f"the Resizable BAR capability advertises no size for BAR{control & 7}",
                    hint="the endpoint's controller driver has to set PCI_REBAR_CAP, and again"
                    " after each reset of the link",
                )
            entries.append(ResizableBar(control & 7, sizes, 1 << 20 + (control >> 8 & 0x3F)))
        return tuple(entries)


def read_bars(config: ConfigSpace, sizes: Sequence[int]) -> tuple[Bar | None, ...]:
    """The six BARs. ``sizes`` in bytes come from the backend: sizing writes are the host's job.

    A BAR of size 0 is None, and so is the upper half of a 64-bit one.
    """
    bars: list[Bar | None] = [None] * 6
    index = 0
    while index < 6:
        low = config.window.read32(0x10 + 4 * index)
        is_memory = not low & 1
        is_64bit = is_memory and low >> 1 & 3 == 2
        if is_64bit and index == 5:
            raise EndpointError("BAR5 claims to be 64-bit, but there is no BAR6 for its upper half")
        address = low & ~0xF if is_memory else low & ~0x3
        if is_64bit:
            address |= config.window.read32(0x14 + 4 * index) << 32
        if sizes[index]:
            bars[index] = Bar(
                index=index,
                size=sizes[index],
                is_memory=is_memory,
                is_64bit=is_64bit,
                prefetchable=is_memory and bool(low & 8),
                address=address,
            )
        index += 2 if is_64bit else 1
    return tuple(bars)
