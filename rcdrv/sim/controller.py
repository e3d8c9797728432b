"""The endpoint's PCIe controller: BARs, interrupts, access to host memory.

One side is the bus: config space and BARs, accessed by :class:`rcdrv.sim.endpoint.SimEndpoint`. The
other is the interface of the kernel's EPC core to an endpoint function (pci-epc-core.c), with the
behaviour of the DesignWare driver (pcie-designware-ep.c) unless the layout differs. Errors are
OSErrors with the errno of the kernel.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rcdrv.device import Area, IrqKind
from rcdrv.mmio import MappedWindow
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.bus_master import SimBusMaster
from rcdrv.sim.config_space import COMMAND, SimConfigSpace
from rcdrv.sim.description import (
    EP_PAGE,
    MSIX_ENTRY_SIZE,
    BarLayout,
    BarType,
    DoorbellBackend,
    Layout,
    Trap,
)
from rcdrv.sim.doorbell import SimDoorbells, bus_accesses
from rcdrv.sim.faults import Faults
from rcdrv.sim.functions import doorbell_place
from rcdrv.sim.memory import REGISTERS, STRAIGHT, BarMemory
from rcdrv.sim.msix import MsixTable
from rcdrv.sim.spoiler import Spoiler
from rcdrv.vfio_user.served import Peer

SWAPPED = (1, 0)
"""Subrange mapping with the two halves of the BAR exchanged."""


@dataclass(frozen=True)
class _Shown:
    """The doorbells' page of registers, or part of it, shown in a BAR."""

    offset: int
    """Offset of the page's base in the BAR; negative if the BAR is smaller than the page."""
    start: int
    """Offset of the shown part in the BAR."""
    end: int


class SimController(SimBusMaster):
    """The controller of ``layout``. Times are seconds of ``clock``."""

    def __init__(self, layout: Layout, log: AccessLog, clock: Callable[[], float]) -> None:
        faults = Faults(layout.faults)
        logs = layout.trap is Trap.AUTO and log.enabled
        self._trap_all = layout.trap is Trap.ALL or logs or faults.traps
        empty = faults.empty_bar(layout.sizes, layout.register_bar)
        self._seen = tuple(None if n == empty else bar for n, bar in enumerate(layout.bars))
        config = SimConfigSpace(replace(layout, bars=self._seen), faults)
        super().__init__(layout, config, faults, log, clock)
        # BARs that the endpoint function has configured, as ep_func->epf_bar[], and those that it
        # had and lost: no host finds them any more.
        self._configured: set[int] = set()
        self._gone: set[int] = set()
        self.doorbells = SimDoorbells(layout, log)
        self._spoiler = Spoiler(faults)
        self._memory = {
            index: BarMemory(index, bar.size)
            for index, bar in enumerate(layout.bars)
            if bar is not None
        }
        # pci-epf-test has the table in its register BAR, some hardware in a reserved one. In any
        # other, BAR tests and BAR_SUBRANGE_SETUP overwrite it, with Linux on both sides too.
        kept = layout.msix and (
            layout.msix_bar == layout.register_bar
            or layout.bar(layout.msix_bar).type is BarType.RESERVED
        )
        self._msix = MsixTable(layout, self._memory[layout.msix_bar], faults) if kept else None
        aliases = faults.aliases(layout.sizes, layout.register_bar)
        if aliases is not None:
            self._memory[aliases[1]].close()
            self._memory[aliases[1]] = self._memory[aliases[0]]
        # Registers that a BAR shows instead of its memory, and inbound windows a BAR takes.
        self._shown: dict[int, _Shown] = {}
        self._windows: dict[int, int] = {}
        self._exposed = self._find_exposed()
        # BARs without an address: until the host restores it after a reset, or for good.
        self._cleared: set[int] = set()
        self._lost: set[int] = set()

    @property
    def seen_bars(self) -> tuple[BarLayout | None, ...]:
        """BARs that the host finds."""
        return tuple(None if n in self._gone else bar for n, bar in enumerate(self._seen))

    def _find_exposed(self) -> dict[int, _Shown]:
        """Find registers that a BAR always shows: a page in a reserved BAR; in any other BAR
        memory surrounds the doorbell."""
        doorbell = self.layout.doorbell
        if doorbell.backend is not DoorbellBackend.EXPOSED:
            return {}
        base = self.doorbells.base
        start, end = doorbell.offset, doorbell.offset + 4
        if self.layout.bar(doorbell.bar).type is BarType.RESERVED:
            start, end = base, base + EP_PAGE
        return {doorbell.bar: _Shown(base, start, end)}

    # -- host: attach and detach -----------------------------------------------------

    def connect(self, peer: Peer | None) -> None:
        """Connect the host's interrupts and DMA; None disconnects."""
        super().connect(peer)
        if peer is None:
            # As the host leaves it: nothing is decoded or mastered (pci_disable_device).
            self.config.write(COMMAND, b"\0\0")

    def reset(self) -> None:
        """Reset config space and interrupts. Inbound windows are kept: they belong to the
        controller, not to the function (dw_pcie_ep_init_non_sticky_registers)."""
        self.config.reset()
        self._cleared.clear()
        self._deassert()

    def lose(self, what: str) -> None:
        """Apply the fault reset-loses: disable the BARs, or stop MSI and MSI-X for good."""
        if what == "bars":
            self._lost = set(self._memory)
            self.config.disable_bars()
        else:
            self._msi_lost = True

    def reset_bar(self, bar: int) -> None:
        """Take a BAR's address, as a fault of __dw_pcie_ep_reset_bar() did."""
        self._cleared.add(bar)

    # -- BARs, from the bus ---------------------------------------------------------------------

    def fd(self, bar: int) -> int:
        """Return the file descriptor of a BAR's shared memory."""
        return self._memory[bar].fd

    def areas(self, bar: int) -> tuple[Area, ...]:
        """Return the parts of a BAR that a client may map: whole pages without side effects."""
        layout = self.layout.bar(bar)
        page = mmap.PAGESIZE
        if self._trap_all or layout.type is BarType.RESERVED or layout.size < page:
            return ()
        areas = []
        start = 0
        for first, last in sorted(self._trapped(bar)):
            if first // page * page > start:
                areas.append(Area(start, first // page * page - start))
            start = max(start, (last // page + 1) * page)
        if start < layout.size:
            areas.append(Area(start, layout.size - start))
        return tuple(areas)

    def _trapped(self, bar: int) -> Iterator[tuple[int, int]]:
        """Return (first, last) byte of ranges that must not be mapped."""
        layout = self.layout
        place = doorbell_place(layout)
        if place is not None and place[0] == bar:
            yield place[1], place[1] + 3
        if layout.msix and layout.msix_bar == bar:
            yield layout.msix_table, layout.msix_table + layout.msix * MSIX_ENTRY_SIZE - 1
            yield layout.msix_pba, layout.msix_pba + -(-layout.msix // 8) - 1

    def _responds(self, bar: int) -> bool:
        absent = bar in self._cleared or bar in self._lost or bar in self._gone
        return self.config.responds and not absent

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Read on behalf of the host. All ones while BARs are not decoded."""
        if not self._responds(bar):
            return b"\xff" * size
        spoilt = self._spoiler.active and bar != self.layout.register_bar
        access = self._memory[bar]
        memory = self._spoiler.read(access, offset, size) if spoilt else access.read(offset, size)
        if bar not in self._exposed and bar not in self._shown:
            return memory
        shown = self._shown.get(bar) or self._exposed[bar]
        # The registers may begin before this access, or end after it.
        first, last = max(offset, shown.start), min(offset + size, shown.end)
        if first >= last:
            return memory
        registers = self.doorbells.read(first - shown.offset, last - first)
        return memory[: first - offset] + registers + memory[last - offset :]

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Write on behalf of the host. Ignored while BARs are not decoded."""
        if not self._responds(bar):
            return
        if self._spoiler.active and len(data) == 4:
            bar = self._spoiler.reached(bar, offset + 4, self._memory, self.layout.register_bar)
        if bar not in self._exposed and bar not in self._shown:
            self._store(bar, offset, data)
            return
        shown = self._shown.get(bar) or self._exposed[bar]
        alive = "doorbell-dead" not in self.faults
        # Registers see accesses of at most their own width.
        for start, piece in bus_accesses(offset, data):
            if not shown.start <= start < shown.end:
                if bar in self._shown:
                    self._stray(bar, start, piece)
                else:
                    self._store(bar, start, piece)
            elif alive and not self.doorbells.write(start - shown.offset, piece):
                self._stray(bar, start, piece)

    def _store(self, bar: int, offset: int, data: bytes) -> None:
        if self._spoiler.active and bar != self.layout.register_bar:
            self._spoiler.write(self._memory[bar], offset, data)
        else:
            self._memory[bar].write(offset, data)

        if self._msix is not None and bar == self.layout.msix_bar:
            for vector in self._msix.written(offset, len(data)):
                self._send(IrqKind.MSIX, vector)

    def forget(self) -> None:
        """Apply the fault bar-forgets."""
        for bar, memory in self._memory.items():
            if bar != self.layout.register_bar:
                memory.fill(0, min(64, memory.size), 0)

    def _stray(self, bar: int, offset: int, data: bytes) -> None:
        self.log.event(
            "stray", bar=bar, offset=offset, size=len(data), value=int.from_bytes(data, "little")
        )

    # -- BARs, from the endpoint function -------------------------------------------------------

    def window(self, bar: int) -> MappedWindow:
        """Return a BAR's memory for the endpoint's processor.

        Only for a BAR that is never redirected, such as the register BAR.
        """
        return self._memory[bar].window

    def fill(self, bar: int, offset: int, size: int, value: int) -> None:
        """Fill the memory of a BAR (memset())."""
        self._memory[bar].fill(offset, size, value)

    def map_memory(self, bar: int, order: tuple[int, ...] = STRAIGHT) -> None:
        """pci_epc_set_bar() to the BAR's own memory, in parts if ``order`` has several.

        :raises OSError: EINVAL: a part is not a multiple of the controller's granularity, there
            are parts although the BAR was not configured before, or no inbound window is free for
            the whole BAR; ENOSPC: too few are free for its parts. The BAR is then unmapped
        """
        size = self.layout.bar(bar).size
        self._windows[bar] = 0
        if len(order) > 1:
            if bar not in self._configured:
                raise OSError(errno.EINVAL, "parts only of a BAR that is configured")
            # dw_pcie_ep_validate_submap()
            part = size // len(order)
            if size % len(order) or part % self.layout.align:
                raise OSError(errno.EINVAL, f"parts of {part:#x} bytes cannot be mapped")
        self._take_windows(bar, len(order))
        if bar not in self._configured:
            self._configured.add(bar)
            if bar in self._gone:
                self._gone.discard(bar)
                self._find(bar, present=True)
        self._show(bar, order, None)

    def clear_bar(self, bar: int) -> None:
        """pci_epc_clear_bar(): free the BAR's inbound window.

        Its contents stay visible until :meth:`map_memory` or :meth:`lose_bar`, which must follow.
        """
        self._windows[bar] = 0
        self._configured.discard(bar)

    def lose_bar(self, bar: int) -> None:
        """pci_epf_free_space() of a BAR that is not configured: the BAR disappears for every host.

        An earlier mapping reads zero.
        """
        if bar not in self._gone:
            self._gone.add(bar)
            self._shown.pop(bar, None)
            self._memory[bar].forget()
            self._find(bar, present=False)
            self.log.event("inbound", bar=bar, shows="nothing")

    def _find(self, bar: int, *, present: bool) -> None:
        layout = self._seen[bar]
        if layout is not None:
            self.config.set_bar(bar, layout, present=present)

    def map_nothing(self, bar: int) -> None:
        """pci_epc_set_bar() to an address that must not be accessed.

        Writes there are logged as stray when the BAR shows memory again.
        """
        self._windows[bar] = 0
        self._take_windows(bar, 1)
        self._show(bar, REGISTERS, None)

    def map_registers(self, bar: int, base: int) -> None:
        """pci_epc_set_bar() to ``base`` on the endpoint's bus, a multiple of the BAR's size.

        :raises OSError: EINVAL: as for :meth:`map_memory`, or ``base`` cannot be mapped
        """
        if bar in self._gone:
            raise OSError(errno.EINVAL, f"BAR{bar} has no size")
        if base % self.layout.align:
            # dw_pcie_prog_ep_inbound_atu()
            raise OSError(errno.EINVAL, f"{base:#x} is not a multiple of {self.layout.align:#x}")
        self._windows[bar] = 0
        self._take_windows(bar, 1)
        offset = self.doorbells.base - base - self.faults.window_off(self.layout.bar(bar).size)
        self._show(bar, REGISTERS, _Shown(offset, offset, offset + EP_PAGE))

    def _take_windows(self, bar: int, count: int) -> None:
        if sum(self._windows.values()) + count > self.layout.inbound_windows:
            # dw_pcie_ep_ib_atu_addr() for parts, dw_pcie_ep_ib_atu_bar() for the whole
            raise OSError(errno.ENOSPC if count > 1 else errno.EINVAL, "no free inbound window")
        self._windows[bar] = count

    def _show(self, bar: int, order: tuple[int, ...], shown: _Shown | None) -> None:
        memory = self._memory[bar]
        if order == SWAPPED:
            order = self._spoilt(memory.size, order)
        changed = order != memory.order or self._shown.get(bar) != shown
        stray = memory.show(order)
        if shown is None:
            self._shown.pop(bar, None)
        else:
            self._shown[bar] = shown
        if changed:
            what = "registers" if shown else "memory" if len(order) == 1 else "parts"
            self.log.event("inbound", bar=bar, shows=what)
        if stray is not None:
            self.log.event("stray", bar=bar, offset=stray, hidden=True)

    def _spoilt(self, size: int, order: tuple[int, ...]) -> tuple[int, ...]:
        """Apply faults to the two halves of a BAR."""
        if "subrange-straight" in self.faults:
            return (0, 1)
        if "window-off" not in self.faults:
            return order
        off = self.faults.window_off(size)
        count = size // off
        return tuple((part + count // 2 + 1) % count for part in range(count))

    def close(self) -> None:
        for memory in set(self._memory.values()):
            memory.close()
