"""Known parts: defaults for a controller in endpoint mode by its ID, never a gate.

BARs are those of ``struct pci_epc_features`` in the endpoint controller drivers of Linux 7.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rcdrv.record import record

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Protocol

    class SeenBar(Protocol):
        """A BAR as config space or sysfs describes it."""

        @property
        def is_64bit(self) -> bool: ...


_ANY = 0
"""Size of a BAR that the endpoint function chooses, or that is unknown."""


@record
class Part:
    """Defaults for an endpoint by its ID, never a gate."""

    name: str
    reg_bar: int = 0
    """The BAR that holds pci-epf-test's registers."""
    align: int = 1
    """Alignment in bytes that SRC and DST need unless CAPS announces UNALIGNED_ACCESS."""
    untestable_bars: tuple[int, ...] = ()
    """BARs that must not be written to, whatever CAPS says: older endpoint kernels announce no
    BARn_RESERVED."""
    bars: Mapping[int, int] = MappingProxyType({})
    """BARs that pci-epf-test always has there, with their fixed size in bytes, or 0 where the
    endpoint chooses it. Empty: not known."""
    msix_table: tuple[int, int] | None = None
    """(BAR, offset) of the MSI-X table that the hardware itself uses, or None. What the kernel
    raises by dw_pcie_ep_raise_msix_irq() takes the table from wherever the capability says."""
    ignores_msix_mask: bool = False
    """An MSI-X interrupt is sent although its vector is masked (cdns_pcie_ep_send_msix_irq())."""
    broken_ats: bool = False
    """ATS does not work: an endpoint kernel that announces it makes the host wait for it."""
    linkup_notifier: bool = False
    """The endpoint function takes commands between link-up and link-down only."""
    doorbell: str = ""
    """``none``: neither an MSI domain nor an eDMA whose registers the driver knows. ``embedded``: a
    register of the DesignWare eDMA (pci-ep-msi.c). Empty: not known."""

    def missing(self, bars: Sequence[SeenBar | None]) -> tuple[int, ...]:
        """Return the BARs that this part has and ``bars``, six by number, lack.

        The upper half of a 64-bit BAR is not missing.
        """
        found = []
        for index in self.bars:
            below = bars[index - 1] if index else None
            if bars[index] is None and not (below is not None and below.is_64bit):
                found.append(index)
        return tuple(found)

    def misplaces(self, table: tuple[int, int]) -> bool:
        """Whether the hardware uses another MSI-X table than this BAR and offset."""
        return self.msix_table not in (None, table)

    def msix_note(self, table: tuple[int, int]) -> str:
        """Say where the MSI-X table has to be, for one that is elsewhere (:meth:`misplaces`)."""
        place, needed = (
            f"BAR{bar}+{offset:#x}" for bar, offset in (table, self.msix_table or table)
        )
        return (
            f"the MSI-X table is at {place}, but the hardware of {self.name} sends MSI-X only from"
            f" one at {needed}"
        )

    @property
    def ats_note(self) -> str:
        """Say that ATS is announced and does not work (:attr:`broken_ats`)."""
        return f"{self.name} announces ATS, which does not work: IOTLB invalidations time out"

    def bar_text(self, index: int) -> str:
        """``a BAR4 of 256 bytes``, for a BAR that is :meth:`missing`."""
        size = self.bars[index]
        return f"a BAR{index}" + (f" of {size} bytes" if size else "")


# rockchip_pcie_ep_hide_broken_ats_cap_rk3588()
ATS_CURE = "take an endpoint kernel that hides it, or boot this host with pci=noats"


def _free(*indexes: int) -> Mapping[int, int]:
    return MappingProxyType(dict.fromkeys(indexes, _ANY))


def _cadence(name: str) -> Part:
    """A part of TI's J7 family."""
    return Part(name, align=256, bars=_free(*range(6)), ignores_msix_mask=True, doorbell="none")


def _layerscape(name: str) -> Part:
    return Part(name, align=4096, bars=_free(0, 2, 4), linkup_notifier=True)


def _tegra(name: str) -> Part:
    """BAR2 is MSI-X RAM, BAR4 DMA registers, all 64-bit (tegra_pcie_epc_features)."""
    bars = _free(0, 2, 4)
    return Part(name, untestable_bars=(2, 4), bars=bars, linkup_notifier=True, doorbell="none")


# All fixed and 64-bit (rcar_pcie_epc_features).
_RCAR_GEN3 = MappingProxyType({0: 128, 2: 256, 4: 256})

KNOWN_PARTS: Mapping[tuple[int, int], Part] = MappingProxyType(
    {
        # pci_endpoint_test_tbl of drivers/misc/pci_endpoint_test.c, Linux 7.3
        (0x104C, 0xB500): Part(
            "TI DRA74x, or configured by hand", align=4096, linkup_notifier=True
        ),
        (0x104C, 0xB501): Part("TI DRA72x", align=4096, linkup_notifier=True),
        (0x104C, 0xB00C): Part(
            "TI AM654",
            reg_bar=2,
            align=65536,
            untestable_bars=(0, 1),
            bars=MappingProxyType({2: _ANY, 3: 65536, 4: 256, 5: _ANY}),
            doorbell="none",
        ),
        (0x104C, 0xB00D): _cadence("TI J721E"),
        (0x104C, 0xB00F): _cadence("TI J7200"),
        (0x104C, 0xB010): _cadence("TI AM64"),
        (0x104C, 0xB013): _cadence("TI J721S2"),
        (0x1957, 0x81C0): _layerscape("NXP LS1046A"),
        (0x1957, 0x80C0): _layerscape("NXP LS1088A"),
        (0x1957, 0x0808): Part("NXP i.MX8", bars=_free(0, 2, 4)),
        (0x16C3, 0xEDDA): Part("Synopsys EDDA"),
        (0x1912, 0x0025): Part("Renesas RZ/G2H (R8A774E1)", bars=_RCAR_GEN3),
        (0x1912, 0x0028): Part("Renesas RZ/G2M (R8A774A1)", bars=_RCAR_GEN3),
        (0x1912, 0x002B): Part("Renesas RZ/G2N (R8A774B1)", bars=_RCAR_GEN3),
        (0x1912, 0x002D): Part("Renesas RZ/G2E (R8A774C0)", bars=_RCAR_GEN3),
        (0x1912, 0x0031): Part(
            "Renesas R-Car S4 (R8A779F0)",
            align=4096,
            bars=MappingProxyType({0: _ANY, 2: _ANY, 4: 256}),
            doorbell="embedded",
        ),
        (0x1D87, 0x3588): Part(
            "Rockchip RK3588",
            align=65536,
            untestable_bars=(4,),
            bars=_free(*range(6)),
            msix_table=(4, 0x4000),
            broken_ats=True,
            doorbell="embedded",
            linkup_notifier=True,
        ),
        (0x10DE, 0x1AD4): _tegra("NVIDIA Tegra194"),
        (0x10DE, 0x229B): _tegra("NVIDIA Tegra234"),
    }
)
UNKNOWN_PART = Part("unknown part")


def part_of(vendor: int, device: int) -> Part:
    """The defaults for an ID; those of an unknown part when the table does not have it."""
    return KNOWN_PARTS.get((vendor, device), UNKNOWN_PART)
