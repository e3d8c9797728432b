"""The endpoint function pci-epf-vntb, after drivers/pci/endpoint/functions/pci-epf-vntb.c.

Names and order of operations are those of that file; each method cites its function. For the peer
(:mod:`rcdrv.sim.epf_vntb.peer`) this class is a :class:`Bridge`, the ntb_dev of the kernel's NTB
core.
"""

from __future__ import annotations

import errno
import math
from enum import IntEnum
from functools import partial
from typing import Any

from rcdrv.device import IrqKind
from rcdrv.mmio import MappedWindow
from rcdrv.sim.controller import SimController
from rcdrv.sim.doorbell import SimDoorbells
from rcdrv.sim.epf_vntb import VNTB_CONTROL_SIZE, VntbPeer, settings
from rcdrv.sim.epf_vntb.netdev import Netdev
from rcdrv.sim.epf_vntb.peer import Peer, PingPong, Tool
from rcdrv.sim.epf_vntb.tap import TapNetdev
from rcdrv.sim.function import SimFunction


class SimControl(IntEnum):
    """Offsets in the control BAR (struct epf_ntb_ctrl)."""

    COMMAND = 0x00
    ARGUMENT = 0x04
    COMMAND_STATUS = 0x08
    """16 bits, as LINK_STATUS is."""
    LINK_STATUS = 0x0A
    TOPOLOGY = 0x0C
    ADDR = 0x10
    SIZE = 0x18
    NUM_MWS = 0x20
    SPAD_OFFSET = 0x28
    SPAD_COUNT = 0x2C
    DB_ENTRY_SIZE = 0x30
    DB_DATA = 0x34
    DB_OFFSET = 0xB4


class SimVntbCommand(IntEnum):
    """COMMAND_*"""

    CONFIGURE_DOORBELL = 1
    TEARDOWN_DOORBELL = 2
    CONFIGURE_MW = 3
    TEARDOWN_MW = 4
    LINK_UP = 5
    LINK_DOWN = 6


STATUS_OK, STATUS_ERROR = 1, 2
LINK_IS_UP = 1 << 0

DB_START = 2
"""Slot, and MSI vector from 0, of doorbell 0 (EPF_IRQ_DB_START)."""

MAX_MW = 4

POLL_MS, INTERRUPT_POLL_MS = 5, 500
"""Period of epf_ntb_cmd_handler(): with polled doorbells, and with interrupts."""


PEERS: dict[VntbPeer, type[Peer]] = {
    VntbPeer.NONE: Peer,
    VntbPeer.PINGPONG: PingPong,
    VntbPeer.NETDEV: Netdev,
    VntbPeer.TAP: TapNetdev,
    VntbPeer.TOOL: Tool,
}
"""What the layout says of the endpoint."""


class SimEpfVntb(SimFunction):
    """pci-epf-vntb on a controller. Times are seconds of the endpoint's clock."""

    _controller: SimController
    _doorbells: SimDoorbells

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.config = settings(self._layout)
        self._regs = self._controller.window(self.config.ctrl_bar)
        self._slowed = False
        self._rings = 0
        self._dropped = False
        # ntb->msi_doorbell
        self._interrupt_driven = False
        # Host memory that each window maps: (bus address, size).
        self._outbound: dict[int, tuple[int, int]] = {}
        self._peer = PEERS[self.config.peer](self)
        self._bind()
        self.start()

    # -- life -------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Do nothing on a bus reset, as the function has no event_ops."""

    def start(self) -> None:
        """Start polling for commands (pci_vntb_probe())."""
        self._queue()

    def stop(self) -> None:
        self._due = None

    def _bind(self) -> None:
        """Set up control block, doorbells and windows (epf_ntb_bind())."""
        regs, config = self._regs, self.config
        self._outbound.clear()
        self._controller.map_memory(config.ctrl_bar)
        self._controller.fill(config.ctrl_bar, 0, VNTB_CONTROL_SIZE + 8 * config.spad_count, 0)
        regs.write32(SimControl.SPAD_OFFSET, VNTB_CONTROL_SIZE)
        regs.write32(SimControl.SPAD_COUNT, config.spad_count)
        regs.write32(SimControl.NUM_MWS, config.num_mws)
        regs.write32(SimControl.DB_ENTRY_SIZE, 4)
        for slot in range(config.db_count):
            regs.write32(SimControl.DB_DATA + 4 * slot, 1 + slot)
            regs.write32(SimControl.DB_OFFSET + 4 * slot, 0)
        try:
            self._init_interrupt_doorbell()
        except OSError:
            # epf_ntb_db_bar_init() falls back to polling.
            self._doorbells.free()
            self._interrupt_driven = False
            self._controller.map_memory(config.db_bar)
            self._controller.fill(config.db_bar, 0, 4 * config.db_count, 0)
        for index, bar in enumerate(config.mw_bars):
            if bar < 0:
                self._log.event(
                    "harm", reason=f"window {index} has no BAR: epf->bar[-1] is written"
                )
            self.mw_clear_trans(index)

    def _init_interrupt_doorbell(self) -> None:
        """epf_ntb_db_bar_init_msi_doorbell()"""
        config, regs = self.config, self._regs
        self._doorbells.free()
        rung = [partial(self._db_event, slot) for slot in range(config.db_count)]
        doorbells = self._doorbells.allocate(rung)
        first = doorbells[0]
        offset = first.offset
        if first.bar is None:
            offset = first.address % self._layout.bar(config.db_bar).size
            self._controller.map_registers(config.db_bar, first.address - offset)
        elif first.bar != config.db_bar:
            raise OSError(errno.EINVAL, f"the doorbell is in BAR{first.bar}")
        if "bad-offset" in self.faults:
            offset = self.faults.get("bad-offset", self._layout.bar(config.db_bar).size)
        elif "unaligned-offset" in self.faults:
            offset += self.faults.get("unaligned-offset", 0)
        for slot, doorbell in enumerate(doorbells):
            regs.write32(SimControl.DB_DATA + 4 * slot, doorbell.data)
            regs.write32(SimControl.DB_OFFSET + 4 * slot, offset)
        regs.write32(SimControl.DB_ENTRY_SIZE, 0)
        self._interrupt_driven = True

    @property
    def wake_fd(self) -> int:
        return self._peer.wake_fd

    def close(self) -> None:
        self._peer.close()

    # -- time -------------------------------------------------------------------------------------

    def next_event(self) -> float | None:
        """Time of the next :meth:`run`."""
        if self._dropped:
            return self.clock()
        due, other = self._due, self._peer.next_due()
        return due if other is None or (due is not None and due < other) else other

    @property
    def idle(self) -> bool:
        """Always False: the peer may act by itself."""
        return False

    def run(self) -> None:
        """Handle commands and doorbells, and run the peer."""
        if self._due is not None and self.clock() >= self._due:
            self._cmd_handler()
        if self._dropped:
            self._dropped = False
            self._log.event("unbind")
            self._peer.remove()
            self._bind()
        due = self._peer.due
        if due is not None and self.clock() >= due:
            self._peer.run()

    def jiffies(self, milliseconds: int) -> float:
        """Return the time at which a delayed work of this many milliseconds, queued now, runs.

        msecs_to_jiffies() rounds up, and the timer wheel fires in the jiffy after the one in
        which the delay ends (kernel/time/timer.c, calc_index): 5 ms are 12 ms after a tick at
        250 Hz.
        """
        hz = self._layout.hz
        delay = -(-milliseconds * hz // 1000)
        return (math.floor(self.clock() * hz) + delay + 1) / hz

    def _queue(self) -> None:
        self._due = self.jiffies(INTERRUPT_POLL_MS if self._interrupt_driven else POLL_MS)

    # -- commands and doorbells -------------------------------------------------------------------

    def _cmd_handler(self) -> None:
        """epf_ntb_cmd_handler()"""
        if not self._interrupt_driven and "doorbell-dead" not in self.faults:
            memory = self._controller.window(self.config.db_bar)
            for slot in range(DB_START, self.config.db_count):
                if memory.read32(4 * slot):
                    self._db_event(slot)
                    memory.write32(4 * slot, 0)
        command = self._regs.read32(SimControl.COMMAND)
        if command and "silent" not in self.faults:
            if "slow" in self.faults and not self._slowed:
                self._slowed = True
                self._due = self.clock() + self.faults.get("slow", 0) / 1000
                return
            self._slowed = False
            self._take(command)
        self._queue()

    def _take(self, command: int) -> None:
        regs = self._regs
        argument = regs.read32(SimControl.ARGUMENT)
        regs.write32(SimControl.COMMAND, 0)
        regs.write32(SimControl.ARGUMENT, 0)
        self._log.event("command", command=command, argument=argument)
        if "swallow" in self.faults or command not in SimVntbCommand._value2member_map_:
            self._log.event("swallowed", command=command, reason="fault or unknown")
            return
        status = STATUS_OK
        if "command-error" in self.faults:
            status = STATUS_ERROR
        elif command in (SimVntbCommand.LINK_UP, SimVntbCommand.LINK_DOWN):
            up = command == SimVntbCommand.LINK_UP
            others = regs.read16(SimControl.LINK_STATUS) & ~LINK_IS_UP
            regs.write16(SimControl.LINK_STATUS, others | (LINK_IS_UP if up else 0))
            self._peer.link_event(up)
        elif command == SimVntbCommand.CONFIGURE_MW:
            status = self._configure_mw(argument)
        elif command == SimVntbCommand.TEARDOWN_MW:
            self._check_index(argument)
            self._outbound.pop(argument, None)
        regs.write16(SimControl.COMMAND_STATUS, status)
        self._log.event("answer", command=command, status=status)

    def _configure_mw(self, index: int) -> int:
        """epf_ntb_configure_mw(), with the checks of dw_pcie_prog_outbound_atu().

        Other controllers differ: Cadence accepts a size of 0.
        """
        if not self._check_index(index):
            return STATUS_OK
        low = self._regs.read32(SimControl.ADDR) | self._regs.read32(SimControl.ADDR + 4) << 32
        size = self._regs.read32(SimControl.SIZE) | self._regs.read32(SimControl.SIZE + 4) << 32
        if not size or low % self._layout.align:
            return STATUS_ERROR
        self._outbound[index] = (low, size)
        return STATUS_OK

    def _check_index(self, index: int) -> bool:
        """Model an index that the kernel does not check.

        Beyond its array of MAX_MW it reads other memory; within, a missing window's address is 0.
        """
        if index >= MAX_MW:
            self._log.event("harm", reason=f"a command for window {index}")
        return index < self.config.num_mws

    def _db_event(self, slot: int) -> None:
        """ntb_db_event(), by the tick or epf_ntb_doorbell_handler()"""
        if slot < DB_START:  # no doorbell
            return
        self._log.event("doorbell", slot=slot, db=slot - DB_START)
        self._rings += slot == DB_START
        if "link-drops" in self.faults and self._rings > self.faults.get("link-drops", 0):
            self._rings = 0
            self._dropped = True
            return
        self._peer.db_event(slot - DB_START)

    # -- the bridge, for the peer (struct ntb_dev_ops) --------------------------------------------

    @property
    def db_valid_mask(self) -> int:
        """vntb_epf_db_valid_mask()"""
        return (1 << (self.config.db_count - DB_START)) - 1

    @property
    def link_is_up(self) -> bool:
        return bool(self._regs.read16(SimControl.LINK_STATUS) & LINK_IS_UP)

    def spad_read(self, index: int) -> int:
        """vntb_epf_spad_read(): the endpoint's own scratchpads are the host's peer scratchpads."""
        return self._regs.read32(VNTB_CONTROL_SIZE + 4 * (self.config.spad_count + index))

    def spad_write(self, index: int, value: int) -> None:
        self._regs.write32(VNTB_CONTROL_SIZE + 4 * (self.config.spad_count + index), value)

    def peer_spad_write(self, index: int, value: int) -> None:
        """vntb_epf_peer_spad_write()"""
        self._regs.write32(VNTB_CONTROL_SIZE + 4 * index, value)

    def peer_db_set(self, bits: int) -> None:
        """vntb_epf_peer_db_set() and vntb_epf_peer_db_work(): MSI only, numbered from 1."""
        bits &= self.db_valid_mask
        for bit in range(bits.bit_length()):
            if bits >> bit & 1:
                self._controller.raise_irq(IrqKind.MSI, bit + DB_START + 1, doorbell=True)

    def mw_set_trans(self, index: int) -> MappedWindow:
        """vntb_epf_mw_set_trans(): map zeroed memory of the endpoint for the host."""
        bar = self.config.mw_bars[index]
        if bar < 0:
            self._log.event("harm", reason=f"a translation for window {index}, which has no BAR")
            raise OSError(errno.EINVAL, "no BAR")
        self._controller.map_memory(bar)
        self._controller.fill(bar, 0, self.config.mw_sizes[index], 0)
        return self._controller.window(bar)

    def mw_clear_trans(self, index: int) -> None:
        """vntb_epf_mw_clear_trans() does nothing, so the window maps freed memory.

        Like address 0 before the first translation, that must not be accessed.
        """
        if self.config.mw_bars[index] >= 0:
            self._controller.map_nothing(self.config.mw_bars[index])

    def mw_view(self, index: int) -> memoryview | None:
        """Return the host memory that a window maps, for use at once; None: :meth:`mw_write` has to
        write it."""
        base, size = self._outbound.get(index, (0, 0))
        return self._controller.host_view(base, size) if size else None

    def mw_write(self, index: int, offset: int, data: bytes | memoryview) -> None:
        """Write to host memory through a window, by the endpoint's processor."""
        base, size = self._outbound.get(index, (0, 0))
        if offset + len(data) > size:
            self._log.event("harm", reason=f"window {index} at {offset:#x} leads nowhere")
            return
        self._controller.write_host(base + offset, data)
