"""pci-epf-test in a layout; :mod:`rcdrv.sim.epf_test.function` runs it."""

from __future__ import annotations

from rcdrv.results.layout import TEST_REGISTERS, Region, msix_regions
from rcdrv.sim.description import (
    DEFAULT_BAR_SIZES,
    MSIX_ENTRY_SIZE,
    REGISTERS_SIZE,
    Layout,
    pba_size,
)
from rcdrv.sim.function import EndpointFunction


class EpfTestFunction(EndpointFunction):
    name = "epf_test"
    runs = "rcdrv.sim.epf_test.function:SimEpfTest"
    doorbell_words = ", mapped while it is enabled: its BAR shows the endpoint's registers then"

    def windows(self, layout: Layout) -> int:
        """pci_epf_test_set_bar() goes on without a BAR that gets no window, unless it is that of
        the registers."""
        return sum(index <= layout.register_bar for index in layout.usable_bars)

    def registers_size(self, layout: Layout) -> int:
        return REGISTERS_SIZE

    def bar_size(self, layout: Layout, index: int) -> int:
        """Return the size requested by pci_epf_test_alloc_space()."""
        if index != layout.register_bar:
            return DEFAULT_BAR_SIZES[index]
        if layout.msix and layout.msix_bar < 0:
            return REGISTERS_SIZE + layout.msix * MSIX_ENTRY_SIZE + pba_size(layout.msix)
        return REGISTERS_SIZE

    def doorbell_place(self, layout: Layout) -> tuple[int, int] | None:
        index = layout.next_free_bar(layout.register_bar + 1)
        if index is None:
            return None
        # pci_epf_align_inbound_addr(): the BAR's base is aligned to its size.
        return index, layout.doorbell_address % layout.bar(index).size

    def regions(self, layout: Layout, doorbell: tuple[int, int] | None) -> dict[int, list[Region]]:
        found = {layout.register_bar: [TEST_REGISTERS]}
        if layout.msix:
            found.setdefault(layout.msix_bar, []).extend(
                msix_regions(layout.msix, layout.msix_table, layout.msix_pba)
            )
        if doorbell is not None:
            found.setdefault(doorbell[0], []).append(Region(doorbell[1], 4, "doorbell", "doorbell"))
        return found
