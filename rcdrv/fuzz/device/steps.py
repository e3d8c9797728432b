"""Steps of a sequence, and their text form in a script.

One word each, a verb and its arguments separated by commas: ``setup,bar=2``,
``copy,size=1025,dma,irq=msix:3``, ``poke,bar=2,offset=0x10,width=16,value=0x1234``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.irqs import COMMANDS
from rcdrv.epf_test.registers import Command
from rcdrv.errors import UsageError


class Irq(NamedTuple):
    """Interrupt requested for an answer."""

    choice: IrqChoice
    number: int = 1
    """IRQ_NUMBER, from 1. 0 does harm: see :mod:`rcdrv.fuzz.device.harm`."""

    def __str__(self) -> str:
        return f"{self.choice.value}:{self.number}"


@dataclass(frozen=True)
class Step:
    """One step. Arguments that the verb does not take have their defaults."""

    verb: str
    bar: int = 0
    """The BAR; for ``setup`` and ``clear`` any 32-bit number is possible."""
    offset: int = 0
    """Bytes from the BAR's start."""
    width: int = 32
    """Width of an access in bits."""
    value: int = 0
    size: int = 0
    """Size of a transfer in bytes."""
    shift: int = 0
    """Offset of the buffers in a page."""
    count: int = 1
    """Rings before the first wait; for ``threads``, of each of two."""
    dma: bool = False
    """Whether FLAGS has USE_DMA."""
    bad: bool = False
    """Whether CHECKSUM is wrong."""
    unmapped: bool = False
    """Whether the IOMMU refuses the bus address."""
    flags: int = 0
    """Reserved bits in FLAGS."""
    type: int = -1
    """IRQ_TYPE, if not the kind armed by ``irq``."""
    stale: int = 0
    """STATUS before the command."""
    irq: Irq | None = None
    """How the endpoint has to answer; default as the driver chooses."""

    def __str__(self) -> str:
        words = [self.verb]
        for key in VERBS[self.verb].arguments:
            words.append(f"{key}={_text(key, getattr(self, key))}")
        for key, default in _OPTIONS.items():
            value = getattr(self, key)
            if value != default and key not in VERBS[self.verb].arguments:
                words.append(key if value is True else f"{key}={_text(key, value)}")
        return ",".join(words)

    @property
    def rings(self) -> int:
        """Rings before the first wait."""
        return 2 * self.count if self.verb == "threads" else self.count

    def but(self, **changes: object) -> Step:
        return replace(self, **changes)  # type: ignore[arg-type]


class Verb(NamedTuple):
    weight: int
    """How often it is drawn; 0: only with consent to the harm that it does."""
    arguments: tuple[str, ...] = ()
    """Those that it needs."""
    command: int = 0
    """COMMAND, if it has a fixed one."""


VERBS = {
    "enable": Verb(8, command=Command.ENABLE_DOORBELL),
    "disable": Verb(8, command=Command.DISABLE_DOORBELL),
    "ring": Verb(12, ("count",)),
    "threads": Verb(3, ("count",)),
    "cycle": Verb(3),
    "expect": Verb(2, ("bar",)),
    "setup": Verb(8, ("bar",), Command.BAR_SUBRANGE_SETUP),
    "clear": Verb(8, ("bar",), Command.BAR_SUBRANGE_CLEAR),
    # The endpoint's commands are named from its side.
    "read": Verb(5, ("size",), Command.WRITE),
    "write": Verb(5, ("size",), Command.READ),
    "copy": Verb(5, ("size",), Command.COPY),
    "raise": Verb(10),
    "command": Verb(2, ("value",)),
    "db_bar": Verb(0, ("value",)),
    "peek": Verb(14, ("bar", "offset", "width")),
    "poke": Verb(14, ("bar", "offset", "width", "value")),
    "reset": Verb(2),
    "reopen": Verb(2),
}
"""``enable``, ``disable``: the doorbell's commands alone. ``ring``: write the enabled doorbell.
``threads``: from two threads at once. ``cycle``: as ``rcdrv ring``; ``expect``: the same with
``bar``, without a ring. ``setup``, ``clear``: BAR_SUBRANGE. ``read``, ``write``,
``copy``: a transfer, named as in ``rcdrv test``. ``raise``: an interrupt. ``command``: an invalid
COMMAND. ``db_bar``: write DB_BAR. ``peek``, ``poke``: one access. ``reset``: reset the function.
``reopen``: close and open it, which also resets it if it has a reset.
"""

_OPTIONS = {
    field.name: field.default for field in fields(Step) if field.name != "verb"
}  # in the order in which they are written
_HEXADECIMAL = ("offset", "value", "stale", "flags")

TRANSFERS = ("read", "write", "copy")


def command_of(step: Step) -> int:
    """Return the step's COMMAND; 0 if it has none of its own."""
    if step.verb == "raise":
        return COMMANDS[step.irq.choice if step.irq else IrqChoice.POLL]
    if step.verb == "command":
        return step.value
    return VERBS[step.verb].command


def _text(key: str, value: object) -> str:
    large = isinstance(value, int) and value > 9
    return f"{value:#x}" if key in _HEXADECIMAL and large else str(value)


def parse_step(text: str) -> Step:
    """Parse a step.

    :raises UsageError: not a step
    """
    verb, *words = text.split(",")
    if verb not in VERBS:
        raise UsageError(f"{text!r}: no step {verb!r}", hint=f"one of {', '.join(VERBS)}")
    step = Step(verb)
    for word in words:
        key, equals, value = word.partition("=")
        if key not in _OPTIONS:
            raise UsageError(f"{text!r}: no argument {key!r}")
        try:
            step = step.but(**{key: _value(key, value if equals else None)})
        except ValueError:
            raise UsageError(f"{text!r}: {word!r} is not a value of {key}") from None
    missing = [
        key for key in VERBS[verb].arguments if not any(w.startswith(f"{key}=") for w in words)
    ]
    if missing:
        raise UsageError(f"{text!r}: {verb} needs {', '.join(missing)}")
    return step


def _value(key: str, text: str | None) -> object:
    """Parse the value of an argument.

    :raises ValueError: invalid
    """
    if isinstance(_OPTIONS[key], bool):
        if text is not None:
            raise ValueError
        return True
    if text is None:
        raise ValueError
    if key == "irq":
        choice, _, number = text.partition(":")
        return Irq(IrqChoice(choice), _number(number or "1"))
    return _number(text)


def _number(text: str) -> int:
    value = int(text, 0)
    if not 0 <= value < 1 << 64:
        raise ValueError
    return value
