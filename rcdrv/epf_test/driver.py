"""Driver of a pci-epf-test endpoint: one command at a time, every wait bounded.

The endpoint's side is ``pci_epf_test_cmd_handler()`` in
``drivers/pci/endpoint/functions/pci-epf-test.c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rcdrv import parts, pci
from rcdrv.device import IrqKind
from rcdrv.epf_test.answer import Answer, IrqChoice
from rcdrv.epf_test.block import ALL_ONES, RegisterBlock, Trace
from rcdrv.epf_test.probe import check_registers, find_registers
from rcdrv.epf_test.registers import (
    ANSWERS,
    Caps,
    Command,
    Flags,
    IrqType,
    Reg,
    Status,
)
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.interrupts import Interrupts
from rcdrv.mmio import barrier
from rcdrv.verdict import NotPassed, Reason, skip
from rcdrv.wait import Deadline

# Seconds from the answer in STATUS until a missing interrupt counts as lost. The endpoint writes
# STATUS before it raises the interrupt, which crosses a link in microseconds. With a long time-out,
# as for a busy emulator, it is a tenth of the time-out, at most _LONGEST_GRACE.
_IRQ_GRACE, _LONGEST_GRACE = 0.1, 0.3
# The same for MSI and MSI-X until the first one is lost: on a busy host, one came 1 s late.
_FIRST_GRACE = 2.0
# Seconds between reads of STATUS while waiting for an interrupt: rare, as each crosses the link.
_PEEK = 0.02
# Looks for the interrupt of a ring before the wait for it sleeps: some 20 us in all.
_LOOKS = 8
# Polling: read without a pause for so many seconds, which covers a doorbell; then once a
# millisecond, the rate at which the endpoint polls COMMAND.
_SPIN = 0.002
# Seconds to wait for an INTx line to be deasserted; controllers pulse it for 1-2 ms.
_INTX_PULSE = 0.02
# Commands that only clean up may run late. All others are withdrawn.
_LATE_IS_FINE = (Command.DISABLE_DOORBELL, Command.BAR_SUBRANGE_CLEAR)

# No vector: nothing shows that an answer belongs to a command that was withdrawn.
_NONE = -1
# Only these use FLAGS; the others merely refuse USE_DMA without a DMA engine.
_TRANSFERS = (Command.READ, Command.WRITE, Command.COPY)

MESSAGES = (IrqKind.MSI, IrqKind.MSIX)
"""Kinds of interrupt whose vectors can be told apart, and counted."""

SETTLE = 0.002
"""Seconds to wait for a second interrupt, which follows the first within microseconds."""

# A plain integer: operations on IntFlag take longer than a register read over a link.
_RAISED = int(Status.IRQ_RAISED)
_RING = int(Status.DOORBELL_SUCCESS)


def _is_answer(status: int, expected: int) -> bool:
    return status & _RAISED != 0 and status != ALL_ONES and status & expected != 0


class EpfTest(RegisterBlock):
    """A pci-epf-test endpoint, seen from the root complex.

    :param function: the open function; the caller closes it
    :param reg_bar: the BAR with the test registers; default: :func:`find_registers`
    :param irq: interrupt kind of the answers, or polling
    :param timeout: bound of every wait for the endpoint in seconds
    :param trace: called with a line for every register access
    :raises UsageError: no test registers in that BAR; or ``reg_bar`` is not given and the class is
        that of pci-epf-vntb
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
            # Its memory windows map the endpoint's physical address 0 until a translation is set:
            # a BAR test would overwrite what is there.
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
        """The caller's choice; :meth:`use_irq` does not change it."""
        self._interrupts: Interrupts | None = None
        self.irq_type, self.irq_kind = self._choose_irq(irq)
        self.in_flight: Command | None = None
        """Command whose answer is outstanding because an exception ended the wait."""
        self.doorbell_held = False
        """A :class:`~rcdrv.epf_test.doorbell.Doorbell` of this driver is entered."""
        self.not_taken = False
        """The endpoint did not take the last command in time; it may have been withdrawn."""
        self._asked_ns = 0
        self._left_status: int | None = None  # STATUS when the last command was sent
        self._proof: int | None = None  # where STATUS was not cleared: the vector of the answer
        self.spin = False
        """Poll for interrupts without sleeping: lower latency, one busy processor."""
        self.awaits_interrupt = True  # with an answer; False: none can come
        self.must_not_interrupt = False
        """Answers must have no interrupt: one is awaited briefly, and does not count as lost."""
        self._has_lost = False  # an MSI or MSI-X was lost after _FIRST_GRACE
        self._unmatched = 0
        self.unanswered = 0
        """Rings whose answer was not awaited. One interrupt each may still arrive."""

    def announces(self, caps: int) -> bool:
        """Return whether CAPS has one of these bits."""
        return bool(int(self.caps) & int(caps))

    # -- interrupts ---------------------------------------------------------------------------

    def use_irq(self, choice: IrqChoice) -> None:
        """Change the interrupt kind of the answers.

        :raises NotPassed: ``no-vectors``: the function has no interrupt of this kind
        """
        chosen = self._choose_irq(choice)
        if chosen != (self.irq_type, self.irq_kind):
            self.disarm()
            self.irq_type, self.irq_kind = chosen

    def _choose_irq(self, choice: IrqChoice) -> tuple[IrqType, IrqKind | None]:
        """Return the IRQ_TYPE to request and the interrupt kind to wait for (None: poll STATUS)."""
        if choice is IrqChoice.POLL:
            # MSI is not enabled, so nothing is raised. IRQ_TYPE 0 would assert the INTx line.
            return IrqType.MSI, None
        device = self.function.device
        if choice is not IrqChoice.AUTO:
            kind = IrqKind[choice.name]
            if not device.irq_count(kind):
                # The sysfs backend has no interrupts at all, so the message names it.
                none = not any(map(device.irq_count, IrqKind))
                by = f", nor any other interrupt, by {device.backend}" if none else ""
                raise skip(
                    Reason.NO_VECTORS,
                    f"{self.function.address} has no {kind.name}{by}",
                    hint="`irq=auto` takes what there is",
                )
            return IrqType[choice.name], kind
        # The order of pci_endpoint_test_set_irq() for IRQ_TYPE_AUTO: what CAPS announces; MSI if
        # an older endpoint announces nothing.
        order = (IrqType.MSI, IrqType.MSIX, IrqType.INTX)
        announced = [irq for irq in order if self.announces(Caps[irq.name])]
        for irq in [*announced, IrqType.MSI, IrqType.MSIX]:
            if device.irq_count(IrqKind[irq.name]):
                return irq, IrqKind[irq.name]
        return IrqType.MSI, None

    @property
    def irq_name(self) -> str:
        """``msi``, ``msix``, ``intx`` or ``poll``."""
        return "poll" if self.irq_kind is None else self.irq_kind.name.lower()

    def arm(self, count: int = 1) -> int:
        """Arm up to ``count`` vectors of the chosen kind; do nothing when polling.

        :returns: the number armed, which the function or the host may limit
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

    @property
    def armed(self) -> bool:
        return self._interrupts is not None

    def disarm(self) -> None:
        if self._interrupts is not None:
            self._interrupts.close()
            self._interrupts = None

    @property
    def stray(self) -> int:
        """Interrupts in excess of one per command and ring since :meth:`count_strays`.

        INTx is not counted: several controllers assert the line for one or two milliseconds, in
        which it fires repeatedly.
        """
        return max(0, self._unmatched - self.unanswered)

    def count_strays(self) -> None:
        """Reset :attr:`stray` to 0."""
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
        """Send a command and wait for its answer.

        :param parameters: values of the command's other registers, besides FLAGS, IRQ_TYPE and
            IRQ_NUMBER
        :param vector: vector of the answer, from 0
        :param timeout: seconds to wait for the answer; default :attr:`timeout`
        :raises NotPassed: ``stuck-command``: COMMAND still holds an earlier command
        :raises DeviceLost: the device is gone
        """
        self.begin(command, parameters, flags, vector)
        return self._finish(command, self._await(command, timeout))

    def begin(
        self, command: Command, parameters: Mapping[Reg, int], flags: Flags, vector: int
    ) -> None:
        """Send a command; :meth:`settle` waits for its answer."""
        self.arm(vector + 1)
        if self._resets != self.function.resets:
            self.forget()
        trusted = self.idle and self.accepted
        before = self._request.get(Reg.IRQ_NUMBER)
        self._write_request(command, flags, vector)
        if not trusted:
            # The endpoint reads IRQ_TYPE and then COMMAND, and ignores a command with an invalid
            # IRQ_TYPE. This read flushes the write of IRQ_TYPE, and takes longer than the endpoint
            # needs between its two reads, unless it is preempted there.
            self.wait_until_idle(self.timeout)
        for register, value in parameters.items():
            self.write(register, value)
        # The endpoint also clears STATUS when it takes a command. If it takes none, the answer to
        # an earlier command must not be read as this one's.
        left, answers = self.status, ANSWERS.get(command)
        if answers is not None:
            told = left is not None and not left & int(answers)
        else:
            # A RAISE command has no bit of its own, but its vector, unless that answered last.
            told = before not in (None, vector + 1) and self.irq_kind in MESSAGES
        told = told and self.accepted
        if not told:
            self.write(Reg.STATUS, 0)
        self._proof = vector if told and answers is None else None
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
        """Wait for the answer to the command :attr:`in_flight`.

        :returns: the answer; None if there is no such command
        """
        if self.in_flight is None:
            return None
        return self._finish(self.in_flight, self._await(self.in_flight))

    def wait_on(self, command: Command, timeout: float) -> Answer:
        """Wait longer for the answer to the last command, which the endpoint has taken.

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
            # An answer means that the endpoint had read COMMAND before it was cleared.
            left = 0 if answer.answered else left
        if left == ALL_ONES:
            # The registers disappeared after the answer, which is void.
            answer = Answer(Status(ALL_ONES), False, interrupted=answer.interrupted)
        if not answer.answered and answer.status == self._left_status:
            answer.status = Status(0)  # nothing new
        both = ANSWERS.get(command)
        answer.contradicts = both is not None and int(answer.status) & int(both) == both
        answer.command_left = self.not_taken = left != 0
        self.in_flight = None
        if complete and answer.good:
            self.idle = self.clears_command = self.accepted = True
        else:
            self.forget()
        return answer

    def _take_back(self, command: Command) -> Answer:
        """Withdraw a command that the endpoint did not take in time.

        Taken later, it would enable a doorbell, map a subrange or write this host's memory unseen.
        pci_epf_test_cmd_handler() ignores a COMMAND of 0, and writes 0 itself after its read. If it
        has read the command already, the answer follows soon.
        """
        self.write(Reg.COMMAND, 0)
        self._proof = None if self._proof is None else _NONE
        return self._await(command, min(self.timeout, _IRQ_GRACE))

    def _write_request(self, command: Command, flags: Flags, vector: int) -> None:
        """Set FLAGS, IRQ_TYPE and IRQ_NUMBER, whose stale values could make a command fail."""
        if flags or not self.accepted or command in _TRANSFERS:
            self.set(Reg.FLAGS, flags)
        self.request_irq(vector)

    def request_irq(self, vector: int = 0) -> None:
        """Set the interrupt that the endpoint raises with its next answer."""
        # The number first, and never 0: MSI-X with number 0 makes the endpoint read the table entry
        # before the first. INTx ignores it.
        if self.irq_type is not IrqType.INTX or not self.accepted:
            self.set(Reg.IRQ_NUMBER, vector + 1)
        self.set(Reg.IRQ_TYPE, self.irq_type)

    def wait_answer(
        self, start_ns: int, expected: Status | None = None, timeout: float | None = None
    ) -> Answer:
        """Wait for STATUS.IRQ_RAISED and, unless polling, for its interrupt.

        An earlier doorbell or transfer may be answered meanwhile; ``expected`` tells it apart.

        :param start_ns: time of the request, on the function's clock
        :param expected: bits of which the answer has at least one; None: any
        :param timeout: seconds; default :attr:`timeout`
        """
        deadline = self.function.deadline(self.timeout if timeout is None else timeout)
        wait = self._poll_status if self._interrupts is None else self._wait_interrupt
        return wait(start_ns, -1 if expected is None else int(expected), deadline)

    def _wait_interrupt(self, start_ns: int, expected: int, deadline: Deadline) -> Answer:
        grace: Deadline | None = None
        interrupted = False
        # Not where the endpoint is a process, which may need this processor.
        looks = _LOOKS if expected == _RING and not self.function.device.messages else 0
        while True:
            vectors = self._next_interrupts(min(deadline.remaining, _PEEK), looks)
            now = self.function.clock.now_ns()
            bits = self.read(Reg.STATUS)
            answered = _is_answer(bits, expected)
            if answered and expected < 0 and self._proof not in (None, *vectors):
                # STATUS may still hold an earlier answer: the endpoint clears COMMAND, then STATUS.
                answered = self._proof != _NONE and self.read(Reg.COMMAND) == 0
                if answered:
                    bits = self.read(Reg.STATUS)
                    answered = _is_answer(bits, expected)
            interrupted = interrupted or bool(vectors)
            if answered and vectors:
                # All fields by position, which takes a record a fifth of the time.
                latency = now - start_ns
                return Answer(Status(bits), True, latency, vectors, True, False, False, False)
            if self.irq_kind is not IrqKind.INTX:
                self._unmatched += sum(vectors.values())
            if answered:
                if grace is None:
                    late = min(max(_IRQ_GRACE, self.timeout / 10), _LONGEST_GRACE)
                    unlikely = self._has_lost or self.must_not_interrupt
                    if not unlikely and self.irq_kind is not IrqKind.INTX:
                        late = _FIRST_GRACE
                    late *= self.awaits_interrupt
                    grace = self.function.deadline(min(late, deadline.remaining))
                elif grace.expired:
                    if not self.must_not_interrupt and self.irq_kind is not IrqKind.INTX:
                        self._has_lost = True
                    return Answer(Status(bits), True, interrupted=interrupted, irq_lost=True)
            elif deadline.expired:
                if bits == ALL_ONES and interrupted and self.irq_kind is not IrqKind.INTX:
                    # One of them belongs to the answer, which can no longer be read.
                    self._unmatched -= 1
                return Answer(Status(bits), False, interrupted=interrupted)

    def _next_interrupts(self, seconds: float, looks: int) -> dict[int, int]:
        """Look so often, then sleep: waking up may take longer than a ring."""
        assert self._interrupts is not None
        deadline = self.function.deadline(seconds)
        while self.spin or looks > 0:
            vectors = self._interrupts.take()
            if vectors or deadline.expired:
                return vectors
            looks -= 1
        return self._interrupts.wait(deadline)

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
