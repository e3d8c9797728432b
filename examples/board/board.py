"""What this board is, and what it is known not to do. Here: the Rock 5B (RK3588)."""

PART = "Rockchip RK3588"

DOORBELL_BAR = 4
"""Where the eDMA registers are exposed."""

CANNOT = {
    "pci_ep_basic.LEGACY_IRQ_TEST": "the controller cannot raise INTx",
    "pci_ep_data_transfer.dma.COPY_TEST": "the eDMA moves data in one direction a channel",
}
"""Cases of the kselftest that fail on this board, and why."""

SLOWEST_RING = 0.5
"""Seconds from a ring to its acknowledgement; more means that something is wrong, not slow."""
