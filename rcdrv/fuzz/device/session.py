"""Execute steps on an endpoint through rcdrv's driver.

At the end the doorbell is disabled and subrange mappings are cleared, as far as the endpoint
answers.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping

from rcdrv.device import IrqKind
from rcdrv.epf_test.answer import Answer, IrqChoice
from rcdrv.epf_test.bars import is_reserved
from rcdrv.epf_test.block import stale_doorbell
from rcdrv.epf_test.doorbell import LEFT_ENABLED_HINT, Doorbell, free_stale_doorbell
from rcdrv.epf_test.driver import SETTLE, EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.registers import ANSWERS, Caps, Command, IrqType, Reg, Status
from rcdrv.epf_test.ring import RingPlan, RingRun
from rcdrv.epf_test.transfer import SLOWEST, address_registers, crc32, default_align, dma_buffer
from rcdrv.errors import AccessError, HostError, RcdrvError
from rcdrv.function import Function
from rcdrv.fuzz.device.facts import Facts, Options, Seen
from rcdrv.fuzz.device.steps import TRANSFERS, Irq, Step, command_of
from rcdrv.mmio import barrier
from rcdrv.verdict import NotPassed, Reason, classify

Opener = Callable[[], Function]
"""Opener of the function."""

_QUIET = 0.02
"""Seconds after which no further answer arrives: two ticks of the slowest endpoint."""

_NO_COMMAND = 1 << 31
"""A bit of no command: pci_epf_test_cmd_handler() logs "Invalid command" and does nothing.
Kernels that tried each known bit by itself ignore it too."""
_PAGE = 4096
_DEFAULTS = Options()
_ANSWERS = {int(command): status for command, status in ANSWERS.items()}


class DeviceSession:
    """The endpoint, open.

    :param opener: called again for every ``reopen``
    :raises RcdrvError: it cannot be opened, or does not answer
    """

    def __init__(self, opener: Opener, options: Options = _DEFAULTS) -> None:
        self._opener = opener
        self._options = options
        self._timeout = options.timeout
        self._swallows_dma = False
        self._lacks_intx = False
        # Place of a doorbell whose DB_BAR was overwritten, and whether its BAR still shows it
        # after DISABLE.
        self._overwritten: int | None = None
        self._misplaced = False
        self._stack = contextlib.ExitStack()
        self._open()
        try:
            self._revive()
            self.clean()
            self.facts = self._look(options.irq)
        except BaseException:
            self._stack.close()
            raise

    def _open(self) -> None:
        self.function = self._stack.enter_context(self._opener())
        self.driver = EpfTest(
            self.function,
            reg_bar=self._options.reg_bar,
            timeout=self._timeout,
            trace=self._options.trace,
        )

    def _look(self, irq: IrqChoice) -> Facts:
        driver, function = self.driver, self.function
        vectors = {IrqChoice.POLL: 1}
        for choice in (IrqChoice.MSI, IrqChoice.MSIX, IrqChoice.INTX):
            count = function.device.irq_count(IrqKind[choice.name])
            if count and irq in (IrqChoice.AUTO, choice):
                with contextlib.suppress(HostError):  # the host cannot provide this kind
                    self._use_irq(choice)
                    vectors[choice] = driver.arm(count)
        list(function.config.capabilities())  # raises where they cannot be walked
        express = function.config.express()
        usual = (irq, IrqChoice.MSI, IrqChoice.MSIX, IrqChoice.POLL)
        bars = {bar.index: bar.size for bar in function.bars if bar is not None and bar.is_memory}
        can_reset = function.device.can_reset()
        return Facts(
            bars=bars,
            reg_bar=driver.reg_bar,
            reserved=frozenset(bar for bar in bars if is_reserved(driver, bar)),
            caps=driver.caps,
            vectors=vectors,
            default_irq=next(choice for choice in usual if choice in vectors),
            can_reset=can_reset,
            keeps_state=not can_reset or (express is not None and express.has_flr),
            align=default_align(driver),
        )

    def registers(self) -> dict[Reg, int]:
        """Read each register once."""
        return {register: self.driver.read(register) for register in Reg}

    # -- begin and end ----------------------------------------------------------------

    def _revive(self) -> None:
        """Clear a COMMAND that an earlier run left, by a reset if the endpoint honours it."""
        driver = self.driver
        self._await_taken()
        if driver.read(Reg.COMMAND) and self.function.device.can_reset():
            driver.disarm()
            self.function.reset()
            driver.write(Reg.COMMAND, 0)

    def _await_taken(self) -> None:
        deadline = self.function.deadline(self._timeout)
        while self.driver.read(Reg.COMMAND) and not deadline.expired:
            self.function.pause(0.001)

    def _use_irq(self, choice: IrqChoice) -> None:
        """Choose interrupts, once the last command can raise none of them any more.

        pci_epf_test_raise_irq() sets STATUS first; a late interrupt would count as one too many.
        """
        driver = self.driver
        driver.use_irq(choice)
        if choice is not IrqChoice.POLL and not driver.armed and not driver.read(Reg.COMMAND):
            driver.write(Reg.COMMAND, _NO_COMMAND)  # taken when the last one is done
            self._await_taken()

    def clean(self) -> None:
        """Disable the doorbell and clear subrange mappings, also those of another driver.

        :raises RcdrvError: the endpoint does not comply
        """
        driver = self.driver
        driver.use_irq(IrqChoice.POLL)
        if self._overwritten is not None:
            driver.write(Reg.DB_BAR, self._overwritten)
            self._overwritten = None
        free_stale_doorbell(driver)
        if self._misplaced:
            self._misplaced = False
            with contextlib.suppress(NotPassed), Doorbell(driver):
                pass  # DISABLE gives the BAR back
        if stale_doorbell(driver) is not None:
            raise NotPassed(
                Reason.DISABLE_FAILED,
                f"DB_BAR is {driver.read(Reg.DB_BAR)}: a doorbell is enabled, and stays so",
                hint=LEFT_ENABLED_HINT,
            )
        if not driver.caps & Caps.SUBRANGE_MAPPING:
            return
        for bar in self.function.bars:
            if bar is None or not bar.is_memory or bar.index == driver.reg_bar:
                continue
            answer = driver.command(Command.BAR_SUBRANGE_CLEAR, {Reg.SIZE: bar.index})
            if not answer.good:
                raise explain(driver, answer, f"BAR_SUBRANGE_CLEAR of BAR{bar.index}")

    def close(self) -> None:
        """Clean up as far as the endpoint answers, and close the function."""
        with self.function.cancel.deferred(), contextlib.suppress(RcdrvError):
            if not self.driver.read(Reg.COMMAND):
                self.clean()
        self._stack.close()

    def __enter__(self) -> DeviceSession:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- steps ------------------------------------------------------------------------------------

    def do(self, step: Step) -> Seen:
        """Execute a step. The caller checks :func:`rcdrv.fuzz.device.harm.harm_of` first.

        :raises RcdrvError: the driver's own verdict
        """
        self.function.cancel.check()
        if step.verb in ("peek", "poke"):
            return self._access(step)
        if step.verb in ("ring", "threads"):
            return self._ring(step)
        if step.verb in ("cycle", "expect"):
            return self._doorbell(step)
        if step.verb in ("reset", "reopen"):
            return self._reset(step)
        if step.verb == "db_bar":
            return self._write_db_bar(step)
        if step.verb in TRANSFERS:
            return self._transfer(step)
        parameters = {Reg.SIZE: step.bar} if step.verb in ("setup", "clear") else {}
        overwritten = step.verb == "disable" and self._overwritten is not None
        # enum pci_barno is signed: the endpoint refuses a negative one, and keeps the doorbell.
        if overwritten and self.driver.read(Reg.DB_BAR) < 1 << 31:
            self._overwritten, self._misplaced = None, True
        return self._command(step, parameters)

    def _write_db_bar(self, step: Step) -> Seen:
        if self._overwritten is None:
            self._overwritten = stale_doorbell(self.driver)
        self.driver.write(Reg.DB_BAR, step.value)
        return Seen(self.registers())

    def takes_nothing(self) -> bool:
        """Return whether the endpoint takes no command any more and needs a reboot."""
        driver = self.driver
        try:
            driver.use_irq(IrqChoice.POLL)
            answer = driver.command(Command.RAISE_MSI_IRQ)
        except NotPassed as error:
            return error.reason is Reason.STUCK_COMMAND
        except RcdrvError:
            return False
        return answer.command_left and not answer.answered

    def _access(self, step: Step) -> Seen:
        try:
            if step.bar not in self.facts.bars:
                return Seen(outcome="refused")
            window = self.function.bar(step.bar)
            if step.verb == "peek":
                return Seen(value=window.read(step.width, step.offset))
            window.write(step.width, step.offset, step.value)
            return Seen()
        except AccessError:
            return Seen(outcome="refused")

    def _reset(self, step: Step) -> Seen:
        self.driver.disarm()
        if step.verb == "reset":
            self.function.reset()
        else:
            self._stack.close()
            self._open()
        if not self.facts.keeps_state:
            self.clean()
        return Seen(self.registers())

    def _doorbell(self, step: Step) -> Seen:
        """Ring once, as ``rcdrv ring`` does."""
        choice = step.irq.choice if step.irq else self.facts.default_irq
        self._use_irq(IrqChoice.POLL if choice is IrqChoice.INTX else choice)
        self.driver.awaits_interrupt = True
        error: RcdrvError | None = None
        try:
            if step.verb == "expect":
                with Doorbell(self.driver, expect_bar=step.bar):
                    pass
            else:
                error = RingRun(self.driver, RingPlan()).run().failure()
        except NotPassed as caught:
            error = caught
        verdict, reason = classify(error)
        outcome = verdict.value if reason is None else f"{verdict.value} {reason.value}"
        return Seen(self.registers(), outcome=outcome)

    # -- commands ---------------------------------------------------------------------------------

    def _arm(self, step: Step) -> Irq:
        irq = step.irq or Irq(self.facts.default_irq)
        self._use_irq(irq.choice)
        # A vector past the end is requested with all vectors armed.
        count = self.facts.vectors[irq.choice]
        self.driver.arm(max(1, min(irq.number, count)))
        # pci_epf_test_raise_irq() refuses a vector past the end, and a kind that is not enabled; an
        # INTx that the controller could not raise once is never raised. One that comes all the same
        # is a stray of the next step.
        possible = not self._lacks_intx if irq.choice is IrqChoice.INTX else irq.number <= count
        self.driver.awaits_interrupt = possible and step.type in (-1, self.driver.irq_type)
        return irq

    def _command(self, step: Step, parameters: Mapping[Reg, int]) -> Seen:
        irq = self._arm(step)
        driver = self.driver
        driver.count_strays()
        plain = not step.flags and step.type < 0 and not step.stale and irq.number > 0
        if plain and step.verb != "command" and not step.dma:
            answer = driver.command(
                Command(command_of(step)),
                parameters,
                vector=irq.number - 1,
                timeout=self._timeout + step.size / SLOWEST,
            )
        else:
            answer = self._raw(step, irq, parameters)
        return self._settled(irq, answer, parameters)

    def _raw(self, step: Step, irq: Irq, parameters: Mapping[Reg, int]) -> Answer:
        """Issue a command as the driver never does.

        Its FLAGS or STATUS have invalid bits, or its IRQ_TYPE or COMMAND is invalid.
        """
        driver = self.driver
        if driver.read(Reg.COMMAND):
            return Answer(Status(0), answered=False, command_left=True)
        if driver.read(Reg.IRQ_TYPE) > IrqType.MSIX:
            # A tick that has already read COMMAND would swallow it.
            driver.write(Reg.IRQ_TYPE, driver.irq_type)
            self.function.pause(_QUIET)
        for register, value in parameters.items():
            driver.write(register, value)
        driver.write(Reg.FLAGS, step.dma | step.flags)
        command = command_of(step)
        start = self._request(step, irq)
        driver.write(Reg.COMMAND, command)
        self._await_taken()
        # COMMAND is cleared first, also of a command that is swallowed; only one that may still be
        # answered gets the whole time-out.
        swallowed = step.verb == "command" or (step.dma and self._swallows_dma)
        patience = _QUIET if swallowed else self._timeout + step.size / SLOWEST
        answer = driver.wait_answer(start, _ANSWERS.get(command), patience)
        if step.dma and not answer.answered:
            self._swallows_dma = True
        answer.command_left = driver.read(Reg.COMMAND) != 0
        return answer

    def _request(self, step: Step, irq: Irq) -> int:
        """Write what the endpoint reads for its answer, and return the time."""
        driver = self.driver
        driver.write(Reg.IRQ_NUMBER, irq.number)
        driver.write(Reg.IRQ_TYPE, driver.irq_type if step.type < 0 else step.type)
        driver.write(Reg.STATUS, step.stale)
        driver.drop_interrupts()
        barrier()
        return self.function.clock.now_ns()

    def _settled(self, irq: Irq, answer: Answer, parameters: Mapping[Reg, int]) -> Seen:
        """Return the answer, with the interrupts of a pause in which surplus ones may arrive."""
        driver, vectors = self.driver, answer.vectors
        if irq.choice is IrqChoice.INTX and answer.answered and not vectors:
            self._lacks_intx = True
        self.function.pause(SETTLE)
        driver.drop_interrupts()
        more = driver.stray
        if more:
            first = min(vectors, default=irq.number - 1)
            vectors = {**vectors, first: vectors.get(first, 0) + more}
        return Seen(
            self.registers(),
            answered=answer.answered,
            command_left=answer.command_left,
            vectors=vectors,
            armed=self.facts.vectors[irq.choice],
            parameters=parameters,
        )

    # -- transfers --------------------------------------------------------------------------------

    def _transfer(self, step: Step) -> Seen:
        # With a guard page behind it.
        room = step.shift + step.size + _PAGE
        with (
            dma_buffer(self.driver, room, _PAGE) as source,
            dma_buffer(self.driver, room, _PAGE) as target,
        ):
            inside = slice(step.shift, step.shift + step.size)
            source.memory[inside] = data = os.urandom(step.size)
            sent = bytes(source.memory)
            parameters: dict[Reg, int] = {
                Reg.SIZE: step.size,
                Reg.CHECKSUM: crc32(data) ^ step.bad if step.verb == "write" else 0,
                **address_registers(Reg.SRC_ADDR_LOW, source.iova + step.shift),
                **address_registers(Reg.DST_ADDR_LOW, target.iova + step.shift),
            }
            if step.unmapped:
                source.close()
                target.close()
            seen = self._command(step, parameters)
            seen.sent = sent
            barrier()
            if not step.unmapped:
                seen.received = bytes(target.memory)
            return seen

    # -- rings ------------------------------------------------------------------------------------

    def _ring(self, step: Step) -> Seen:
        irq = self._arm(step)
        driver = self.driver
        driver.count_strays()
        bar, offset, data = (
            driver.read(register) for register in (Reg.DB_BAR, Reg.DB_OFFSET, Reg.DB_DATA)
        )
        window = self.function.bar(bar)
        # A connection takes one message at a time, so the threads take turns there.
        mapped = self.function.device.backend not in ("direct", "vfio-user")
        turn: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext() if mapped else threading.Lock()
        )

        def ring() -> None:
            for _ in range(step.count):
                with turn:
                    window.write32(offset, data)

        start = self._request(step, irq)
        if step.verb == "threads":
            other = threading.Thread(target=ring)
            other.start()
            ring()
            other.join()
        else:
            ring()
        answer = driver.wait_answer(start, Status.DOORBELL_SUCCESS)
        if step.rings > 1:
            # Each that is not merged may take as long as the first.
            self.function.pause(max(_QUIET, step.rings * (answer.latency_ns or 0) / 1e9))
        return self._settled(irq, answer, {})
