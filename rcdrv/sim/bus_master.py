"""The part of the endpoint's controller that sends to the host: interrupts and memory requests."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable

from rcdrv.device import IrqKind
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.config_space import SimConfigSpace
from rcdrv.sim.description import EP_PAGE, Intx, Layout
from rcdrv.sim.faults import COMMANDS, DOORBELL, Faults
from rcdrv.sim.msix import MsixTable
from rcdrv.vfio_user.served import DmaFault, Peer

PULSE_SECONDS = 0.0015
"""Length of an INTx pulse: usleep_range(1000, 2000) in tegra_pcie_ep_raise_intx_irq()."""


class SimBusMaster:
    """Interrupts, and outbound windows. Times are seconds of ``clock``."""

    def __init__(
        self,
        layout: Layout,
        config: SimConfigSpace,
        faults: Faults,
        log: AccessLog,
        clock: Callable[[], float],
    ) -> None:
        self.layout = layout
        self.config = config
        self.faults = faults
        self.log = log
        self.clock = clock
        self._peer: Peer | None = None
        self._msix: MsixTable | None = None
        self._msi_lost = False
        # INTx: the line, whether the host has seen it asserted, and the end of a pulse.
        self._asserted = False
        self._delivered = False
        self._masked = False
        self._pulse_end: float | None = None
        self._repeat = False

    # -- interrupts -------------------------------------------------------------------------------

    def connect(self, peer: Peer | None) -> None:
        """Set the host's side of interrupts; None without a host."""
        self._peer = peer
        self._masked = False
        if peer is None:
            self._deassert()

    def vectors(self, kind: IrqKind) -> int:
        """Return the number of enabled vectors (pci_epc_get_msi() and pci_epc_get_msix())."""
        return 0 if self._peer is None else self._peer.armed(kind)

    def raise_irq(self, kind: IrqKind, number: int, *, doorbell: bool = False) -> None:
        """pci_epc_raise_irq(). ``number`` counts from 1.

        :param doorbell: it answers a ring, which only faults distinguish
        """
        which = DOORBELL if doorbell else COMMANDS
        self.log.event("interrupt", kind=kind.name.lower(), number=number)
        if self.faults.hits("irq-lost", which):
            return
        if kind is IrqKind.MSIX and "msix-dead" in self.faults:
            return
        if kind is not IrqKind.INTX and self._msi_lost:
            return
        vector = number - 1
        if self.faults.hits("irq-wrong-vector", which):
            vector += 1
        twice = self.faults.hits("irq-twice", which)
        if kind is IrqKind.INTX:
            self._raise_intx(again=twice)
            return
        if kind is IrqKind.MSIX and self._msix is not None and self._msix.holds_back(vector):
            self._failed(kind, f"vector {vector} is masked")
            return
        self._send(kind, vector)
        if twice:
            self._send(kind, vector)

    def _send(self, kind: IrqKind, vector: int) -> None:
        if not self.config.masters:
            self._failed(kind, "bus mastering is off")
        elif self._peer is None or vector < 0 or not self._peer.trigger(kind, vector):
            self._failed(kind, f"the host has no vector {vector}")

    def _failed(self, kind: IrqKind, reason: str) -> None:
        self.log.event("irq-failed", kind=kind.name.lower(), reason=reason)

    def _raise_intx(self, *, again: bool) -> None:
        if self.layout.intx is Intx.NONE:
            self._failed(IrqKind.INTX, "the controller cannot raise INTx")
            return
        if not self.config.intx_enabled:
            self._failed(IrqKind.INTX, "INTx is disabled")
            return
        self._asserted = True
        self._repeat = again
        self.config.set_interrupt_status(True)
        if self.layout.intx is Intx.PULSE:
            self._pulse_end = self.clock() + PULSE_SECONDS
        self._deliver_intx()

    def _deliver_intx(self) -> None:
        if self._asserted and not self._masked and self.config.intx_enabled and self._peer:
            self._delivered = self._peer.trigger(IrqKind.INTX, 0) or self._delivered

    def _deassert(self) -> None:
        self._asserted = self._delivered = self._repeat = False
        self._pulse_end = None
        self.config.set_interrupt_status(False)

    def intx_masked(self, masked: bool) -> None:
        """Note that the host masked INTx, or unmasked it after handling the interrupt."""
        self._masked = masked
        if masked:
            return
        if self._repeat:
            self._repeat = False
        elif self._delivered and self._pulse_end is None:
            # A level is deasserted after it was handled. So is a pulse that ended during the
            # handling, as STATUS still had to show the interrupt.
            self._deassert()
        self._deliver_intx()

    def irqs_changed(self, kind: IrqKind) -> None:
        """Note that vectors were armed or disarmed: an asserted line is seen at once."""
        if kind is IrqKind.INTX:
            self._deliver_intx()
        elif kind is IrqKind.MSIX and self._msix is not None:
            self._msix.arm(self.vectors(kind))

    def next_event(self) -> float | None:
        """Return the end of a pulse; None if there is none."""
        return self._pulse_end

    def run(self) -> None:
        if self._pulse_end is None or self.clock() < self._pulse_end:
            return
        self._pulse_end = None
        if not (self._delivered and self._masked):
            self._deassert()

    # -- memory of the host (pci_epc_mem_map()) ---------------------------------------------------

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
