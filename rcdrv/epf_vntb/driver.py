"""Driver of a pci-epf-vntb endpoint: commands, link, scratchpads, doorbells, windows.

The order of operations follows ``drivers/ntb/hw/epf/ntb_hw_epf.c``. Every value from the endpoint
is checked before use, and every wait is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from rcdrv.device import IrqKind
from rcdrv.dma import DmaBuffer
from rcdrv.epf_vntb.control import ALL_ONES, LOOK_AT_EP, ControlBlock, Trace
from rcdrv.epf_vntb.registers import (
    FIRST_SLOT,
    LINK_IS_UP,
    MAX_SLOTS,
    MAX_VECTORS,
    MIN_VECTORS,
    SMALLEST_WINDOW_ALIGN,
    BarMap,
    Command,
    CommandStatus,
    Reg,
    db_data,
    db_offset,
)
from rcdrv.errors import DeviceLost, HostError, UsageError
from rcdrv.function import Function
from rcdrv.interrupts import Interrupts
from rcdrv.mmio import Window, barrier
from rcdrv.verdict import NotPassed, Reason, Verdict
from rcdrv.wait import Deadline

# Seconds between reads of CMD_STATUS. The endpoint polls COMMAND every 5 or 500 ms.
_POLL = 0.0005
# Seconds between reads of LINK_STATUS during a wait; its changes raise no interrupt.
_LOOK = 0.1

# pci_vntb_probe() queues the command handler; epf_ntb_bind() creates the device that it probes.
_LOOK_AT_PROBE = (
    "on the endpoint: does lspci -k show the device of vntb_vid and vntb_pid, bound to pci-vntb?"
    " Its probe starts the command handler. Then: is pci-epf-vntb bound and started?"
)


@dataclass(frozen=True)
class Doorbell:
    """Validated location and data of one doorbell of the endpoint."""

    number: int
    bar: int
    offset: int
    data: int


class Vntb(ControlBlock):
    """A pci-epf-vntb endpoint, seen from the root complex.

    :param function: the open function; the caller closes it
    :param bars: the BAR of each part of the bridge
    :param timeout: bound of every wait for the endpoint in seconds
    :param trace: called with a line for every register access
    :raises UsageError: the function has no such BAR
    :raises NotPassed: ``bad-control``: that BAR holds no control block of a vNTB
    """

    def __init__(
        self,
        function: Function,
        bars: BarMap,
        *,
        timeout: float = 1.0,
        trace: Trace | None = None,
    ) -> None:
        function.allow(timeout)
        super().__init__(function, bars, trace)
        self.timeout = timeout
        self._interrupts: Interrupts | None = None
        self._configured = False
        self._owed: Command | None = None
        """Command whose answer is outstanding."""

    # -- commands -----------------------------------------------------------------------------

    def command(self, command: Command, argument: int = 0) -> None:
        """Send a command and wait for its answer.

        :raises NotPassed: ``stuck-command``, ``silent``, ``command-refused``
        """
        self._wait_until_idle(command)
        self.write(Reg.CMD_STATUS, 0)
        self.write(Reg.ARGUMENT, argument)
        barrier()
        self.write(Reg.COMMAND, command)
        self._owed = command
        deadline = self.function.deadline(self.timeout)
        while True:
            late = deadline.expired
            status = self.read(Reg.CMD_STATUS)
            if status:
                break
            if late:
                raise self._no_answer(command)
            self.function.pause(_POLL)
        self._owed = None
        self.write(Reg.CMD_STATUS, 0)
        if status != CommandStatus.OK:
            raise NotPassed(
                Reason.COMMAND_REFUSED,
                f"{command.name}: CMD_STATUS is {status:#06x}, not OK",
                hint="the endpoint's dmesg says what it could not do",
            )

    def _wait_until_idle(self, command: Command) -> None:
        """Wait until the endpoint has taken and answered the command before ``command``.

        epf_ntb_cmd_handler() clears COMMAND first and writes CMD_STATUS when the work is done. An
        answer does not name its command, so a late one would pass for the next command's. Handler
        runs do not overlap, so nothing follows the outstanding answer.
        """
        deadline = self.function.deadline(self.timeout)
        while True:
            late = deadline.expired
            left = self.read(Reg.COMMAND)
            if left in list(Command):  # possibly an earlier process's
                self._owed = Command(left)
            if not left and (self._owed is None or self.read(Reg.CMD_STATUS)):
                self._owed = None
                return
            if late:
                break
            self.function.pause(_POLL)
        if not left:
            assert self._owed is not None
            owed, self._owed = self._owed, None  # after a rebind, no answer is outstanding
            raise NotPassed(
                Reason.SILENT,
                f"{command.name} was not sent: the endpoint still owes the answer to"
                f" {owed.name} after {self.timeout:g} s",
                hint=LOOK_AT_EP,
            )
        raise NotPassed(
            Reason.STUCK_COMMAND,
            f"COMMAND still holds {left:#x} after {self.timeout:g} s:"
            " the endpoint does not take commands",
            hint=_LOOK_AT_PROBE,
        )

    def _no_answer(self, command: Command) -> NotPassed:
        taken = self.read(Reg.COMMAND) == 0
        how = "took it and does not answer" if taken else "does not take it"
        return NotPassed(
            Reason.SILENT,
            f"{command.name}: the endpoint {how} within {self.timeout:g} s",
            hint=(LOOK_AT_EP if taken else _LOOK_AT_PROBE)
            + " With an interrupt for its doorbell it polls COMMAND every 500 ms only.",
        )

    # -- link ---------------------------------------------------------------------------------

    @property
    def link_is_up(self) -> bool:
        """Return LINK_STATUS, which the endpoint changes only on the host's own commands."""
        return bool(self.read(Reg.LINK_STATUS) & LINK_IS_UP)

    def link_up(self) -> None:
        """Send LINK_UP.

        :raises NotPassed: no answer, or ``link-down``: LINK_STATUS did not change
        """
        self.command(Command.LINK_UP)
        if not self.link_is_up:
            raise NotPassed(
                Reason.LINK_DOWN,
                "LINK_UP was answered with OK, but LINK_STATUS says that it is down",
                hint=LOOK_AT_EP,
            )

    def link_down(self) -> None:
        self.command(Command.LINK_DOWN)

    def check_link(self) -> None:
        """Check that the link is up.

        :raises NotPassed: ``link-lost``
        """
        if not self.link_is_up:
            raise NotPassed(
                Reason.LINK_LOST,
                "LINK_STATUS says that the link is down, without a LINK_DOWN from this side",
                hint="was the endpoint function unbound, or did the endpoint reboot?",
            )

    # -- scratchpads --------------------------------------------------------------------------

    def spad_read(self, index: int, *, peer: bool = False) -> int:
        """Read a scratchpad that the endpoint writes, or with ``peer`` one that the host writes."""
        window, offset = self._spad(index, peer)
        value = window.read32(offset)
        self._say(f"read  {'peer' if peer else 'own '} spad {index:<3} {value:#010x}")
        return value

    def spad_write(self, index: int, value: int, *, peer: bool = False) -> None:
        window, offset = self._spad(index, peer)
        self._say(f"write {'peer' if peer else 'own '} spad {index:<3} {value:#010x}")
        window.write32(offset, value)

    def _spad(self, index: int, peer: bool) -> tuple[Window, int]:
        if not 0 <= index < self.spads:
            raise UsageError(f"no scratchpad {index}: they are 0 to {self.spads - 1}")
        if peer:
            return self._peer_window, self._peer_spads + 4 * index
        return self._control, self._own_spads + 4 * index

    # -- doorbells ----------------------------------------------------------------------------

    @property
    def vectors(self) -> int:
        """Number of armed MSI vectors."""
        return 0 if self._interrupts is None else self._interrupts.count

    @property
    def doorbells(self) -> int | None:
        """Return the endpoint's number of doorbells; None if it cannot be determined.

        No register holds db_count. Slots beyond it are zero, but so may be an existing one: an
        embedded doorbell at the start of its BAR.
        """
        if not any(self._slot(FIRST_SLOT)):
            return None
        slots = range(FIRST_SLOT, MAX_SLOTS)
        return next((n - FIRST_SLOT for n in slots if not any(self._slot(n))), len(slots))

    def _slot(self, slot: int) -> tuple[int, int]:
        """Return (DB_OFFSET, DB_DATA); (0, 0) if there is no such doorbell."""
        offset = self._control.read32(db_offset(slot))
        if not self.polled:
            # The first interrupt's data is often 0; only the offset tells.
            return offset, 0
        return offset, self._control.read32(db_data(slot))

    def doorbell(self, number: int) -> Doorbell:
        """Return the validated location of doorbell ``number``.

        :raises UsageError: the endpoint has no such doorbell, or announces no vector for it
        :raises NotPassed: ``no-vectors``; ``bad-offset``: an invalid location
        """
        limit = min(self.function.device.irq_count(IrqKind.MSI), MAX_SLOTS)
        if limit < MIN_VECTORS:
            raise self._few_vectors(limit)
        if not 0 <= number < limit - FIRST_SLOT:
            raise UsageError(
                f"no doorbell {number}: with {limit} MSI vectors they are 0 to"
                f" {limit - FIRST_SLOT - 1}",
                hint="doorbell N has slot N + 2, and a slot needs a vector",
            )
        count = self.doorbells
        if count is not None and number >= count:
            # With DB_ENTRY_SIZE 0 this is the first register of the ITS or the eDMA.
            raise UsageError(
                f"no doorbell {number}: the endpoint shows {count} (its db_count is {count + 2})",
                hint="a slot beyond db_count may be a register of the endpoint's ITS or eDMA",
            )
        return self.doorbell_place(number)

    def doorbell_place(self, number: int) -> Doorbell:
        """Return the location of doorbell ``number``, with or without a vector for its answer.

        :raises NotPassed: ``bad-offset``: outside of the doorbell BAR
        """
        slot = number + FIRST_SLOT
        bar = self.function.bar(self.bars.doorbell)
        base = self._control.read32(db_offset(slot))
        offset = base + (4 * slot if self.polled else 0)
        data = self._control.read32(db_data(slot))
        self._say(f"read  slot {slot}: DB_OFFSET {base:#x}, DB_DATA {data:#x}")
        if ALL_ONES in (base, data):
            self.function.check_alive()
        if offset % 4 or offset + 4 > bar.size:
            raise NotPassed(
                Reason.BAD_OFFSET,
                f"doorbell {number} is at BAR{self.bars.doorbell}+{offset:#x}, which is no 32-bit"
                f" register of a BAR of {bar.size:#x} bytes",
                hint="nothing was written; is this the doorbell BAR (`doorbell`)?",
            )
        return Doorbell(number, self.bars.doorbell, offset, data)

    def ring(self, doorbell: Doorbell) -> None:
        """Ring the endpoint: one 32-bit write, ordered after all earlier writes."""
        if self._trace is not None:
            self._say(f"write BAR{doorbell.bar}+{doorbell.offset:#x} {doorbell.data:#010x}")
        barrier()
        self.function.bar(doorbell.bar).post32(doorbell.offset, doorbell.data)

    def arm(self) -> int:
        """Arm MSI vectors for the endpoint's doorbells, and send CONFIGURE_DOORBELL.

        Never MSI-X, which pci-epf-vntb does not raise (vntb_epf_peer_db_work).

        :returns: the number of vectors
        :raises NotPassed: ``no-vectors``, or the endpoint refused
        """
        if self._interrupts is None:
            available = min(self.function.device.irq_count(IrqKind.MSI), MAX_VECTORS)
            if available < MIN_VECTORS:
                raise self._few_vectors(available)
            try:
                interrupts = self.function.interrupts(IrqKind.MSI, available, fewer=True)
            except HostError as error:
                raise HostError(error.message, hint="pci-epf-vntb raises MSI alone") from None
            self._interrupts = interrupts
            if interrupts.count < MIN_VECTORS:
                raise self._few_vectors(interrupts.count)
            self.command(Command.CONFIGURE_DOORBELL, interrupts.count)
            self._configured = True
        return self._interrupts.count

    def _few_vectors(self, available: int) -> NotPassed:
        return NotPassed(
            Reason.NO_VECTORS,
            f"a vNTB needs {MIN_VECTORS} MSI vectors, there are {available}",
            verdict=Verdict.SKIP,
            hint="pci-epf-vntb announces 16 if its controller has MSI; the host may give less",
        )

    def wait_doorbells(self, deadline: Deadline) -> dict[int, int]:
        """Sleep until the endpoint rings.

        :returns: {doorbell: count}; -2 and -1 are the vectors that belong to no doorbell
        """
        assert self._interrupts is not None, "arm() comes first"
        fired = self._interrupts.wait(deadline)
        return {vector - FIRST_SLOT: count for vector, count in fired.items()}

    def soon(self, deadline: Deadline) -> Deadline:
        """Return the deadline of a partial wait, after which the link is checked again."""
        return self.function.deadline(min(deadline.remaining, _LOOK))

    def drop_doorbells(self) -> int:
        """Discard pending doorbells, and return their number."""
        return 0 if self._interrupts is None else sum(self._interrupts.take().values())

    # -- memory windows -----------------------------------------------------------------------

    def window(self, index: int) -> Window:
        """Return the BAR that maps the endpoint's memory.

        It maps the endpoint's physical address 0 before the endpoint has set a translation, and
        freed memory after the endpoint's link went down. Access it only in between.

        :raises UsageError: the endpoint has no such window, or its BAR is unknown
        """
        self._check_window(index)
        return self.function.bar(self.bars.windows[index])

    def widen(self, index: int, offset: int) -> None:
        """Use 64-bit accesses for a window if a trial write arrives intact.

        :param offset: place of the trial's 8 bytes; no trial unless it is a multiple of 8
        """
        bar = self.bars.windows[index]
        if offset % 8 == 0 and self.function.widen(bar, offset) is False:
            self._say(f"BAR{bar}: 64-bit accesses do not arrive, so words have 32 bits here")

    def window_buffer(self, size: int) -> DmaBuffer:
        """Return memory for a window, aligned to its size as ``dma_alloc_coherent()`` aligns it.

        The granularity of the endpoint's controller is in no register: 64 KiB on RK3588, i.MX8 and
        AM654 (region_align, dw_pcie_prog_outbound_atu()).
        """
        align = max(SMALLEST_WINDOW_ALIGN, 1 << (size - 1).bit_length())
        return self.function.dma_buffer(size, align=align)

    def point_window(self, index: int, buffer: DmaBuffer) -> None:
        """Map ``buffer`` into the endpoint's side of the window (CONFIGURE_MW)."""
        self._check_window(index)
        self.write(Reg.ADDR_LOW, buffer.iova & ALL_ONES)
        self.write(Reg.ADDR_HIGH, buffer.iova >> 32)
        self.write(Reg.SIZE_LOW, buffer.size & ALL_ONES)
        self.write(Reg.SIZE_HIGH, buffer.size >> 32)
        self.command(Command.CONFIGURE_MW, index)

    def clear_window(self, index: int) -> None:
        """Unmap the window's memory (TEARDOWN_MW), before that memory is freed."""
        self._check_window(index)
        self.command(Command.TEARDOWN_MW, index)

    def _check_window(self, index: int) -> None:
        # The endpoint indexes an array of MAX_MW with it, unchecked (epf_ntb_configure_mw()).
        if not 0 <= index < self.windows:
            raise UsageError(f"no memory window {index}: the endpoint has {self.windows}")
        if index >= len(self.bars.windows):
            raise UsageError(
                f"the BAR of window {index} is not known",
                hint="`windows` names it, once a window; on the endpoint set every mwN_bar, as"
                " pci-epf-vntb leaves the last window without a BAR otherwise",
            )

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Disarm, and tell the endpoint if it answers. Suppresses rcdrv's own errors."""
        interrupts, self._interrupts = self._interrupts, None
        if interrupts is None:
            return
        try:
            if self._configured:
                self.command(Command.TEARDOWN_DOORBELL, interrupts.count)
        except (NotPassed, DeviceLost) as error:
            self._say(f"TEARDOWN_DOORBELL: {error.message}")
        finally:
            interrupts.close()
