"""The endpoint function pci-epf-test, after drivers/pci/endpoint/functions/pci-epf-test.c.

This module is longer than others on purpose, so that it can be compared with that one file. Names
and order of operations are those of that file; each handler cites its function.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import zlib
from collections.abc import Generator

from rcdrv.device import IrqKind
from rcdrv.sim.controller import SWAPPED, SimController
from rcdrv.sim.description import BarType, Dma
from rcdrv.sim.doorbell import SimDoorbells
from rcdrv.sim.epf_test.registers import (
    KMALLOC_MAX,
    LARGEST_SUBRANGE,
    NO_BAR,
    USE_DMA,
    VERDICTS,
    SimCaps,
    SimCommand,
    SimRegister,
    SimStatus,
)
from rcdrv.sim.function import SimFunction
from rcdrv.sim.memory import STRAIGHT

_WRITE_SETTLES = 0.0015
"""usleep_range(1000, 2000) at the end of pci_epf_test_write()."""

_Steps = Generator[float, None, None]
"""A command in progress; yields the seconds that it sleeps."""

_NEVER = math.inf

_LATE = ("doorbell-late", "disable-races")
"""Faults that delay the handler of a ring."""


class _LinkDown(Exception):
    """The function was reset while it waited for the host's memory."""


class SimEpfTest(SimFunction):
    """pci-epf-test on a controller. Times are seconds of the endpoint's clock."""

    _controller: SimController
    _doorbells: SimDoorbells

    def __init__(self, controller: SimController) -> None:
        super().__init__(controller)
        self._regs = self._controller.window(self._layout.register_bar)
        self._steps: _Steps | None = None
        # Changes with every reset, so that a transfer notices one during its wait.
        self._epoch = 0
        # The worker crashed or blocks forever, until a reboot.
        self._dead = False
        self._stuck = 0
        self._silent = "silent" in self.faults
        # epf->bar[].submap: nothing clears it but BAR_SUBRANGE_CLEAR, no reset and no rebind.
        self._submaps: dict[int, tuple[int, ...]] = {}
        # epf_test->reg[]: the BARs that have memory (pci_epf_test_alloc_space())
        self._allocated = set(self._layout.usable_bars)
        self._bound = True
        # The doorbell's interrupt thread crashed.
        self._handler_died = False
        self._overrun = False
        self._enabled_times = 0
        # epf_test->db_bar_programmed
        self._doorbell_mapped = False
        # Times of the ring handlers that the fault doorbell-late delays.
        self._late_rings: list[float] = []
        # The falsified DB_BAR, and the true BAR.
        self._said_bar = (NO_BAR, NO_BAR)
        # Bytes by which the fault offset-changes has moved DB_OFFSET.
        self._offset_moved = 0
        self.set_up()
        self.start()

    # -- life -------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Set up CAPS and the BARs (pci_epf_test_epc_deinit(), pci_epf_test_epc_init()).

        Registers, doorbell and memory keep their state. A BAR that cannot be configured is lost.
        """
        if not self._bound:
            return
        self._regs.write32(SimRegister.CAPS, self._caps())
        for index in self._allocated:
            self._controller.clear_bar(index)
        for index in sorted(self._allocated):
            try:
                self._controller.map_memory(index, self._submaps.get(index, STRAIGHT))
            except OSError as error:
                self._log.event("bar-lost", bar=index, reason=str(error.strerror))
                self._allocated.discard(index)
                self._controller.lose_bar(index)

    def unbind(self) -> None:
        """Stop polling, and free all BARs and their memory (pci_epf_test_unbind()), as unlinking it
        from its controller in configfs does.

        A doorbell, its interrupt and subrange mappings stay allocated.
        """
        self.stop()
        for index in sorted(self._allocated):
            self._controller.clear_bar(index)
            self._controller.lose_bar(index)
        self._allocated.clear()
        self._bound = False
        self._log.event("unbind")

    def bind(self) -> None:
        """Bind and set up with new memory, which reads zero (pci_epf_test_bind()).

        The directory in configfs is the same, and so is its struct pci_epf.
        """
        self._bound = True
        self._log.event("bind")
        self._allocated = set(self._layout.usable_bars)
        self.set_up()
        self.start()

    def start(self) -> None:
        """Start polling for commands, as the link is up (pci_epf_test_link_up())."""
        if self._bound and not self._dead:
            self._queue()

    def stop(self) -> None:
        """Stop polling, as the link is down (pci_epf_test_link_down()); drop a running command."""
        self._epoch += 1
        self._due = None
        self._steps = None
        self._late_rings.clear()

    def next_event(self) -> float | None:
        if not self._late_rings:
            return self._due
        return min(self._late_rings[0], math.inf if self._due is None else self._due)

    def run(self) -> None:
        """Poll for a command, or resume one that slept. May call the host's DMA methods."""
        while self._late_rings and self._late_rings[0] <= self.clock():
            del self._late_rings[0]
            self._handle_ring()
        if self._due is None or self.clock() < self._due:
            return
        if self._steps is None:
            # In this order, so a command written in between meets the old IRQ_TYPE.
            irq_type = self._regs.read32(SimRegister.IRQ_TYPE)
            command = self._regs.read32(SimRegister.COMMAND)
            if not self._takes(command):
                self._queue()
                return
            self._steps = self._cmd_handler(command, irq_type)
        steps, epoch = self._steps, self._epoch
        self._due = None
        try:
            sleep = next(steps)
        except StopIteration:
            if epoch == self._epoch:
                self._steps = None
                self._queue()
        except _LinkDown:
            pass
        else:
            self._dead = sleep == _NEVER
            self._due = None if self._dead else self.clock() + sleep

    @property
    def idle(self) -> bool:
        """Whether nothing happens until the host writes to the registers or rings."""
        if self._steps is not None or self._late_rings:
            return False
        return not self._takes(self._regs.read32(SimRegister.COMMAND))

    def _takes(self, command: int) -> bool:
        """Return whether COMMAND holds a new command."""
        if not command:
            self._stuck = 0
        return command != self._stuck and not self._silent

    def _queue(self) -> None:
        """Schedule the next poll (queue_delayed_work(msecs_to_jiffies(1))).

        The timer wheel rounds up to the jiffy after the one in which the delay ends
        (kernel/time/timer.c, calc_index).
        """
        hz = self._layout.hz
        delay = -(-hz // 1000)
        self._due = (math.floor(self.clock() * hz) + delay + 1) / hz

    def _caps(self) -> int:
        """pci_epf_test_set_capabilities()"""
        layout = self._layout
        if layout.caps >= 0:
            return layout.caps
        caps = SimCaps(0)
        if layout.unaligned_access:
            caps |= SimCaps.UNALIGNED_ACCESS
        if layout.msi:
            caps |= SimCaps.MSI
        if layout.msix:
            caps |= SimCaps.MSIX
        if layout.announce_intx:
            caps |= SimCaps.INTX
        if layout.dynamic_inbound:
            caps |= SimCaps.DYNAMIC_INBOUND_MAPPING
            if layout.subrange:
                caps |= SimCaps.SUBRANGE_MAPPING
        value = int(caps)
        for index, bar in enumerate(layout.bars):
            if bar is not None and bar.type is BarType.RESERVED:
                value |= SimCaps.BAR0_RESERVED << index
        return value

    def answer(self, bar: int, offset: int, data: bytes) -> bytes:
        """Apply the fault offset-changes to a read."""
        if "offset-changes" not in self.faults:
            return data
        if (bar, offset, len(data)) != (self._layout.register_bar, SimRegister.DB_OFFSET, 4):
            return data
        value = int.from_bytes(data, "little") + self._offset_moved
        self._offset_moved += 4
        return (value & 0xFFFF_FFFF).to_bytes(4, "little")

    # -- commands ---------------------------------------------------------------------------------

    def _cmd_handler(self, command: int, irq_type: int) -> _Steps:
        """pci_epf_test_cmd_handler(), behind its first two reads"""
        regs, faults = self._regs, self.faults
        self._log.event("command", command=command)
        if "stuck-command" in faults:
            self._stuck = command
        else:
            regs.write32(SimRegister.COMMAND, 0)
        regs.write32(SimRegister.STATUS, 0)
        if "bar-forgets" in faults:
            self._controller.forget()
        if "slow" in faults:
            yield faults.get("slow", 0) / 1000
        reason = self._swallows(command, irq_type)
        if reason:
            self._log.event("swallowed", command=command, reason=reason)
            return
        handler = {
            SimCommand.READ: self._read,
            SimCommand.WRITE: self._write,
            SimCommand.COPY: self._copy,
            SimCommand.ENABLE_DOORBELL: self._enable_doorbell,
            SimCommand.DISABLE_DOORBELL: self._disable_doorbell,
            SimCommand.BAR_SUBRANGE_SETUP: self._subrange_setup,
            SimCommand.BAR_SUBRANGE_CLEAR: self._subrange_clear,
        }.get(SimCommand(command))
        if handler is not None:
            yield from handler()
        if "contradiction" in faults:
            said = regs.read32(SimRegister.STATUS)
            self._add_status(sum(both for both in VERDICTS if said & both))
        self._log.event("answer", command=command, status=regs.read32(SimRegister.STATUS))
        self._raise_irq()

    def _swallows(self, command: int, irq_type: int) -> str:
        """Return why a command gets no answer; empty if it gets one."""
        if self._regs.read32(SimRegister.FLAGS) & USE_DMA and self._layout.dma is Dma.NONE:
            return "USE_DMA without a DMA channel"
        if irq_type > 2:
            return f"IRQ_TYPE {irq_type:#x}"
        if command not in SimCommand._value2member_map_:
            return "not exactly one known bit"
        faults = {
            SimCommand.ENABLE_DOORBELL: ("swallow", "enable-silent"),
            SimCommand.DISABLE_DOORBELL: ("swallow", "disable-silent"),
        }.get(SimCommand(command), ("swallow",))
        return "".join(f"fault {fault}" for fault in faults if fault in self.faults)

    def _set_status(self, status: int) -> None:
        self._regs.write32(SimRegister.STATUS, status)

    def _add_status(self, status: int) -> None:
        self._regs.write32(SimRegister.STATUS, self._regs.read32(SimRegister.STATUS) | int(status))

    def _raise_irq(self, *, doorbell: bool = False) -> None:
        """pci_epf_test_raise_irq()"""
        irq_number = self._regs.read32(SimRegister.IRQ_NUMBER)
        if doorbell and "ring-vector" in self.faults:
            irq_number = 1
        irq_type = self._regs.read32(SimRegister.IRQ_TYPE)
        # Before the interrupt, so that the host finds it when the interrupt arrives.
        self._add_status(SimStatus.IRQ_RAISED)
        if irq_type == IrqKind.INTX:
            self._controller.raise_irq(IrqKind.INTX, 1, doorbell=doorbell)
            return
        if irq_type > IrqKind.MSIX:
            self._log.event("irq-failed", reason=f"IRQ_TYPE {irq_type:#x}")
            return
        kind = IrqKind(irq_type)
        count = self._controller.vectors(kind)
        if irq_number > count or not count:
            reason = f"IRQ_NUMBER {irq_number} of {count}"
            self._log.event("irq-failed", kind=kind.name.lower(), reason=reason)
            return
        if not irq_number:
            # The kernel subtracts 1 unchecked: for MSI-X it takes what precedes the table.
            self._log.event("harm", reason=f"IRQ_NUMBER 0 with {kind.name}")
        self._controller.raise_irq(kind, irq_number, doorbell=doorbell)

    # -- transfers --------------------------------------------------------------------------------

    def _read(self) -> _Steps:
        """Compare the CRC of the host's memory at SRC with CHECKSUM (pci_epf_test_read())."""
        source, size = self._address(SimRegister.SRC_ADDR), self._regs.read32(SimRegister.SIZE)
        expected = self._regs.read32(SimRegister.CHECKSUM)
        if "bad-checksum" in self.faults:
            expected ^= 1
        status = SimStatus(0)
        try:
            self._allocate(size)
            if size:
                status = SimStatus.SRC_ADDR_INVALID
                self._map("src-invalid", source, size)
                status = SimStatus(0)
            data = self._damage((yield from self._fetch(source, size)))
            failed = crc32_le(data) != expected
        except OSError:
            failed = True
        self._set_status(status | (SimStatus.READ_FAIL if failed else SimStatus.READ_SUCCESS))

    def _write(self) -> _Steps:
        """Write random bytes to DST and their CRC to CHECKSUM (pci_epf_test_write())."""
        target, size = self._address(SimRegister.DST_ADDR), self._regs.read32(SimRegister.SIZE)
        status = SimStatus(0)
        try:
            self._allocate(size)
            data = os.urandom(size)
            checksum = crc32_le(data) ^ ("bad-checksum" in self.faults)
            self._regs.write32(SimRegister.CHECKSUM, checksum)
            if size:
                status = SimStatus.DST_ADDR_INVALID
                self._map("dst-invalid", target, size)
                status = SimStatus(0)
            yield from self._store(target, self._damage(data))
            yield _WRITE_SETTLES
            status |= SimStatus.WRITE_SUCCESS
        except OSError:
            status |= SimStatus.WRITE_FAIL
        self._set_status(status)

    def _copy(self) -> _Steps:
        """Copy SRC to DST (pci_epf_test_copy())."""
        regs = self._regs
        source, target = self._address(SimRegister.SRC_ADDR), self._address(SimRegister.DST_ADDR)
        size = regs.read32(SimRegister.SIZE)
        status = SimStatus(0)
        try:
            if regs.read32(SimRegister.FLAGS) & USE_DMA:
                if self._layout.dma is not Dma.MEMCPY:
                    raise OSError(errno.EINVAL, "no memcpy channel")
            else:
                self._allocate(size)
            if size:
                status = SimStatus.SRC_ADDR_INVALID
                used = self._map("src-invalid", source, size)
                status = SimStatus.DST_ADDR_INVALID
                self._map("dst-invalid", target, size, used)
                status = SimStatus(0)
            data = yield from self._fetch(source, size)
            yield from self._store(target, self._damage(data))
            status |= SimStatus.COPY_SUCCESS
        except OSError:
            status |= SimStatus.COPY_FAIL
        self._set_status(status)

    def _address(self, register: SimRegister) -> int:
        # Two words, as the address is not 8-byte aligned.
        return self._regs.read32(register) | self._regs.read32(register + 4) << 32

    def _allocate(self, size: int) -> None:
        if size > KMALLOC_MAX:
            self._log.event("harm", reason=f"kzalloc({size}) warns and fails")
            raise OSError(errno.ENOMEM, "kzalloc")

    def _map(self, fault: str, address: int, size: int, used: int = 0) -> int:
        if fault in self.faults:
            raise OSError(errno.ENOMEM, f"fault {fault}")
        return self._controller.map_outbound(address, size, used)

    def _fetch(self, address: int, size: int) -> Generator[float, None, bytes]:
        yield from self._hang()
        if not size:
            return b""
        epoch = self._epoch
        data = self._controller.read_host(address, size)
        self._check_link(epoch)
        return data

    def _store(self, address: int, data: bytes) -> _Steps:
        yield from self._hang()
        if data:
            epoch = self._epoch
            self._controller.write_host(address, data)
            self._check_link(epoch)

    def _hang(self) -> _Steps:
        if "dma-hangs" in self.faults and self._regs.read32(SimRegister.FLAGS) & USE_DMA:
            # wait_for_completion_interruptible() has no time-out.
            yield _NEVER

    def _check_link(self, epoch: int) -> None:
        if epoch != self._epoch:
            raise _LinkDown

    def _damage(self, data: bytes) -> bytes:
        if "bad-data" not in self.faults or not data:
            return data
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]

    # -- doorbell ---------------------------------------------------------------------------------

    def _doorbell_handler(self) -> None:
        """Handle a ring without waiting for a tick, as in a threaded interrupt."""
        late = next((name for name in _LATE if name in self.faults), "")
        if late:
            self._late_rings.append(self.clock() + self.faults.get(late, 0) / 1000)
        else:
            self._handle_ring()

    def _handle_ring(self) -> None:
        """pci_epf_test_doorbell_handler()"""
        if not self._bound:
            self._log.event("oops", reason="a ring while pci-epf-test is not bound")
            self._handler_died = True
        if "ring-overrun" in self.faults:
            said = self._regs.read32(SimRegister.STATUS)
            self._overrun |= bool(said & SimStatus.DOORBELL_SUCCESS)
        busy = self._steps is not None and "ring-while-busy" in self.faults
        if self._handler_died or self._overrun or busy:
            return
        status = 0 if "no-status" in self.faults else SimStatus.DOORBELL_SUCCESS
        self._log.event("doorbell")
        self._add_status(status)
        self._raise_irq(doorbell=True)

    def _enable_doorbell(self) -> _Steps:
        """pci_epf_test_enable_doorbell()"""
        yield from ()
        try:
            if "enable-fail" in self.faults:
                raise OSError(errno.ENODEV, "fault enable-fail")
            self._overrun = False
            self._enabled_times += 1
            leaks = "doorbell-leaks" in self.faults
            if leaks and self._enabled_times > self.faults.get("doorbell-leaks", 0):
                raise OSError(errno.ENOSPC, "fault doorbell-leaks")
            doorbell = self._doorbells.allocate([self._doorbell_handler])[0]
        except OSError:
            self._add_status(SimStatus.DOORBELL_ENABLE_FAIL)
            return
        bar, offset = doorbell.bar, doorbell.offset
        self._doorbell_mapped = False
        try:
            if bar is None:
                bar = self._layout.next_free_bar(self._layout.register_bar + 1)
                if bar is None:
                    raise OSError(errno.ENODEV, "no BAR left for the doorbell")
                # pci_epf_align_inbound_addr(), which does the same with a size of 0
                size = self._layout.bar(bar).size if bar in self._allocated else 1 << 64
                offset = doorbell.address % size
                self._announce(bar, offset, doorbell.data)
                self._controller.map_registers(bar, doorbell.address - offset)
                self._doorbell_mapped = True
            else:
                self._announce(bar, offset, doorbell.data)
        except OSError:
            self._regs.write32(SimRegister.DB_BAR, NO_BAR)
            self._doorbells.free()
            self._add_status(SimStatus.DOORBELL_ENABLE_FAIL)
            return
        self._add_status(SimStatus.DOORBELL_ENABLE_SUCCESS)

    def _announce(self, bar: int, offset: int, data: int) -> None:
        """Write DB_BAR, DB_OFFSET, DB_DATA; faults change the announcement, not the doorbell."""
        layout = self._layout
        said, offset = self.faults.said_place((bar, offset), layout.sizes, layout.register_bar)
        said &= 0xFFFF_FFFF
        self._said_bar = (said, bar)
        self._regs.write32(SimRegister.DB_DATA, data)
        self._regs.write32(SimRegister.DB_BAR, said)
        # cpu_to_le32(offset), however large the BAR
        self._regs.write32(SimRegister.DB_OFFSET, offset & 0xFFFF_FFFF)

    def _disable_doorbell(self) -> _Steps:
        """pci_epf_test_disable_doorbell()"""
        yield from ()
        bar = self._regs.read32(SimRegister.DB_BAR)
        said, meant = self._said_bar
        if bar == said and self._doorbells.allocated:
            bar = meant
        # enum pci_barno is signed, and NO_BAR is -1.
        races = "disable-races" in self.faults and bool(self._late_rings)
        if bar >= 1 << 31 or races or "disable-fail" in self.faults:
            self._add_status(SimStatus.DOORBELL_DISABLE_FAIL)
            return
        if not self._doorbells.allocated:
            # free_irq(epf->db_msg[0].virq) with db_msg NULL.
            yield from self._oops("DISABLE_DOORBELL without an enabled doorbell")
        # free_irq() waits for a running handler.
        while self._late_rings:
            del self._late_rings[0]
            self._handle_ring()
        self._doorbells.free()
        self._regs.write32(SimRegister.DB_BAR, NO_BAR)
        if self._doorbell_mapped:
            if bar > 6:
                # epf->bar[bar], with the host's value of DB_BAR.
                yield from self._oops(f"DB_BAR was overwritten with {bar:#x}")
            try:
                # What follows the array, and a BAR without memory, have no size: -EINVAL.
                if bar not in self._allocated:
                    raise OSError(errno.EINVAL, f"BAR{bar} has no size")
                self._controller.map_memory(bar, self._submaps.get(bar, STRAIGHT))
            except OSError:
                self._add_status(SimStatus.DOORBELL_DISABLE_FAIL)
                return
            self._doorbell_mapped = False
        if "disable-clears-bar" in self.faults:
            self._controller.reset_bar(bar)
        self._add_status(SimStatus.DOORBELL_DISABLE_SUCCESS)

    def _oops(self, reason: str) -> _Steps:
        """Kill the kernel's worker, after which no command is taken."""
        self._log.event("oops", reason=reason)
        yield _NEVER

    # -- subrange mapping -------------------------------------------------------------------------

    def _subrange_setup(self) -> _Steps:
        """pci_epf_test_bar_subrange_setup()"""
        index = self._regs.read32(SimRegister.SIZE)
        status = SimStatus.BAR_SUBRANGE_SETUP_FAIL
        yield from self._check_index(index)
        if self._may_subrange(index):
            try:
                if "no-resource" in self.faults:
                    raise OSError(errno.ENOSPC, "fault no-resource")
                self._controller.map_memory(index, SWAPPED)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    status |= SimStatus.NO_RESOURCE
                with contextlib.suppress(OSError):
                    self._controller.map_memory(index, self._submaps.get(index, STRAIGHT))
            else:
                self._submaps[index] = SWAPPED
                half = self._layout.bar(index).size // 2
                for part in range(2):
                    # pci_epf_test_subrange_sig_byte(), into the memory that part shows
                    value = 0x50 + 8 * index + part
                    self._controller.fill(index, (part ^ 1) * half, half, value)
                status = SimStatus.BAR_SUBRANGE_SETUP_SUCCESS
        self._add_status(status)

    def _may_subrange(self, index: int) -> bool:
        layout = self._layout
        if index >= 6 or index == layout.register_bar:
            return False
        if not (layout.dynamic_inbound and layout.subrange):
            return False
        return index in self._allocated and layout.bar(index).size <= LARGEST_SUBRANGE

    def _check_index(self, index: int) -> _Steps:
        """Model a negative BAR number, which indexes epf->bar[], as enum pci_barno is signed.

        Just before the array a size is 0, so both commands fail; farther away is no memory.
        """
        if index >= 1 << 31:
            self._log.event("harm", reason=f"BAR_SUBRANGE with BAR number {index:#x}")
            if index < (1 << 32) - 64:
                yield from self._oops(f"epf->bar[{index - (1 << 32)}]")

    def _subrange_clear(self) -> _Steps:
        """pci_epf_test_bar_subrange_clear()"""
        index = self._regs.read32(SimRegister.SIZE)
        status = SimStatus.BAR_SUBRANGE_CLEAR_FAIL
        yield from self._check_index(index)
        # A lost BAR has no size, so pci_epc_set_bar() refuses it, and it keeps its submap.
        if index in self._submaps and index in self._allocated:
            with contextlib.suppress(OSError):
                self._controller.map_memory(index)
                del self._submaps[index]
                status = SimStatus.BAR_SUBRANGE_CLEAR_SUCCESS
        self._add_status(status)


def crc32_le(data: bytes) -> int:
    """Return the kernel's crc32_le(~0, data), without zlib's final inversion."""
    return zlib.crc32(data) ^ 0xFFFF_FFFF
