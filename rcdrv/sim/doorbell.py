"""The endpoint's doorbells: registers whose write interrupts the endpoint's processor.

This is the interface of drivers/pci/endpoint/pci-ep-msi.c to an endpoint function, and the hardware
below it. A doorbell register is on a page of the endpoint's address space, which the controller
maps into a BAR.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.description import EP_PAGE, DoorbellBackend, Layout

Handler = Callable[[], None]


@dataclass(frozen=True)
class SimDoorbell:
    """Location and data of a doorbell (struct pci_epf_doorbell_msg)."""

    data: int
    address: int = 0
    """The register on the endpoint's bus, to be mapped into a BAR; unused when ``bar`` is set."""
    bar: int | None = None
    """A BAR that shows the register already, at ``offset``."""
    offset: int = 0


class RegisterPage(ABC):
    """A page of device registers on the endpoint's bus."""

    def __init__(self, register: int, log: AccessLog) -> None:
        self.base = register // EP_PAGE * EP_PAGE
        self._register = register - self.base
        self._log = log
        self.handlers: Sequence[Handler] = ()
        """Handlers of rings; empty while no doorbell is enabled."""

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """Read registers at ``offset`` in the page."""

    def write(self, offset: int, data: bytes) -> bool:
        """Write 1, 2 or 4 bytes. Return False if they are not for the doorbell's register."""
        if offset // 4 * 4 != self._register:
            return False
        self._ring(offset, data)
        return True

    @abstractmethod
    def _ring(self, offset: int, data: bytes) -> None:
        """Take a write of the register or a part of it."""

    def _unheard(self, data: bytes, why: str) -> None:
        value = int.from_bytes(data, "little")
        self._log.event("doorbell-unheard", size=len(data), data=value, reason=why)


class EdmaPage(RegisterPage):
    """Registers of a DesignWare eDMA engine with interrupt emulation.

    A write to the read engine's interrupt status register asserts the interrupt, whatever the
    value (dw-edma-v0-core.c, dw_edma_v0_core_db_offset). It is one interrupt for the whole
    engine, so all doorbells ring at once.
    """

    _CONTROL = 0x008
    _CHANNELS = 4 | 4 << 16

    def read(self, offset: int, size: int) -> bytes:
        page = bytearray(EP_PAGE)
        page[self._CONTROL : self._CONTROL + 4] = self._CHANNELS.to_bytes(4, "little")
        return bytes(page[offset : offset + size])

    def _ring(self, _offset: int, data: bytes) -> None:
        if not self.handlers:
            # dw_edma_interrupt_emulated() acknowledges it; there is no handler.
            self._unheard(data, "no doorbell is enabled")
        elif len(data) != 4:
            self._unheard(data, "not a 32-bit write: rings nevertheless")
        for handler in tuple(self.handlers):
            handler()


class ItsPage(RegisterPage):
    """The page with GITS_TRANSLATER of a GIC ITS: the value written is the event number.

    Write-only, 16 or 32 bits wide (Arm IHI 0069, GITS_TRANSLATER). An event that is not mapped is
    dropped.
    """

    def __init__(self, register: int, first_event: int, log: AccessLog) -> None:
        super().__init__(register, log)
        self._first_event = first_event

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def _ring(self, offset: int, data: bytes) -> None:
        event = int.from_bytes(data, "little") - self._first_event
        if offset != self._register or len(data) == 1:
            self._unheard(data, "neither a 16-bit nor a 32-bit write")
        elif not 0 <= event < len(self.handlers):
            self._unheard(data, "no such event")
        else:
            self.handlers[event]()


class SimDoorbells:
    """pci_epf_alloc_doorbell() and pci_epf_free_doorbell() of one controller."""

    def __init__(self, layout: Layout, log: AccessLog) -> None:
        self._layout = layout
        self.page: RegisterPage | None = None
        """The page with the doorbell register, if the hardware has one."""
        backend = layout.doorbell.backend
        if backend is DoorbellBackend.MSI:
            self.page = ItsPage(layout.doorbell_address, layout.doorbell.data, log)
        elif backend is DoorbellBackend.EMBEDDED:
            self.page = EdmaPage(layout.doorbell_address, log)
        elif backend is DoorbellBackend.EXPOSED:
            self.page = EdmaPage(layout.doorbell.offset, log)

    @property
    def allocated(self) -> bool:
        return self.page is not None and bool(self.page.handlers)

    def allocate(self, handlers: Sequence[Handler]) -> list[SimDoorbell]:
        """Allocate one doorbell per handler, which runs when the doorbell is rung.

        :raises OSError: EBUSY: doorbells are allocated already; ENODEV: there is no backend
        """
        if self.allocated:
            raise OSError(errno.EBUSY, "doorbells are allocated already")
        if self.page is None:
            raise OSError(errno.ENODEV, "neither an MSI domain nor a doorbell register")
        self.page.handlers = tuple(handlers)
        doorbell = self._layout.doorbell
        if doorbell.backend is DoorbellBackend.EXPOSED:
            exposed = SimDoorbell(doorbell.data, bar=doorbell.bar, offset=doorbell.offset)
            return [exposed] * len(handlers)
        step = 1 if doorbell.backend is DoorbellBackend.MSI else 0
        address = self._layout.doorbell_address
        return [SimDoorbell(doorbell.data + step * n, address) for n in range(len(handlers))]

    def free(self) -> None:
        if self.page is not None:
            self.page.handlers = ()


def bus_accesses(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a write into naturally aligned accesses of at most 32 bits."""
    done = 0
    while done < len(data):
        size = 4
        while (offset + done) % size or done + size > len(data):
            size //= 2
        yield offset + done, data[done : done + size]
        done += size
