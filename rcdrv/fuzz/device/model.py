"""Model of the pci-epf-test protocol: the expected outcome of each step.

Written from ``drivers/pci/endpoint/functions/pci-epf-test.c`` (Linux 7.3), independently of
:mod:`rcdrv.sim`, so that the two can disagree. Where the protocol leaves a choice to the endpoint
(DMA engine, INTx, mapping of a BAR's halves), later answers of a sequence must equal the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.registers import NO_BAR, IrqType, Reg, Status, bit_names
from rcdrv.fuzz.device.facts import LARGEST_SIZE, Facts, Seen, Wrong
from rcdrv.fuzz.device.memory import Memory
from rcdrv.fuzz.device.steps import TRANSFERS, Irq, Step, command_of

_SURELY_MAPPED = 1024001
"""Bytes of the kselftest's largest transfer, which every part's outbound windows support."""

_IRQ_TYPES = {
    IrqChoice.INTX: IrqType.INTX,
    IrqChoice.MSI: IrqType.MSI,
    IrqChoice.MSIX: IrqType.MSIX,
    IrqChoice.POLL: IrqType.MSI,
}


class Model:
    """Current state. Call :meth:`judge` with steps in the order of execution.

    :param registers: all of them, as they were found
    """

    def __init__(self, facts: Facts, registers: Mapping[Reg, int]) -> None:
        self.facts = facts
        self.registers = dict(registers)
        self.doorbell_bar: int | None = None
        """BAR of the enabled doorbell, which may show that instead of memory."""
        self.swapped: set[int] = set()
        """BARs with a subrange mapping."""
        self.memory = {bar: Memory(facts.bars[bar]) for bar in facts.writable}
        self.memory[facts.reg_bar] = Memory(4)  # MAGIC, which is unused
        self.learned: dict[str, object] = {}
        self.tainted = False
        """Whether the host has overwritten DB_BAR of an enabled doorbell."""
        self.lost: set[int] = set()
        """BARs not restored when the doorbell was disabled: contents unknown."""

    @property
    def enabled(self) -> bool:
        return self.doorbell_bar is not None

    @property
    def hidden(self) -> set[int]:
        """BARs known not to show their memory."""
        return self.lost if self.doorbell_bar is None else {*self.lost, self.doorbell_bar}

    def restart(self, registers: Mapping[Reg, int]) -> None:
        """Start again after a reset that undoes mappings."""
        self.registers = dict(registers)
        self.doorbell_bar = None
        for bar in self.swapped:
            self.memory[bar].swapped = False
        self.swapped.clear()
        self.lost.clear()
        self.tainted = False

    def judge(self, step: Step, seen: Seen) -> None:
        """Compare a step with the model, and advance the model.

        :raises Wrong: the outcome differs
        """
        checks = {
            "enable": self._enable,
            "disable": self._disable,
            "ring": self._ring,
            "threads": self._ring,
            "cycle": self._cycle,
            "expect": self._expect,
            "setup": self._setup,
            "clear": self._clear,
            "raise": self._raise,
            "command": self._no_command,
            "db_bar": self._db_bar,
            "peek": self._access,
            "poke": self._access,
            "reset": self._kept,
            "reopen": self._kept,
            **dict.fromkeys(TRANSFERS, self._transfer),
        }
        if not self._swallows_dma(step, seen):
            checks[step.verb](step, seen)

    def _learn(self, what: str, value: object, text: str) -> None:
        """Record the first answer; a later one must equal it."""
        first = self.learned.setdefault(what, value)
        if first != value:
            raise Wrong(what, f"{what}: {text}, unlike before")

    # -- answers to commands ----------------------------------------------------------------------

    def _answer(self, step: Step, seen: Seen, answers: Sequence[int]) -> int:
        """Return STATUS without IRQ_RAISED, after checking answer, interrupt and registers."""
        status = seen.registers[Reg.STATUS]
        # pci_epf_test_cmd_handler() clears COMMAND, then STATUS, before anything else.
        if seen.command_left:
            raise Wrong("COMMAND", "COMMAND is not cleared")
        if not seen.answered and not status:
            raise Wrong("silent", "no answer")
        got = status & ~Status.IRQ_RAISED
        if not status & Status.IRQ_RAISED or got not in answers:
            wanted = " or ".join(bit_names(Status(one | Status.IRQ_RAISED)) for one in answers)
            raise Wrong("STATUS", f"STATUS is {bit_names(Status(status))} and not {wanted}")
        self._interrupt(step, seen)
        self._check_registers(step, seen)
        return got

    def _interrupt(self, step: Step, seen: Seen, most: int = 1) -> None:
        """Check pci_epf_test_raise_irq(): IRQ_RAISED always, interrupts of enabled vectors only.

        :param most: maximum number of interrupts; the endpoint may merge all but the last
        """
        choice, number = self._irq(step)
        fired = " and ".join(
            f"{vector + 1}" + (f" {times} times" if times > 1 else "")
            for vector, times in seen.vectors.items()
        )
        if choice is IrqChoice.INTX and step.type in (-1, IrqType.INTX):
            # Level-triggered, so its count means nothing; and many controllers cannot raise it.
            self._learn("intx", bool(seen.vectors), "it came" if fired else "it did not come")
            return
        mine = step.type in (-1, _IRQ_TYPES[choice])
        if choice is IrqChoice.POLL or not mine or not 1 <= number <= seen.armed:
            if seen.vectors:
                raise Wrong("interrupt", f"{choice.value} {fired} fired, where none can")
            return
        if not seen.vectors:
            raise Wrong("interrupt", f"{choice.value} {number} did not fire")
        times = seen.vectors.get(number - 1, 0)
        if set(seen.vectors) != {number - 1} or times > most:
            raise Wrong("interrupt", f"{choice.value} {fired} fired, and not {number} once")

    def _irq(self, step: Step) -> Irq:
        return step.irq or Irq(self.facts.default_irq)

    def _check_registers(self, step: Step, seen: Seen) -> None:
        """Check that the endpoint changed no register but STATUS, CHECKSUM and the doorbell's."""
        choice, number = self._irq(step)
        self.registers.update(seen.parameters)
        self.registers[Reg.FLAGS] = step.dma | step.flags
        # INTx ignores it, so the driver may leave it as it was.
        if choice is not IrqChoice.INTX or seen.registers.get(Reg.IRQ_NUMBER) == number:
            self.registers[Reg.IRQ_NUMBER] = number
        self.registers[Reg.IRQ_TYPE] = _IRQ_TYPES[choice] if step.type < 0 else step.type
        if step.verb == "read":
            self.registers[Reg.CHECKSUM] = seen.registers[Reg.CHECKSUM]
        if step.verb in ("ring", "threads"):  # a ring has no FLAGS
            self.registers[Reg.FLAGS] = seen.registers[Reg.FLAGS]
        self._compare(seen)

    def _compare(self, seen: Seen) -> None:
        for register, value in seen.registers.items():
            wanted = self.registers[register]
            if value != wanted and register not in (Reg.COMMAND, Reg.STATUS):
                raise Wrong(
                    f"register {register.name}",
                    f"{register.name} reads {value:#x}, expected {wanted:#x}",
                )

    def _swallowed(self, seen: Seen) -> bool:
        """Check a command that is taken without an answer, as USE_DMA without a DMA engine."""
        return not (
            seen.command_left or seen.answered or seen.registers[Reg.STATUS] or seen.vectors
        )

    def _swallows_dma(self, step: Step, seen: Seen) -> bool:
        """Return whether the command was swallowed for USE_DMA, always or never."""
        if not step.dma or step.verb == "command" or not command_of(step):
            return False
        swallowed = self._swallowed(seen)
        self._learn("USE_DMA", swallowed, "no answer" if swallowed else "an answer")
        if swallowed:
            self._check_registers(step, seen)
        return swallowed

    def _raise(self, step: Step, seen: Seen) -> None:
        self._answer(step, seen, [0])

    def _no_command(self, step: Step, seen: Seen) -> None:
        """Check an invalid COMMAND or IRQ_TYPE: taken without an answer."""
        if seen.command_left:
            raise Wrong("COMMAND", "COMMAND is not cleared")
        if not self._swallowed(seen):
            status = bit_names(Status(seen.registers[Reg.STATUS]))
            raise Wrong("STATUS", f"STATUS is {status}, and {len(seen.vectors)} interrupts came")
        self._check_registers(step, seen)

    # -- transfers --------------------------------------------------------------------------------

    def _transfer(self, step: Step, seen: Seen) -> None:
        """Check pci_epf_test_write(), _read() and _copy(); size 0 moves nothing and succeeds."""
        src, dst = Status.SRC_ADDR_INVALID, Status.DST_ADDR_INVALID
        good, bad = {
            "read": (Status.WRITE_SUCCESS, Status.WRITE_FAIL),
            "write": (Status.READ_SUCCESS, Status.READ_FAIL),
            "copy": (Status.COPY_SUCCESS, Status.COPY_FAIL),
        }[step.verb]
        answers = [good]
        if step.size > LARGEST_SIZE or (step.verb == "write" and step.bad):
            answers = [bad]
        elif step.verb == "copy" and step.dma:
            answers = [good, bad]  # an engine that cannot copy memory to memory
        elif step.unmapped:
            # Posted writes report no error; data that cannot be read does not match the CHECKSUM.
            answers = [bad] if step.verb == "write" else [good, bad]
        if step.size > _SURELY_MAPPED:
            sides = {"read": (dst,), "write": (src,), "copy": (src, dst)}[step.verb]
            answers += [bad | side for side in sides]
        got = self._answer(step, seen, answers)
        if step.verb == "copy" and step.dma:
            self._learn("COPY by DMA", got, "fails" if got == bad else "succeeds")
        if got == good and not step.unmapped:
            seen.check_data(step)

    # -- doorbell ---------------------------------------------------------------------------------

    def _enable(self, step: Step, seen: Seen) -> None:
        """Check pci_epf_test_enable_doorbell()."""
        success, fail = Status.DOORBELL_ENABLE_SUCCESS, Status.DOORBELL_ENABLE_FAIL
        doorbell = {reg: seen.registers[reg] for reg in (Reg.DB_BAR, Reg.DB_OFFSET, Reg.DB_DATA)}
        if self.enabled:
            self._answer(step, seen, [fail])  # busy: everything stays as it is
            return
        before = {reg: self.registers[reg] for reg in doorbell}
        self.registers.update(doorbell)
        got = self._answer(step, seen, [success, fail])
        if got == fail:
            # Nothing was allocated, or all of it was freed.
            if doorbell[Reg.DB_BAR] not in (before[Reg.DB_BAR], NO_BAR):
                raise Wrong("register DB_BAR", f"DB_BAR is {doorbell[Reg.DB_BAR]:#x} after a FAIL")
            short = self.swapped or self.lost
            if doorbell[Reg.DB_BAR] == NO_BAR:
                # dw_pcie_ep_set_bar() removes the BAR's window before it fails.
                self.lost.add(self._likely_bar())
            if short:
                return  # no inbound window may be left
        self._learn("doorbell", got, bit_names(Status(got)))
        if got == success:
            self._check_place(doorbell)
            self.doorbell_bar = doorbell[Reg.DB_BAR]

    def _likely_bar(self) -> int:
        """Return the likely BAR of a doorbell: the last one, or pci_epc_get_next_free_bar()."""
        behind = [bar for bar in self.facts.writable if bar > self.facts.reg_bar]
        bar = self.learned.get("DB_BAR", min(behind, default=NO_BAR))
        assert isinstance(bar, int)
        return bar

    def _may_lack_window(self, bar: int) -> bool:
        """Return whether another BAR may have taken an inbound window of a BAR's two halves, while
        a doorbell replaced these."""
        return bar in self.lost or (bar in self.swapped and len(self.swapped) > 1)

    def _check_place(self, doorbell: Mapping[Reg, int]) -> None:
        bar, offset = doorbell[Reg.DB_BAR], doorbell[Reg.DB_OFFSET]
        if bar not in self.facts.bars or bar == self.facts.reg_bar:
            raise Wrong("DB_BAR", f"DB_BAR is {bar:#x}, which cannot hold a doorbell")
        if offset % 4 or offset + 4 > self.facts.bars[bar]:
            size = self.facts.bars[bar]
            raise Wrong("DB_OFFSET", f"DB_OFFSET is {offset:#x}, in a BAR of {size:#x} bytes")
        self._learn("DB_BAR", bar, f"it is {bar}")

    def _disable(self, step: Step, seen: Seen) -> None:
        """Check pci_epf_test_disable_doorbell()."""
        success, fail = Status.DOORBELL_DISABLE_SUCCESS, Status.DOORBELL_DISABLE_FAIL
        named = self.registers[Reg.DB_BAR]
        if self.doorbell_bar is None:
            self._answer(step, seen, [fail])
            return
        if named >= 1 << 31:  # enum pci_barno is signed
            self._answer(step, seen, [fail])
            raise Wrong(
                "doorbell lost",
                f"DB_BAR was overwritten with {named:#x}, so the doorbell stays enabled",
            )
        self.registers[Reg.DB_BAR] = NO_BAR
        bar = self.doorbell_bar
        got = self._answer(step, seen, [success, *self._disable_fails(named)])
        self.doorbell_bar, self.tainted = None, False
        # pci_epc_set_bar() of the BAR in DB_BAR, wherever the doorbell is.
        self.lost.add(bar)
        if got == success:
            self.lost.discard(named)

    def _disable_fails(self, named: int) -> list[Status]:
        """Return the failure that DISABLE may report, if any, as pci_epc_set_bar() may fail.

        It fails for a BAR without memory, beyond epf->bar[], or without an inbound window.
        """
        usable = named in self.facts.bars and named not in self.facts.reserved
        if self.doorbell_bar in self.facts.reserved or (
            usable and not self._may_lack_window(named)
        ):
            return []
        return [Status.DOORBELL_DISABLE_FAIL]

    def _ring(self, step: Step, seen: Seen) -> None:
        """Check pci_epf_test_doorbell_handler(): a thread, so close rings may be merged."""
        status = seen.registers[Reg.STATUS]
        wanted = Status.DOORBELL_SUCCESS | Status.IRQ_RAISED | step.stale
        if not seen.answered:
            raise Wrong("ring", f"rung, and STATUS is {bit_names(Status(status))}")
        if status != wanted:
            names = bit_names(Status(wanted))
            raise Wrong("STATUS", f"STATUS is {bit_names(Status(status))} and not {names}")
        self._interrupt(step, seen, most=step.rings)
        self._check_registers(step, seen)

    def _cycle(self, _step: Step, seen: Seen) -> None:
        """Check ``rcdrv ring``, which recovers a doorbell that was left enabled."""
        self._whole_doorbell(seen, ["pass"])

    def _expect(self, step: Step, seen: Seen) -> None:
        """Check ``rcdrv ring`` with ``bar``: refused if the doorbell is in another one."""
        self._whole_doorbell(seen, ["pass", "fail wrong-bar"])
        if seen.outcome == "pass":
            self._learn("DB_BAR", step.bar, f"it is {step.bar}")
        elif seen.outcome == "fail wrong-bar" and self.learned.get("DB_BAR") == step.bar:
            raise Wrong("DB_BAR", f"DB_BAR: it is not {step.bar}, unlike before")

    def _whole_doorbell(self, seen: Seen, good: Sequence[str]) -> None:
        """Check the driver's sequence from ENABLE to DISABLE."""
        works = seen.outcome in good
        bar = self._likely_bar()
        if seen.outcome == "fail disable-failed" and self._may_lack_window(bar):
            self.doorbell_bar = None
            self.lost.add(bar)
            self.registers = dict(seen.registers)
            return
        if not works and seen.outcome != "fail enable-failed":
            raise Wrong(
                "outcome", f"the outcome of rcdrv ring is {seen.outcome!r}, not {good[0]!r}"
            )
        if not works and self.enabled:
            raise Wrong("outcome", "the enabled doorbell could not be enabled again")
        if works or not (self.swapped or self.lost):
            fail = Status.DOORBELL_ENABLE_FAIL
            got = Status.DOORBELL_ENABLE_SUCCESS if works else fail
            self._learn("doorbell", got, bit_names(got))
        said = seen.registers[Reg.DB_BAR]
        if said not in ([NO_BAR] if works else [NO_BAR, self.registers[Reg.DB_BAR]]):
            raise Wrong("left enabled", f"DB_BAR is {said:#x}: the doorbell is left enabled")
        if works:
            self.lost.discard(bar)
        self.doorbell_bar = None
        self.registers = dict(seen.registers)

    def _db_bar(self, step: Step, seen: Seen) -> None:
        self.tainted = self.enabled and step.value != self.doorbell_bar
        self.registers[Reg.DB_BAR] = step.value
        self._compare(seen)

    # -- subrange mapping -------------------------------------------------------------------------

    def _setup(self, step: Step, seen: Seen) -> None:
        """Check pci_epf_test_bar_subrange_setup()."""
        success, fail = Status.BAR_SUBRANGE_SETUP_SUCCESS, Status.BAR_SUBRANGE_SETUP_FAIL
        memory = self.memory.get(step.bar) if step.bar != self.facts.reg_bar else None
        if memory is None:
            self._answer(step, seen, [fail])
            return
        got = self._answer(step, seen, [success, fail, fail | Status.NO_RESOURCE])
        if not got & Status.NO_RESOURCE:
            # The controller's ability to map halves of this size does not change.
            self._learn(f"halves of BAR{step.bar}", got, bit_names(Status(got)))
        if got == success:
            self.lost.discard(step.bar)
            self.swapped.add(step.bar)
            memory.swapped = True
            # pci_epf_test_subrange_sig_byte()
            first = 0x50 + 8 * step.bar
            memory.sign((first, first + 1))

    def _clear(self, step: Step, seen: Seen) -> None:
        """Check pci_epf_test_bar_subrange_clear()."""
        success, fail = Status.BAR_SUBRANGE_CLEAR_SUCCESS, Status.BAR_SUBRANGE_CLEAR_FAIL
        answers = [success] if step.bar in self.swapped else [fail]
        if step.bar in self.lost:
            answers = [success, fail]  # no inbound window may be left
        if self._answer(step, seen, answers) == success:
            self.swapped.discard(step.bar)
            self.lost.discard(step.bar)
            self.memory[step.bar].swapped = False

    # -- the rest ---------------------------------------------------------------------------------

    def _kept(self, _step: Step, seen: Seen) -> None:
        """Check that a function level reset keeps the registers; :meth:`restart` follows others."""
        if self.facts.keeps_state:
            self._compare(seen)

    def _access(self, step: Step, seen: Seen) -> None:
        if not self.facts.in_window(step):
            if seen.outcome != "refused":
                raise Wrong("refusal", "no such access is possible, and it was not refused")
            return
        if seen.outcome:
            raise Wrong("refusal", f"the access is {seen.outcome}")
        if step.bar in self.hidden:
            return  # it went to the endpoint's hardware
        memory = self.memory.get(step.bar)
        size = step.width // 8
        if memory is None or step.offset >= memory.size:
            return  # registers, which _compare() checks
        if step.verb == "poke":
            memory.write(step.offset, step.value.to_bytes(size, "little"))
            if step.bar == self.facts.reg_bar:
                self._note_magic(memory)
            return
        assert seen.value is not None
        got = seen.value.to_bytes(size, "little")
        for index, byte in enumerate(got, step.offset):
            wanted = memory.expected(index) if index < memory.size else None
            if wanted not in (None, byte):
                raise Wrong(
                    "memory", f"BAR{step.bar}+{index:#x} reads {byte:#04x}, not {wanted:#04x}"
                )
        if step.bar != self.facts.reg_bar:
            memory.write(step.offset, got)

    def _note_magic(self, memory: Memory) -> None:
        before = self.registers[Reg.MAGIC].to_bytes(4, "little")
        now = [memory.expected(index) for index in range(4)]
        self.registers[Reg.MAGIC] = int.from_bytes(
            [old if new is None else new for old, new in zip(before, now, strict=True)], "little"
        )
