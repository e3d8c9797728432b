"""The test registers, and the driver's cached knowledge of their contents."""

from __future__ import annotations

from collections.abc import Callable

from rcdrv.epf_test.registers import BLOCK_SIZE, Command, IrqType, Reg, decode
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.parts import part_of
from rcdrv.verdict import NotPassed, Reason

ALL_ONES = 0xFFFFFFFF

Trace = Callable[[str], None]

_REQUEST = (Reg.FLAGS, Reg.IRQ_TYPE, Reg.IRQ_NUMBER)
# What pci-epf-test reads only when it takes a command or raises an interrupt:
# pci_epf_test_cmd_handler(), pci_epf_test_raise_irq() and what they call. CAPS it sets once.
_PARAMETERS = (
    *_REQUEST,
    *(Reg.SRC_ADDR_LOW, Reg.SRC_ADDR_HIGH, Reg.DST_ADDR_LOW, Reg.DST_ADDR_HIGH, Reg.SIZE),
)


class RegisterBlock:
    """Registers of pci-epf-test in a BAR, one 32-bit access each.

    A function belongs to one process, so only the endpoint and this program write the registers.
    Values left by an earlier run are checked once, and a request register (FLAGS, IRQ_TYPE,
    IRQ_NUMBER) is written only when its value changes, until :meth:`distrust` or :meth:`forget`.

    :param trace: called with a line for every access
    :raises UsageError: the BAR is too small
    """

    def __init__(self, function: Function, bar: int, trace: Trace | None = None) -> None:
        self.function = function
        self.reg_bar = bar
        self._regs = function.bar(bar)
        self._trace = trace
        self.not_memory: set[int] = set()
        """BARs that show a doorbell's page since DISABLE_DOORBELL freed it and then failed."""
        function.explain(bar, _PARAMETERS, [Reg.CAPS])
        if self._regs.size < BLOCK_SIZE:
            raise UsageError(
                f"BAR{bar} has {self._regs.size:#x} bytes, too few for the test registers",
                hint="`reg_bar` says where they are",
            )
        self.forget()

    def forget(self) -> None:
        """Discard all cached knowledge of the registers."""
        self._request: dict[Reg, int] = {}
        self.accepted = False
        """The endpoint has answered with the current FLAGS and IRQ_TYPE, so it does not ignore
        commands because of them."""
        self.idle = False
        """COMMAND is known to be 0."""
        self.clears_command = False
        """The endpoint cleared COMMAND before it answered, as pci-epf-test does."""
        self.free_db_bar: int | None = None
        """DB_BAR as read while no doorbell was enabled; None if one may be."""
        self.db_bar: int | None = None
        """DB_BAR as last read."""
        self.status: int | None = None
        """STATUS at its last access. Rings and a running command may have set bits since."""
        self._resets = self.function.resets

    def distrust(self) -> None:
        """Write the request registers next time: rebinding pci-epf-test zeroes them."""
        self._request = {}

    def read(self, register: Reg) -> int:
        """Read a register.

        :raises DeviceLost: it reads all ones, and so does config space
        """
        value = self.note(register, self._regs.read32(register))
        if register is Reg.STATUS:
            self.status = value
        elif register is Reg.DB_BAR:
            self.db_bar = value
        # DB_BAR is all ones after DISABLE, and data registers may hold any value.
        if value == ALL_ONES and register in (Reg.COMMAND, Reg.STATUS, Reg.CAPS, Reg.IRQ_TYPE):
            self.function.check_alive()
        return value

    def note(self, register: Reg, value: int) -> int:
        """Trace a value that was read, and return it."""
        if self._trace is not None:
            self._trace(f"read  {_line(register, value)}")
        return value

    def write(self, register: Reg, value: int) -> None:
        """Write a register."""
        self._request.pop(register, None)
        if value and (register is Reg.FLAGS or (register is Reg.IRQ_TYPE and value > IrqType.MSIX)):
            self.accepted = False
        if register is Reg.COMMAND:
            self.idle = False
        if register is Reg.DB_BAR or (register, value) == (Reg.COMMAND, Command.ENABLE_DOORBELL):
            self.free_db_bar = self.db_bar = None
        if self._trace is not None:
            self._trace(f"write {_line(register, value)}")
        self._regs.write32(register, value)
        if register in _REQUEST:
            self._request[register] = value
        elif register is Reg.STATUS:
            self.status = value

    def set(self, register: Reg, value: int) -> None:
        """Write a request register unless it already holds the value."""
        if self._request.get(register) != value:
            self.write(register, value)

    def wait_until_idle(self, timeout: float) -> None:
        """Wait until COMMAND is 0; until then the endpoint may be reading it.

        :raises NotPassed: ``stuck-command``, ``all-ones``
        """
        deadline = self.function.deadline(timeout)
        while True:
            left = self.read(Reg.COMMAND)
            if left == 0:
                return
            if left == ALL_ONES:
                raise self.all_ones()
            if deadline.expired:
                config = self.function.config
                from rcdrv.epf_test.causes import Symptom, hint

                raise NotPassed(
                    Reason.STUCK_COMMAND,
                    f"COMMAND still holds {decode(Reg.COMMAND, left)} after {timeout:g} s:"
                    " the endpoint does not take commands",
                    hint=hint(Symptom.NOT_TAKEN, part_of(config.vendor_id, config.device_id)),
                )
            self.function.pause(0.001)

    def all_ones(self) -> NotPassed:
        """Return the verdict for registers that read all ones although the device responds."""
        return NotPassed(
            Reason.ALL_ONES,
            f"the test registers in BAR{self.reg_bar} read all ones",
            hint="is this the register BAR (`reg_bar`)? Does the endpoint still map it? After a"
            " reset, rcdrv doctor tells whether the BAR has lost its address",
        )

    def trace(self, line: str, *values: object) -> None:
        if self._trace is not None:
            self._trace(line.format(*values))


def _line(register: Reg, value: int) -> str:
    return f"{register.name:13} {value:#010x} {decode(register, value)}".rstrip()


def stale_doorbell(block: RegisterBlock) -> int | None:
    """Return the BAR in which the endpoint reports an enabled doorbell, or None.

    DB_BAR reads 0 before the first ENABLE and NO_BAR after a DISABLE; only ENABLE changes it. So
    once no command is running, neither ours nor an earlier run's, its value is cached until the
    next ENABLE.
    """
    if block.free_db_bar is not None:
        return None
    bar = block.read(Reg.DB_BAR)
    if 1 <= bar <= 5 and bar != block.reg_bar:
        return bar
    if block.idle:
        block.free_db_bar = bar
    return None
