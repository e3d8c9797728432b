"""The driver of a pci-epf-test endpoint: one command at a time, every wait bounded.

How the endpoint takes and answers a command is ``pci_epf_test_cmd_handler()`` of
``drivers/pci/endpoint/functions/pci-epf-test.c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rcdrv import parts, pci
from rcdrv.device import IrqKind
from rcdrv.epf_test.answer import Answer as Answer
from rcdrv.epf_test.answer import IrqChoice as IrqChoice
from rcdrv.epf_test.block import ALL_ONES as ALL_ONES
from rcdrv.epf_test.block import RegisterBlock, Trace
from rcdrv.epf_test.probe import check_registers, find_registers
from rcdrv.epf_test.registers import (
    ANSWERS,
    Caps,
    Command,
    Flags,
    IrqType,
    Reg,
    Status,
    decode,
    swapped_caps,
)
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.interrupts import Interrupts
from rcdrv.mmio import barrier
from rcdrv.verdict import NotPassed, Reason, Verdict
from rcdrv.wait import Deadline

_IRQ_KINDS = {IrqType.INTX: IrqKind.INTX, IrqType.MSI: IrqKind.MSI, IrqType.MSIX: IrqKind.MSIX}

# The endpoint writes STATUS before it raises the interrupt, and an interrupt crosses a link in
# microseconds. So once STATUS has the answer, an interrupt that is this late (s) is lost. Where the
# user allows long waits, as on a busy emulator, it may be a tenth of the time-out late, up to more.
_IRQ_GRACE, _LONGEST_GRACE = 0.1, 0.3
# Until one is lost, an MSI has this long. An emulated endpoint that shares two processors with 20
# others raised it 0.4 to 1 s after the write to STATUS; where it comes, the wait costs nothing.
_FIRST_GRACE = 2.0
# How often (s) a wait for an interrupt looks at STATUS. Rare, since each look is a read over the
# link that an endpoint under test need not see.
_PEEK = 0.02
# Polling: look without a pause this long (s), which covers a doorbell; then once a millisecond,
# which is as fast as the endpoint looks at COMMAND.
_SPIN = 0.002
# How long (s) to wait for an INTx line to become quiet; controllers pulse it for 1-2 ms.
_INTX_PULSE = 0.02
# A command that is late to be cleaned up with does no harm. All others are taken back.
_LATE_IS_FINE = (Command.DISABLE_DOORBELL, Command.BAR_SUBRANGE_CLEAR)

# Only these look at FLAGS, beyond refusing USE_DMA without an engine.
_TRANSFERS = (Command.READ, Command.WRITE, Command.COPY)

SETTLE = 0.002
"""A second interrupt for one answer follows the first within microseconds; this many seconds are
enough to see it."""


# As plain integers: operations on flags take longer than a register read over a link.
_RAISED = int(Status.IRQ_RAISED)


def _is_answer(status: int, expected: int) -> bool:
    return status & _RAISED != 0 and status != ALL_ONES and status & expected != 0


class EpfTest(RegisterBlock):
    """A pci-epf-test endpoint, seen from the root complex.

    :param function: the open function; it stays the caller's to close
    :param reg_bar: where the test registers are; default: :func:`find_registers`
    :param irq: how to learn of answers
    :param timeout: seconds, the bound of every wait for the endpoint
    :param trace: called with a line for every register access
    :raises UsageError: there are no test registers in that BAR; or ``reg_bar`` is left out, and the
        class is that of pci-epf-vntb
    :raises NotPassed: the function has no interrupt of the kind asked for
    """

    def __init__(
        self,
        function: Function,
        *,
        reg_bar: int | None = None,
        irq: IrqChoice = IrqChoice.AUTO,
        timeout: float = 1.0,
        trace: Trace | None = None,
    ) -> None:
        function.allow(timeout)
        config = function.config
        self.part = parts.part_of(config.vendor_id, config.device_id)
        if reg_bar is None and config.class_code >> 8 == pci.CLASS_MEMORY_RAM:
            # Its memory windows show the endpoint's physical address 0 until they have a
            # translation: a test of that BAR would write over whatever is there.
            raise UsageError(
                f"{function.address} is no pci-epf-test: its class is that of pci-epf-vntb",
                hint="rcdrv ntb drives it; `reg_bar=N` takes it for a pci-epf-test nevertheless",
            )
        bar, caps = find_registers(function) if reg_bar is None else (reg_bar, None)
        super().__init__(function, bar, trace)
        self.timeout = timeout
        self.caps = Caps(self.read(Reg.CAPS) if caps is None else self.note(Reg.CAPS, caps))
        if reg_bar is not None:
            check_registers(function, reg_bar, int(self.caps))
        self.irq_choice = irq
        """What the caller asked for; :meth:`use_irq` may have changed what is in use."""
        self._interrupts: Interrupts | None = None
        self.irq_type, self.irq_kind = self._choose_irq(irq)
        self.in_flight: Command | None = None
        """A command without an answer yet, because an exception ended the wait."""
        self.doorbell_held = False
        """A :class:`~rcdrv.epf_test.doorbell.Doorbell` of this driver is entered."""
        self.not_taken = False
        """The last command was not taken in time, whether it was taken back or not."""
        self._asked_ns = 0
        # STATUS when the last command was given: without a bit of its answer.
        self._left_status: int | None = None
        self.spin = False
        """Look for interrupts without sleeping: sooner seen, at the price of a busy processor."""
        self._has_lost = False  # an MSI or MSI-X, after the longest grace
        self._unmatched = 0
        self.unanswered = 0
        """Rings without an awaited answer. One interrupt each may still come."""

    # -- interrupts ---------------------------------------------------------------------------

    def use_irq(self, choice: IrqChoice) -> None:
        """Learn of answers in another way from now on.

        :raises NotPassed: ``no-vectors``: the function has no interrupt of this kind
        """
        chosen = self._choose_irq(choice)
        if chosen != (self.irq_type, self.irq_kind):
            self.disarm()
            self.irq_type, self.irq_kind = chosen

    def _choose_irq(self, choice: IrqChoice) -> tuple[IrqType, IrqKind | None]:
        """The IRQ_TYPE to ask for, and the interrupts to wait for (None: poll STATUS)."""
        if choice is IrqChoice.POLL:
            # A type the root complex has not enabled, so that nothing is really raised: MSI
            # needs its enable bit, but IRQ_TYPE 0 would assert the line.
            return IrqType.MSI, None
        device = self.function.device
        if choice is not IrqChoice.AUTO:
            kind = IrqKind[choice.name]
            if not device.irq_count(kind):
                # By sysfs no endpoint has any: the backend is as likely the reason.
                none = not any(map(device.irq_count, IrqKind))
                by = f", nor any other interrupt, by {device.backend}" if none else ""
                raise NotPassed(
                    Reason.NO_VECTORS,
                    f"{self.function.address} has no {kind.name}{by}",
                    verdict=Verdict.SKIP,
                    hint="`irq=auto` takes what there is",
                )
            return IrqType[choice.name], kind
        # The order of pci_endpoint_test_set_irq() for IRQ_TYPE_AUTO: what CAPS announces, and
        # MSI where an older endpoint announces nothing.
        announced = [
            irq
            for irq, cap in (
                (IrqType.MSI, Caps.MSI),
                (IrqType.MSIX, Caps.MSIX),
                (IrqType.INTX, Caps.INTX),
            )
            if self.caps & cap
        ]
        for irq in [*announced, IrqType.MSI, IrqType.MSIX]:
            if device.irq_count(_IRQ_KINDS[irq]):
                return irq, _IRQ_KINDS[irq]
        return IrqType.MSI, None

    @property
    def irq_name(self) -> str:
        """``msi``, ``msix``, ``intx`` or ``poll``."""
        return "poll" if self.irq_kind is None else self.irq_kind.name.lower()

    def arm(self, count: int = 1) -> int:
        """Have up to ``count`` vectors of the chosen kind ready; nothing to do when polling.

        :returns: how many are ready, fewer where the function or the host has fewer
        """
        if self.irq_kind is None:
            return 0
        if self._interrupts is None or self._interrupts.count < count:
            self.disarm()
            available = self.function.device.irq_count(self.irq_kind)
            self._interrupts = self.function.interrupts(
                self.irq_kind, min(count, available), fewer=True
            )
        return self._interrupts.count

    def disarm(self) -> None:
        if self._interrupts is not None:
            self._interrupts.close()
            self._interrupts = None

    @property
    def stray(self) -> int:
        """Interrupts beyond one for each command and each ring, since :meth:`count_strays`.

        INTx is not counted: several controllers assert the line for a millisecond or two, and it
        fires repeatedly meanwhile.
        """
        return max(0, self._unmatched - self.unanswered)

    def count_strays(self) -> None:
        """Start :attr:`stray` at 0."""
        self._unmatched = self.unanswered = 0

    def drop_interrupts(self) -> None:
        """Discard pending interrupts, counting them as :attr:`stray`."""
        if self._interrupts is None:
            return
        dropped = sum(self._interrupts.take().values())
        if self.irq_kind is not IrqKind.INTX:
            self._unmatched += dropped
            return
        deadline = self.function.deadline(_INTX_PULSE)
        while dropped and not deadline.expired:
            self.function.pause(0.001)
            dropped = sum(self._interrupts.take().values())

    # -- commands -----------------------------------------------------------------------------

    def command(
        self,
        command: Command,
        parameters: Mapping[Reg, int] = MappingProxyType({}),
        *,
        flags: Flags = Flags(0),  # noqa: B008 - an immutable value
        vector: int = 0,
        timeout: float | None = None,
    ) -> Answer:
        """Give the endpoint a command and wait for its answer.

        :param parameters: what the command needs in other registers than FLAGS, IRQ_TYPE and
            IRQ_NUMBER
        :param vector: the vector to answer with, from 0
        :param timeout: seconds to wait for the answer; default :attr:`timeout`
        :raises NotPassed: ``stuck-command``: an earlier command is still in the register
        :raises DeviceLost: the device is gone
        """
        self.begin(command, parameters, flags, vector)
        return self._finish(command, self._await(command, timeout))

    def begin(
        self, command: Command, parameters: Mapping[Reg, int], flags: Flags, vector: int
    ) -> None:
        """Give the endpoint a command; :meth:`settle` waits for its answer."""
        self.arm(vector + 1)
        self.forget_if_reset()
        trusted = self.idle and self.accepted
        self._write_request(command, flags, vector)
        if not trusted:
            # The endpoint reads IRQ_TYPE, then COMMAND, and an old IRQ_TYPE that is none would
            # have it swallow the new command. This read pushes IRQ_TYPE there, and takes longer
            # than the endpoint from one to the other, unless it is preempted in between.
            self._wait_until_idle()
        for register, value in parameters.items():
            self.write(register, value)
        # The endpoint clears STATUS too when it takes a command, but one that takes nothing must
        # not be read as if it had answered with what an earlier command left behind.
        left, answers = self.status, ANSWERS.get(command)
        if not self.accepted or left is None or answers is None or left & int(answers):
            self.write(Reg.STATUS, 0)
        self._left_status = self.status
        if self.irq_kind is None and not self.accepted and self.read(Reg.STATUS):
            raise NotPassed(
                Reason.WRONG_STATUS,
                "STATUS does not take a 0, so no answer could be told from it",
                hint="is this the register BAR (`reg_bar`)?",
            )
        self.drop_interrupts()
        barrier()
        self.in_flight = command
        self._asked_ns = self.function.clock.now_ns()
        self.write(Reg.COMMAND, command)

    def settle(self) -> Answer | None:
        """Wait for the answer of a command that was left :attr:`in_flight`.

        :returns: the answer; None when there is no such command
        """
        if self.in_flight is None:
            return None
        return self._finish(self.in_flight, self._await(self.in_flight))

    def wait_on(self, command: Command, timeout: float) -> Answer:
        """Wait longer for the answer to the last command, which was taken.

        :param timeout: seconds from now
        """
        return self._finish(command, self._await(command, timeout))

    def _await(self, command: Command, timeout: float | None = None) -> Answer:
        return self.wait_answer(self._asked_ns, ANSWERS.get(command), timeout)

    def _finish(self, command: Command, answer: Answer) -> Answer:
        complete = answer.answered and not answer.irq_lost
        left = 0 if complete and self.clears_command else self.read(Reg.COMMAND)
        if left == command and not answer.answered and command not in _LATE_IS_FINE:
            answer = self._take_back(command)
            # Answered after all: the endpoint was just taking it.
            left = 0 if answer.answered else left
        if left == ALL_ONES:
            # The registers went away behind the answer, which says nothing any more.
            answer = Answer(Status(ALL_ONES), False, interrupted=answer.interrupted)
        if not answer.answered and answer.status == self._left_status:
            answer.status = Status(0)  # nothing new
        both = ANSWERS.get(command)
        answer.contradicts = both is not None and answer.status & both == both
        answer.command_left = self.not_taken = left != 0
        self.in_flight = None
        if complete and answer.good:
            self.idle = self.clears_command = self.accepted = True
        else:
            self.forget()
        return answer

    def _take_back(self, command: Command) -> Answer:
        """Let a command that was not taken in time never be taken: a doorbell or a subrange would
        come to be, or memory of this host be written, when nobody knows of it any more.

        pci_epf_test_cmd_handler() does nothing with 0, and writes 0 itself behind its read. When
        it has read the command already, the answer comes soon.
        """
        self.write(Reg.COMMAND, 0)
        return self._await(command, min(self.timeout, _IRQ_GRACE))

    def _wait_until_idle(self) -> None:
        """A COMMAND that is still set must not be overwritten: the endpoint may be reading it."""
        deadline = self.function.deadline(self.timeout)
        while True:
            left = self.read(Reg.COMMAND)
            if left == 0:
                return
            if left == ALL_ONES:
                raise self.all_ones()
            if deadline.expired:
                from rcdrv.epf_test.causes import Symptom, hint

                raise NotPassed(
                    Reason.STUCK_COMMAND,
                    f"COMMAND still holds {decode(Reg.COMMAND, left)} after {self.timeout:g} s:"
                    " the endpoint does not take commands",
                    hint=hint(Symptom.NOT_TAKEN, self.part),
                )
            self.function.pause(0.001)

    def check_caps_order(self) -> None:
        """Say why CAPS lacks a bit where it is only in the wrong byte order.

        :raises NotPassed: ``no-caps``, a skip: CAPS look byte-swapped
        """
        swapped = swapped_caps(self.caps)
        if swapped is not None:
            raise NotPassed(
                Reason.NO_CAPS,
                f"CAPS look byte-swapped: {int(self.caps):#010x} for {int(swapped):#010x}"
                f" {decode(Reg.CAPS, swapped)}",
                verdict=Verdict.SKIP,
                hint="a big-endian endpoint whose pci-epf-test writes the registers in its own byte"
                " order; newer kernels convert each with cpu_to_le32()",
            )

    def _write_request(self, command: Command, flags: Flags, vector: int) -> None:
        """Set FLAGS, IRQ_TYPE and IRQ_NUMBER: stale values would spoil a command."""
        if flags or not self.accepted or command in _TRANSFERS:
            self.set(Reg.FLAGS, flags)
        self.request_irq(vector)

    def request_irq(self, vector: int = 0) -> None:
        """Say which interrupt the endpoint has to raise with its next answer."""
        # The number first, and never 0, which INTx does not look at: MSI-X with number 0 would
        # make the endpoint read the table entry before the first.
        self.set(Reg.IRQ_NUMBER, vector + 1)
        self.set(Reg.IRQ_TYPE, self.irq_type)

    def wait_answer(
        self, start_ns: int, expected: Status | None = None, timeout: float | None = None
    ) -> Answer:
        """Wait for STATUS.IRQ_RAISED and, unless polling, for the interrupt that comes with it.

        A doorbell or a transfer of before may be answered only now, and must not be taken for the
        answer: its bits are others.

        :param start_ns: when the endpoint was asked, on the function's clock
        :param expected: the bits of which the answer has one; None: any
        :param timeout: seconds; default :attr:`timeout`
        """
        deadline = self.function.deadline(self.timeout if timeout is None else timeout)
        wait = self._poll_status if self._interrupts is None else self._wait_interrupt
        return wait(start_ns, -1 if expected is None else int(expected), deadline)

    def _wait_interrupt(self, start_ns: int, expected: int, deadline: Deadline) -> Answer:
        grace: Deadline | None = None
        interrupted = False
        while True:
            vectors = self._next_interrupts(min(deadline.remaining, _PEEK))
            now = self.function.clock.now_ns()
            bits = self.read(Reg.STATUS)
            status, answered = Status(bits), _is_answer(bits, expected)
            interrupted = interrupted or bool(vectors)
            if answered and vectors:
                return Answer(status, True, now - start_ns, vectors, interrupted=True)
            if self.irq_kind is not IrqKind.INTX:
                self._unmatched += sum(vectors.values())
            if answered:
                if grace is None:
                    late = min(max(_IRQ_GRACE, self.timeout / 10), _LONGEST_GRACE)
                    if not self._has_lost and self.irq_kind is not IrqKind.INTX:
                        late = _FIRST_GRACE
                    grace = self.function.deadline(min(late, deadline.remaining))
                elif grace.expired:
                    self._has_lost |= self.irq_kind is not IrqKind.INTX
                    return Answer(status, True, interrupted=interrupted, irq_lost=True)
            elif deadline.expired:
                if bits == ALL_ONES and interrupted and self.irq_kind is not IrqKind.INTX:
                    # One of them is that of the answer, which cannot be read any more.
                    self._unmatched -= 1
                return Answer(status, False, interrupted=interrupted)

    def _next_interrupts(self, seconds: float) -> dict[int, int]:
        assert self._interrupts is not None
        deadline = self.function.deadline(seconds)
        if not self.spin:
            return self._interrupts.wait(deadline)
        while True:
            vectors = self._interrupts.take()
            if vectors or deadline.expired:
                return vectors

    def _poll_status(self, start_ns: int, expected: int, deadline: Deadline) -> Answer:
        spin = self.function.deadline(min(_SPIN, deadline.seconds))
        while True:
            bits = self.read(Reg.STATUS)
            now = self.function.clock.now_ns()
            if _is_answer(bits, expected):
                return Answer(Status(bits), True, now - start_ns)
            if deadline.expired:
                return Answer(Status(bits), False)
            if spin.expired:
                self.function.pause(0.001)
