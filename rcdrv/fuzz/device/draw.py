"""Draw the next step: one that makes sense now and does no harm without consent."""

from __future__ import annotations

import random
from collections.abc import Collection

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.registers import ANSWERS, Command, Status
from rcdrv.fuzz.device.facts import LARGEST_SIZE
from rcdrv.fuzz.device.harm import HARMS, harm_of, nonsense
from rcdrv.fuzz.device.model import Model
from rcdrv.fuzz.device.steps import VERBS, Irq, Step, command_of
from rcdrv.mmio import WIDTHS

_SIZES = (0, 1, 2, 3, 4, 7, 8, 64, 1023, 1024, 1025, 4095, 4096, 4097, 8191, 65537)
_LARGE_SIZES = (1024001, LARGEST_SIZE)
_NO_BARS = (6, 7, 0xFF, 0x7FFFFFFF)
_KNOWN_COMMANDS = sum(int(command) for command in Command)
_EVERY_STATUS = sum(int(bit) for bit in Status)

_DESTRUCTIVE_WEIGHT = 10
_ATTEMPTS = 1000


class Draw:
    """Draw steps.

    :param rng: a seed and an endpoint determine the sequence
    :param destructive: allowed classes of harm (:data:`rcdrv.fuzz.device.harm.CLASSES`)
    """

    def __init__(self, rng: random.Random, destructive: Collection[str] = ()) -> None:
        self._rng = rng
        self._destructive = frozenset(destructive)
        self._harms = [HARMS[name] for name in sorted(self._destructive)]

    def next(self, model: Model) -> Step:
        """Draw a step for an endpoint in the state of ``model``."""
        verbs, weights = list(VERBS), [verb.weight for verb in VERBS.values()]
        for _ in range(_ATTEMPTS):  # a senseless step is drawn again
            if self._harms and self._rng.randrange(100) < _DESTRUCTIVE_WEIGHT:
                step = self._rng.choice(self._harms).drawn(self._rng, model)
            else:
                step = self._step(self._rng.choices(verbs, weights)[0], model)
            if step is not None and self._fits(step, model):
                return step
        return Step("raise", irq=Irq(IrqChoice.POLL))

    def _fits(self, step: Step, model: Model) -> bool:
        harm = harm_of(step, model)
        return (not harm or harm in self._destructive) and not nonsense(step, model)

    def _step(self, verb: str, model: Model) -> Step | None:
        rng, facts = self._rng, model.facts
        if verb in ("peek", "poke"):
            return self._access(verb, model)
        if verb in ("reset", "reopen"):
            return Step(verb)
        if verb == "expect":
            return Step(verb, bar=rng.randrange(6))
        step = Step(verb, irq=self._irq(model))
        if verb == "cycle":
            return step
        if verb in ("ring", "threads"):
            step = step.but(count=rng.choice((1, 1, 1, 2, 3, 8)))
            return step.but(stale=self._stale(Status.DOORBELL_SUCCESS))
        if verb in ("setup", "clear"):
            usual = sorted(model.swapped) if verb == "clear" and model.swapped else facts.writable
            unusual = [*range(6), *_NO_BARS]
            step = step.but(bar=rng.choice(usual if usual and rng.random() < 0.85 else unusual))
        elif verb in ("read", "write", "copy"):
            step = self._transfer(step, model)
        elif verb == "command":
            step = self._no_command(step)
        answers = Status(0)
        if command_of(step) in list(ANSWERS):
            answers = ANSWERS[Command(command_of(step))]
        if rng.random() < 0.3:
            step = step.but(stale=self._stale(answers))
        if rng.random() < 0.1:
            step = step.but(flags=rng.getrandbits(32) & ~1)
        if rng.random() < (0.4 if verb in ("read", "write", "copy") else 0.04):
            step = step.but(dma=True)
        if verb == "raise" and rng.random() < 0.1:
            # A kind that the host has not enabled. INTx needs no enabling.
            step = step.but(type=rng.choice((1, 2)))
        return step

    def _stale(self, answers: Status) -> int:
        """Draw stale STATUS bits, as of a driver that does not clear it."""
        return self._rng.getrandbits(19) & _EVERY_STATUS & ~int(answers | Status.IRQ_RAISED)

    def _irq(self, model: Model) -> Irq | None:
        rng, vectors = self._rng, model.facts.vectors
        if rng.random() < 0.3:
            return None
        choice = rng.choice(list(vectors))
        count = vectors[choice]
        return Irq(choice, rng.choice((1, count, count + 1, rng.randint(1, count))))

    def _transfer(self, step: Step, model: Model) -> Step:
        rng = self._rng
        size = rng.choice(_LARGE_SIZES if rng.random() < 0.02 else _SIZES)
        shift = rng.choice((0, 0, 1, 4, 8, 4095, 4096)) // model.facts.align * model.facts.align
        bad = step.verb == "write" and rng.random() < 0.3
        return step.but(size=size, shift=shift, bad=bad)

    def _no_command(self, step: Step) -> Step:
        """Draw an invalid IRQ_TYPE, an unknown COMMAND bit, or several bits.

        Older kernels test each bit by itself, so several never include the doorbell's.
        """
        rng = self._rng
        if rng.random() < 0.4:
            value = int(rng.choice([Command.RAISE_MSI_IRQ, Command.BAR_SUBRANGE_CLEAR]))
            return step.but(value=value, type=rng.choice((3, 4, 0x7FFFFFFF, 0xFFFFFFFF)))
        if rng.random() < 0.5:
            return step.but(
                value=rng.choice((1 << 10, 1 << 16, 1 << 31, 0xFFFFFFFF & ~_KNOWN_COMMANDS))
            )
        raises = Command.RAISE_INTX_IRQ | Command.RAISE_MSI_IRQ | Command.RAISE_MSIX_IRQ
        return step.but(value=int(raises & ~rng.choice((Command(0), *Command)) | 1 << 12))

    # -- accesses ---------------------------------------------------------------------------------

    def _access(self, verb: str, model: Model) -> Step:
        """Draw an access at an edge of the BAR or its halves, or at known contents.

        A few of them are impossible.
        """
        rng, facts = self._rng, model.facts
        bar = rng.choice(facts.writable) if facts.writable and rng.random() < 0.9 else facts.reg_bar
        width, size = rng.choice(WIDTHS), facts.bars[bar]
        step_size = width // 8
        memory = model.memory.get(bar)
        known = memory.known() if memory is not None else []
        if known and rng.random() < 0.4:
            offset = rng.choice(known) // step_size * step_size
        elif bar == facts.reg_bar and verb == "poke":
            offset = rng.randrange(0, 4, min(4, step_size))
        else:
            edge = rng.choice((0, size // 2, size, size))
            offset = edge + step_size * rng.choice((-2, -1, -1, 0, 0, 1))
        if rng.random() < 0.1:
            offset += rng.choice((1, 2, 4))
        value = rng.getrandbits(width)
        step = Step(verb, bar=bar, offset=max(0, offset), width=width)
        return step.but(value=value) if verb == "poke" else step
