"""Why a case fails, or why the kernel's driver and rcdrv say different things about it.

The one list of what is not ``pass`` or ``skip`` in the comparison: a row that is not in here is a
bug of the software endpoint, of rcdrv, or of this list, and so is an entry without its row.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """Accounts for some cases on some presets, where both judges say exactly this."""

    presets: tuple[str, ...]
    cases: tuple[str, ...]
    kernel: str
    """What the kselftest says: the verdict and the errno that the driver answered."""
    rcdrv: str
    """What rcdrv says: the verdict and the reason."""
    why: str
    source: str
    """Where in the kernel to read that."""

    @property
    def differs(self) -> bool:
        """Whether the verdicts differ, apart from what they are based on."""
        return self.kernel.split()[0] != self.rcdrv.split()[0]


_DMA = tuple(f"pci_ep_data_transfer.dma.{which}_TEST" for which in ("READ", "WRITE", "COPY"))
_DMA_COPY = _DMA[2]

EXPLANATIONS = (
    # where both fail: what this hardware cannot do and does not announce
    Explanation(
        presets=("rk3588", "rcar-s4", "imx95", "imx8m"),
        cases=("pci_ep_basic.LEGACY_IRQ_TEST",),
        kernel="fail ETIMEDOUT",
        rcdrv="fail irq-lost",
        why=(
            "The controller's driver cannot raise INTx. The endpoint sets IRQ_RAISED before it"
            " tries, so STATUS has the answer and no interrupt follows."
        ),
        source="dw_pcie_ep_raise_intx_irq(), drivers/pci/controller/dwc/pcie-designware-ep.c",
    ),
    Explanation(
        presets=("rk3588", "rcar-s4", "imx95", "imx8m"),
        cases=(_DMA_COPY,),
        kernel="fail EIO",
        rcdrv="fail transfer-failed",
        why=(
            "COPY by DMA needs a channel that copies memory to memory, which the DesignWare eDMA"
            " has not: the endpoint answers COPY_FAIL. The kernel's driver sees it by the checksum."
        ),
        source="pci_epf_test_copy(), drivers/pci/endpoint/functions/pci-epf-test.c",
    ),
    Explanation(
        presets=("rcar-s4", "imx8m", "am654"),
        cases=("pci_ep_bar.BAR4.BAR_SUBRANGE_TEST",),
        kernel="fail EIO",
        rcdrv="fail subrange-failed",
        why="BAR4 has 256 bytes: half of it is less than an inbound window of the controller.",
        source="dw_pcie_ep_validate_submap(), drivers/pci/controller/dwc/pcie-designware-ep.c",
    ),
    Explanation(
        presets=("am654",),
        cases=("pci_ep_bar.BAR3.BAR_SUBRANGE_TEST",),
        kernel="fail EIO",
        rcdrv="fail subrange-failed",
        why="BAR3 has 64 KiB, and inbound windows are multiples of 64 KiB: its halves are not.",
        source="dw_pcie_ep_validate_submap(), drivers/pci/controller/dwc/pcie-designware-ep.c",
    ),
    Explanation(
        presets=("am654", "tegra194"),
        cases=("pcie_ep_doorbell.DOORBELL_TEST",),
        kernel="fail EINVAL",
        rcdrv="fail enable-failed",
        why=(
            "The endpoint announces DYNAMIC_INBOUND_MAPPING, but has neither an MSI domain nor an"
            " eDMA whose registers its driver knows: it answers DOORBELL_ENABLE_FAIL."
        ),
        source="pci_epf_alloc_doorbell(), drivers/pci/endpoint/pci-ep-msi.c",
    ),
    # where they differ, on purpose
    Explanation(
        presets=("rcar-s4", "imx95", "imx8m", "tegra194"),
        cases=("pci_ep_basic.MSIX_TEST",),
        kernel="fail EINVAL",
        rcdrv="skip no-vectors",
        why=(
            "The function has no MSI-X. The kselftest asserts that MSI-X can be set up before it"
            " knows of a way to skip; rcdrv skips what the function does not offer."
        ),
        source="pci_endpoint_test_set_irq(), drivers/misc/pci_endpoint_test.c",
    ),
    Explanation(
        presets=("am654",),
        cases=("pci_ep_bar.BAR0.BAR_TEST", "pci_ep_bar.BAR0.BAR_SUBRANGE_TEST"),
        kernel="fail EINVAL",
        rcdrv="skip bar-reserved",
        why=(
            "The driver refuses BAR0 of this part before it looks whether CAPS calls it reserved,"
            " and the kselftest only takes the latter for a skip. Neither touches it."
            " CONSECUTIVE_BAR_TEST has no such check in the driver, which goes by CAPS there; rcdrv"
            " leaves BAR0 out by the ID too."
        ),
        source="pci_endpoint_test_ioctl(), pci_endpoint_test_bars(),"
        " drivers/misc/pci_endpoint_test.c",
    ),
    Explanation(
        presets=("am654", "tegra194", "j721e"),
        cases=_DMA,
        kernel="not run",
        rcdrv="fail silent",
        why=(
            "The endpoint has no DMA engine and swallows the command. The kernel's driver waits"
            " for the answer without a limit, cannot be killed then, and blocks all later use:"
            " it is never asked. rcdrv reports the silence when its time is up."
        ),
        source=(
            "pci_epf_test_cmd_handler(), drivers/pci/endpoint/functions/pci-epf-test.c;"
            " pci_endpoint_test_read(), drivers/misc/pci_endpoint_test.c"
        ),
    ),
)
