"""What `rcdrv test` has to say of each preset, whatever it is reached through."""

from __future__ import annotations

# What is neither passed, by preset: {case: (verdict, reason)}. From docs/fidelity.md, where the
# kernel's own driver says the same.
MSIX = {"pci_ep_basic.MSIX_TEST": ("skip", "no-vectors")}
NO_INTX = {"pci_ep_basic.LEGACY_IRQ_TEST": ("fail", "irq-lost")}
SLAVE_DMA = {"pci_ep_data_transfer.dma.COPY_TEST": ("fail", "transfer-failed")}
NO_DMA = {
    f"pci_ep_data_transfer.dma.{test}_TEST": ("fail", "silent")
    for test in ("READ", "WRITE", "COPY")
}


def bars(reason: str, *indexes: int) -> dict[str, tuple[str, str]]:
    """Both BAR cases skipped."""
    return {
        f"pci_ep_bar.BAR{index}.{test}": ("skip", reason)
        for index in indexes
        for test in ("BAR_TEST", "BAR_SUBRANGE_TEST")
    }


def subrange(verdict: str, reason: str, *indexes: int) -> dict[str, tuple[str, str]]:
    return {f"pci_ep_bar.BAR{index}.BAR_SUBRANGE_TEST": (verdict, reason) for index in indexes}


def doorbell(verdict: str, reason: str) -> dict[str, tuple[str, str]]:
    return {"pcie_ep_doorbell.DOORBELL_TEST": (verdict, reason)}


EXPECTED: dict[str, dict[str, tuple[str, str]]] = {
    "rk3588": {
        **subrange("skip", "register-bar", 0),
        **bars("bar-reserved", 4),
        **MSIX,
        **NO_INTX,
        **SLAVE_DMA,
    },
    "rcar-s4": {
        **subrange("skip", "register-bar", 0),
        **bars("bar-disabled", 1, 3, 5),
        **subrange("fail", "subrange-failed", 4),
        **MSIX,
        **NO_INTX,
        **SLAVE_DMA,
    },
    "imx95": {**subrange("skip", "register-bar", 0), **MSIX, **NO_INTX, **SLAVE_DMA},
    "imx8m": {
        **subrange("skip", "register-bar", 0),
        **bars("bar-disabled", 1, 3, 5),
        **subrange("fail", "subrange-failed", 4),
        **MSIX,
        **NO_INTX,
        **SLAVE_DMA,
    },
    "am654": {
        **bars("bar-reserved", 0, 1),
        **subrange("skip", "register-bar", 2),
        **subrange("fail", "subrange-failed", 3, 4),
        **MSIX,
        **NO_DMA,
        **doorbell("fail", "enable-failed"),
    },
    "tegra194": {
        **subrange("skip", "register-bar", 0),
        **bars("bar-disabled", 1, 3, 5),
        **bars("bar-reserved", 2, 4),
        **MSIX,
        **NO_DMA,
        **doorbell("fail", "enable-failed"),
    },
    "j721e": {
        **subrange("skip", "no-caps", 0, 1, 2, 3, 4, 5),
        **MSIX,
        **NO_DMA,
        **doorbell("skip", "no-caps"),
    },
    "generic": {**subrange("skip", "register-bar", 0), **MSIX},
}
