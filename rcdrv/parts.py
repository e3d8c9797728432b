"""What is known of a part by its ID: names, register BAR, alignment. Defaults, never a gate."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rcdrv.record import record


@record
class Part:
    """What is known of an endpoint by its ID: defaults, never a gate."""

    name: str
    reg_bar: int = 0
    """The BAR that holds pci-epf-test's registers."""
    align: int = 1
    """Alignment in bytes that SRC and DST need unless CAPS announces UNALIGNED_ACCESS."""
    untestable_bars: tuple[int, ...] = ()
    """BARs that must not be written to, whatever CAPS says."""
    traits: frozenset[str] = frozenset()
    """What else decides which cause of a failure is likely: of the words below."""


LINK_UP = "link-up"
"""Its controller driver sets linkup_notifier: pci-epf-test looks for commands from the link-up that
it reports to the link-down."""
NO_DOORBELL = "no-doorbell"
"""Neither an MSI domain nor an eDMA whose registers the driver knows (pci-ep-msi.c)."""
EDMA_DOORBELL = "edma-doorbell"
"""The doorbell is a register of the DesignWare eDMA, in a BAR that shows it or mapped into one."""
NO_DMA = "no-dma"
"""No DMA engine of the controller's."""


_LINK_UP = frozenset((LINK_UP,))
_EDMA = frozenset((EDMA_DOORBELL,))
_NOTHING = frozenset((NO_DOORBELL, NO_DMA))
_DRA7 = frozenset((LINK_UP,))

KNOWN_PARTS: Mapping[tuple[int, int], Part] = MappingProxyType(
    {
        # pci_endpoint_test_tbl of drivers/misc/pci_endpoint_test.c, Linux 7.3
        (0x104C, 0xB500): Part("TI DRA74x, or configured by hand", align=4096, traits=_DRA7),
        (0x104C, 0xB501): Part("TI DRA72x", align=4096, traits=_DRA7),
        (0x104C, 0xB00C): Part(
            "TI AM654", reg_bar=2, align=65536, untestable_bars=(0,), traits=_NOTHING
        ),
        (0x104C, 0xB00D): Part("TI J721E", align=256, traits=_NOTHING),
        (0x104C, 0xB00F): Part("TI J7200", align=256, traits=_NOTHING),
        (0x104C, 0xB010): Part("TI AM64", align=256, traits=_NOTHING),
        (0x104C, 0xB013): Part("TI J721S2", align=256, traits=_NOTHING),
        (0x1957, 0x81C0): Part("NXP LS1046A", align=4096, traits=_LINK_UP),
        (0x1957, 0x80C0): Part("NXP LS1088A", align=4096, traits=_LINK_UP),
        (0x1957, 0x0808): Part("NXP i.MX8"),
        (0x16C3, 0xEDDA): Part("Synopsys EDDA"),
        (0x1912, 0x0025): Part("Renesas RZ/G2H (R8A774E1)"),
        (0x1912, 0x0028): Part("Renesas RZ/G2M (R8A774A1)"),
        (0x1912, 0x002B): Part("Renesas RZ/G2N (R8A774B1)"),
        (0x1912, 0x002D): Part("Renesas RZ/G2E (R8A774C0)"),
        (0x1912, 0x0031): Part("Renesas R-Car S4 (R8A779F0)", align=4096, traits=_EDMA),
        (0x1D87, 0x3588): Part("Rockchip RK3588", align=65536, traits=_LINK_UP | _EDMA),
        (0x10DE, 0x1AD4): Part("NVIDIA Tegra194", traits=_LINK_UP | _NOTHING),
        (0x10DE, 0x229B): Part("NVIDIA Tegra234", traits=_LINK_UP | _NOTHING),
    }
)
UNKNOWN_PART = Part("unknown part")


def part_of(vendor: int, device: int) -> Part:
    """The defaults for an ID; those of an unknown part when the table does not have it."""
    return KNOWN_PARTS.get((vendor, device), UNKNOWN_PART)
