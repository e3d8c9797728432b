"""Interrupts of the endpoint's controller: MSI, MSI-X, and the INTx line."""

from __future__ import annotations

from collections.abc import Callable

from rcdrv.device import IrqKind
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.config_space import SimConfigSpace
from rcdrv.sim.description import Intx, Layout
from rcdrv.sim.faults import COMMANDS, DOORBELL, Faults
from rcdrv.vfio_user.served import Peer

PULSE_SECONDS = 0.0015
"""Length of an INTx pulse: usleep_range(1000, 2000) in tegra_pcie_ep_raise_intx_irq()."""


class SimInterrupts:
    """The part of the controller that raises interrupts. Times are seconds of ``clock``."""

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
        self._msi_lost = False
        # INTx: the line, whether the host has seen it asserted, and the end of a pulse.
        self._asserted = False
        self._delivered = False
        self._masked = False
        self._pulse_end: float | None = None
        self._repeat = False

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
        if kind is IrqKind.MSIX and self._holds_back(vector):
            return
        self._send(kind, vector)
        if twice:
            self._send(kind, vector)

    def _holds_back(self, vector: int) -> bool:
        """Return whether the MSI-X table masks the vector."""
        return False

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

    def next_event(self) -> float | None:
        """Return the end of a pulse; None if there is none."""
        return self._pulse_end

    def run(self) -> None:
        if self._pulse_end is None or self.clock() < self._pulse_end:
            return
        self._pulse_end = None
        if not (self._delivered and self._masked):
            self._deassert()
