"""The endpoint's doorbells: registers whose write interrupts the endpoint's processor.

This is the interface of drivers/pci/endpoint/pci-ep-msi.c to an endpoint function, and the hardware
below it, which the controller maps into a BAR.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.description import EP_PAGE, DoorbellBackend, Layout

Handler = Callable[[], None]

_EDMA_CONTROL, _EDMA_CHANNELS = 0x008, 4 | 4 << 16


@dataclass(frozen=True)
class SimDoorbell:
    """Location and data of a doorbell (struct pci_epf_doorbell_msg)."""

    data: int
    address: int = 0
    """The register on the endpoint's bus, to be mapped into a BAR; unused when ``bar`` is set."""
    bar: int | None = None
    """A BAR that shows the register already, at ``offset``."""
    offset: int = 0


class SimDoorbells:
    """pci_epf_alloc_doorbell() and pci_epf_free_doorbell() of one controller, and the hardware.

    That is a page of device registers on the endpoint's bus, of one of two kinds:

    * GITS_TRANSLATER of a GIC ITS. The value written is the event number; an event that is not
      mapped is dropped. Write-only, 16 or 32 bits wide (Arm IHI 0069).
    * A DesignWare eDMA engine with interrupt emulation. A write to the read engine's interrupt
      status register asserts the interrupt, whatever the value (dw-edma-v0-core.c,
      dw_edma_v0_core_db_offset). It is one interrupt for the whole engine, so all doorbells ring at
      once.
    """

    def __init__(self, layout: Layout, log: AccessLog) -> None:
        self._layout = layout
        self._log = log
        self._is_its = layout.doorbell.backend is DoorbellBackend.MSI
        exposed = layout.doorbell.backend is DoorbellBackend.EXPOSED
        register = layout.doorbell.offset if exposed else layout.doorbell_address
        self.base = register // EP_PAGE * EP_PAGE
        """Address of the page; its offset in the BAR that always shows it."""
        self._register = register - self.base
        self._handlers: Sequence[Handler] = ()

    @property
    def allocated(self) -> bool:
        return bool(self._handlers)

    def allocate(self, handlers: Sequence[Handler]) -> list[SimDoorbell]:
        """Allocate one doorbell per handler, which runs when the doorbell is rung.

        :raises OSError: EBUSY: doorbells are allocated already; ENODEV: there is no backend
        """
        if self.allocated:
            raise OSError(errno.EBUSY, "doorbells are allocated already")
        doorbell = self._layout.doorbell
        if doorbell.backend is DoorbellBackend.NONE:
            raise OSError(errno.ENODEV, "neither an MSI domain nor a doorbell register")
        self._handlers = tuple(handlers)
        if doorbell.backend is DoorbellBackend.EXPOSED:
            exposed = SimDoorbell(doorbell.data, bar=doorbell.bar, offset=doorbell.offset)
            return [exposed] * len(handlers)
        address = self._layout.doorbell_address
        return [
            SimDoorbell(doorbell.data + self._is_its * n, address) for n in range(len(handlers))
        ]

    def free(self) -> None:
        self._handlers = ()

    # -- the page, from the bus -------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        page = bytearray(EP_PAGE)
        if not self._is_its:
            page[_EDMA_CONTROL : _EDMA_CONTROL + 4] = _EDMA_CHANNELS.to_bytes(4, "little")
        return bytes(page[offset : offset + size])

    def write(self, offset: int, data: bytes) -> bool:
        """Write 1, 2 or 4 bytes. Return False if they are not for the doorbell's register."""
        if offset // 4 * 4 != self._register:
            return False
        if self._is_its:
            self._ring_event(offset, data)
        else:
            self._ring_all(data)
        return True

    def _ring_event(self, offset: int, data: bytes) -> None:
        event = int.from_bytes(data, "little") - self._layout.doorbell.data
        if offset != self._register or len(data) == 1:
            self._unheard(data, "neither a 16-bit nor a 32-bit write")
        elif not 0 <= event < len(self._handlers):
            self._unheard(data, "no such event")
        else:
            self._handlers[event]()

    def _ring_all(self, data: bytes) -> None:
        if not self._handlers:
            # dw_edma_interrupt_emulated() acknowledges it; there is no handler.
            self._unheard(data, "no doorbell is enabled")
        elif len(data) != 4:
            self._unheard(data, "not a 32-bit write: rings nevertheless")
        for handler in tuple(self._handlers):
            handler()

    def _unheard(self, data: bytes, why: str) -> None:
        value = int.from_bytes(data, "little")
        self._log.event("doorbell-unheard", size=len(data), data=value, reason=why)


def bus_accesses(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a write into naturally aligned accesses of at most 32 bits."""
    done = 0
    while done < len(data):
        size = 4
        while (offset + done) % size or done + size > len(data):
            size //= 2
        yield offset + done, data[done : done + size]
        done += size
