"""Validated access to the control block of pci-epf-vntb."""

from __future__ import annotations

from collections.abc import Callable

from rcdrv.epf_vntb.registers import BLOCK_SIZE, MAX_WINDOWS, NARROW, BarMap, Reg
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.verdict import NotPassed, Reason

Trace = Callable[[str], None]

ALL_ONES = 0xFFFF_FFFF

LOOK_AT_EP = "on the endpoint: is pci-epf-vntb bound and started, and what does its dmesg say?"


class ControlBlock:
    """Registers of ``struct epf_ntb_ctrl`` in their BAR, and the location of the scratchpads.

    :param trace: called with a line for every access
    :raises UsageError: the function has no such BAR, or it is too small
    :raises NotPassed: ``bad-control``: that BAR holds no control block of a vNTB
    """

    def __init__(self, function: Function, bars: BarMap, trace: Trace | None = None) -> None:
        self.function = function
        self.bars = bars
        self._trace = trace
        self._control = function.bar(bars.control)
        if self._control.size < BLOCK_SIZE:
            raise UsageError(
                f"BAR{bars.control} has {self._control.size:#x} bytes, too few for a control block",
                hint="`control` says where it is",
            )
        self.windows = self._check_windows()
        """Number of memory windows."""
        self.spads = self._check_spads()
        """Number of scratchpads of each side."""
        self._check_bridge()
        self.polled = self._check_entry_size()
        """Whether the endpoint polls the doorbells' memory, without an interrupt."""

    def read(self, register: Reg) -> int:
        """Read a register in one access of its width, 16 or 32 bits.

        :raises DeviceLost: it reads all ones, and so does config space
        """
        value = self._control.read(16 if register in NARROW else 32, register)
        self._say(f"read  {register.name:13} {value:#010x}")
        if value == (0xFFFF if register in NARROW else ALL_ONES):
            self.function.check_alive()
        return value

    def write(self, register: Reg, value: int) -> None:
        """Write a register in one access of its width."""
        self._say(f"write {register.name:13} {value:#010x}")
        self._control.write(16 if register in NARROW else 32, register, value)

    def _say(self, line: str) -> None:
        if self._trace is not None:
            self._trace(line)

    def _check_windows(self) -> int:
        count = self.read(Reg.MW_COUNT)
        if count > MAX_WINDOWS:
            raise self._nonsense(f"MW_COUNT is {count:#x}; it can be {MAX_WINDOWS} at most")
        return count

    def _check_spads(self) -> int:
        offset, count = self.read(Reg.SPAD_OFFSET), self.read(Reg.SPAD_COUNT)
        apart = self.bars.peer_spad != self.bars.control
        end = offset + 4 * count * (1 if apart else 2)
        if offset % 4 or offset < BLOCK_SIZE or end > self._control.size:
            raise self._nonsense(
                f"SPAD_OFFSET {offset:#x} and SPAD_COUNT {count:#x} do not fit BAR"
                f"{self.bars.control} of {self._control.size:#x} bytes"
            )
        self._own_spads = offset
        self._peer_spads = 0 if apart else offset + 4 * count
        self._peer_window = self.function.bar(self.bars.peer_spad)
        if 4 * count > self._peer_window.size:
            raise self._nonsense(f"SPAD_COUNT {count:#x} does not fit BAR{self.bars.peer_spad}")
        return count

    def _check_bridge(self) -> None:
        """Reject pci-epf-ntb, which has the same block: its first window follows the doorbells, and
        its peer scratchpads are in another BAR (epf_ntb_db_mw_bar_init())."""
        offset = self.read(Reg.MW1_OFFSET)
        if offset:
            raise NotPassed(
                Reason.BAD_CONTROL,
                f"MW1_OFFSET is {offset:#x}: this is a pci-epf-ntb, a bridge between two hosts",
                hint="rcdrv drives pci-epf-vntb; nothing was written",
            )

    def _check_entry_size(self) -> bool:
        size = self.read(Reg.DB_ENTRY_SIZE)
        if size not in (0, 4):
            raise self._nonsense(f"DB_ENTRY_SIZE is {size:#x}; it can be 0 or 4")
        return size == 4

    def _nonsense(self, what: str) -> NotPassed:
        return NotPassed(
            Reason.BAD_CONTROL,
            f"BAR{self.bars.control} holds no control block of pci-epf-vntb: {what}",
            hint="`control` says where it is; " + LOOK_AT_EP,
        )
