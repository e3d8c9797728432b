"""The part of the endpoint's controller that reads and writes the host's memory."""

from __future__ import annotations

import contextlib
import errno

from rcdrv.sim.description import EP_PAGE
from rcdrv.sim.interrupts import SimInterrupts
from rcdrv.vfio_user.served import DmaFault


class SimOutbound(SimInterrupts):
    """Outbound windows of pci_epc_mem_map()."""

    def map_outbound(self, address: int, size: int, used: int = 0) -> int:
        """Map ``size`` bytes of host memory (pci_epc_mem_map()).

        :param used: bytes of the outbound space used by other windows
        :returns: bytes of the outbound space used by this one
        :raises OSError: ENOMEM: it does not fit into the outbound space
        """
        layout = self.layout
        offset = address % layout.outbound_align if layout.unaligned_access else 0
        pages = -(-(offset + size) // layout.outbound_align)
        # pci_epc_mem_alloc_addr() takes a power of two of pages.
        taken = layout.outbound_align << (pages - 1).bit_length()
        if used + taken > layout.outbound_size:
            raise OSError(errno.ENOMEM, f"no outbound window for {size:#x} bytes")
        return taken

    def read_host(self, address: int, size: int) -> bytes:
        """Read host memory through an outbound window; all ones if the host refuses.

        Other methods may be called while this waits for the host.
        """
        data = self._transfer(address, size, None) or b""
        return data.ljust(size, b"\xff")

    def write_host(self, address: int, data: bytes | memoryview) -> None:
        """Write host memory through an outbound window; lost if the host refuses (posted)."""
        self._transfer(address, len(data), data)
        if "writes-beside" in self.faults and len(data) > 1024:
            self._transfer(address + len(data), 4, b"\xe5" * 4)

    def host_view(self, address: int, size: int) -> memoryview | None:
        """Return host memory behind an outbound window, for use at once; None: :meth:`write_host`
        has to write it."""
        plain = not self.faults and not self.log.enabled and self.layout.unaligned_access
        if plain and self._peer is not None and self.config.masters:
            with contextlib.suppress(DmaFault):
                return self._peer.dma_view(address, size)
        return None

    def _transfer(self, address: int, size: int, data: bytes | memoryview | None) -> bytes | None:
        if not self.layout.unaligned_access:
            # The window begins at an aligned address, whatever was requested.
            address -= address % self.layout.outbound_align
        if "high-address-cut" in self.faults:
            address &= 0xFFFF_FFFF
        op = "read" if data is None else "write"
        self.log.event("dma", op=op, address=address, size=size)
        if "link-slows" in self.faults:
            self.config.slow_link()
        if "link-errors" in self.faults:
            self.config.log_bad_tlp()
        try:
            if self._peer is None or not self.config.masters:
                raise DmaFault("bus mastering is off")
            below = -address % EP_PAGE
            if "crosses-4k" in self.faults and 0 < below < size:
                page = address + below - EP_PAGE
                if data is None:
                    whole = self._peer.dma_read(address, size)
                    return whole[:below] + self._peer.dma_read(page, size)[: size - below]
                self._peer.dma_write(address, data[:below])
                self._peer.dma_write(page, data[below : below + EP_PAGE])
                return None
            if "one-translation" in self.faults:
                size = self._peer.dma_reach(address, size)
                if data is None:
                    return self._peer.dma_read(address, size)
                data = data[:size]
            if data is None:
                return self._peer.dma_read(address, size)
            self._peer.dma_write(address, data)
        except DmaFault as fault:
            self.log.event("dma-fault", op=op, address=address, size=size, reason=fault.message)
        return None
