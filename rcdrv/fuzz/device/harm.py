"""Harm that a step can do to an endpoint's kernel (Linux 7.3). Such a step needs consent by name.

Each class is an input that ``drivers/pci/endpoint/functions/pci-epf-test.c`` does not check. It
depends on the endpoint's state, hence on the model: DISABLE is harmless after ENABLE.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.registers import NO_BAR, Caps, Command, Reg
from rcdrv.fuzz.device.facts import LARGEST_SIZE
from rcdrv.fuzz.device.model import Model
from rcdrv.fuzz.device.steps import TRANSFERS, Irq, Step, command_of

_Test = Callable[[Step, Model], object]


class Harm(NamedTuple):
    what: str
    done_by: _Test
    """Returns whether a step would do it now."""
    drawn: Callable[[Random, Model], Step | None]
    """Draws a step that does it; None where it cannot be done now."""


def _irq_zero(rng: Random, model: Model) -> Step | None:
    kinds = [one for one in (IrqChoice.MSI, IrqChoice.MSIX) if one in model.facts.vectors]
    return Step("raise", irq=Irq(rng.choice(kinds), 0)) if kinds else None


def _doorbell_bar(rng: Random, model: Model) -> Step | None:
    bar = model.doorbell_bar
    if bar is None or bar in model.facts.reserved:
        return None
    offset = rng.randrange(0, min(4096, model.facts.bars[bar]), 4)
    if offset == model.registers[Reg.DB_OFFSET]:
        return None  # that would ring it
    return Step(rng.choice(("peek", "poke")), bar=bar, offset=offset)


# Any BAR; an index just past epf->bar[], far past it, and before it.
_WRONG_BARS = (*range(6), 6, *[0x7FFFFFFF] * 8, NO_BAR)

HARMS = {
    "disable-without-enable": Harm(
        "DISABLE_DOORBELL where none was enabled: a null pointer is followed",
        # The endpoint refuses only NO_BAR; any other value counts as an enabled doorbell.
        lambda step, model: (
            command_of(step) & Command.DISABLE_DOORBELL
            and not model.enabled
            and model.registers[Reg.DB_BAR] != NO_BAR
        ),
        lambda _rng, model: None if model.registers[Reg.DB_BAR] == NO_BAR else Step("disable"),
    ),
    "subrange-index": Harm(
        "a BAR number of 0x80000000 and more: it indexes an array, signed",
        lambda step, _model: step.verb in ("setup", "clear") and step.bar >= 1 << 31,
        lambda rng, _model: Step(
            rng.choice(("setup", "clear")), bar=rng.choice((0x80000000, 0xFFFFFFFE, 0xFFFFFFFF))
        ),
    ),
    "large-size": Harm(
        "a transfer of more than 4 MiB: its allocation warns, panics with panic_on_warn",
        lambda step, _model: step.verb in TRANSFERS and step.size > LARGEST_SIZE,
        lambda rng, _model: Step(rng.choice(TRANSFERS), size=LARGEST_SIZE + rng.choice((1, 4096))),
    ),
    "irq-zero": Harm(
        "IRQ_NUMBER 0 with MSI or MSI-X: what precedes the table is used as an entry",
        lambda step, _model: (
            step.irq and not step.irq.number and step.irq.choice is not IrqChoice.INTX
        ),
        _irq_zero,
    ),
    "write-db-bar": Harm(
        "DB_BAR overwritten: DISABLE_DOORBELL indexes an array with it",
        lambda step, model: step.verb == "db_bar" or (step.verb == "disable" and model.tainted),
        lambda rng, model: Step("db_bar", value=rng.choice(_WRONG_BARS)) if model.enabled else None,
    ),
    "doorbell-bar": Harm(
        "accesses to a BAR that shows the endpoint's interrupt controller",
        # An always exposed doorbell is in a reserved BAR, which is never accessed.
        lambda step, model: step.verb in ("peek", "poke") and step.bar in model.hidden,
        _doorbell_bar,
    ),
    "iommu-fault": Harm(
        "a transfer to a bus address that the host refuses: some parts do worse than"
        " to fail it, and DMA has no time-out",
        lambda step, _model: step.verb in TRANSFERS and step.unmapped,
        lambda rng, _model: Step(rng.choice(TRANSFERS), size=1024, unmapped=True),
    ),
}

CLASSES = {name: harm.what for name, harm in HARMS.items()}
"""Classes of ``destructive`` with their effects."""


def harm_of(step: Step, model: Model) -> str:
    """Return the class of harm of ``step`` now; empty if harmless."""
    return next((name for name, harm in HARMS.items() if harm.done_by(step, model)), "")


def nonsense(step: Step, model: Model) -> str:
    """Return why a step is never done, with any consent; empty if it makes sense now."""
    verb, bar, facts, irq = step.verb, step.bar, model.facts, step.irq
    if verb in ("peek", "poke") and facts.in_window(step):
        if bar in facts.reserved:
            return f"BAR{bar} is reserved"
        if verb == "poke" and bar == facts.reg_bar and step.offset + step.width // 8 > 4:
            return "the test registers are not for poking"
    # An older kernel may lack an unannounced command, or support it silently.
    doorbell, subrange = Caps.DYNAMIC_INBOUND_MAPPING, Caps.SUBRANGE_MAPPING
    if verb in ("enable", "disable", "cycle", "expect") and not facts.caps & doorbell:
        return "CAPS does not announce DYNAMIC_INBOUND_MAPPING"
    if verb in ("setup", "clear"):
        if not facts.caps & subrange:
            return "CAPS does not announce SUBRANGE_MAPPING"
        if bar == model.doorbell_bar:
            return f"BAR{bar} holds the doorbell"
    if verb in ("ring", "threads") and not model.enabled:
        return "no doorbell is enabled"
    if verb in ("ring", "threads", "cycle", "expect") and model.tainted:
        return "DB_BAR was overwritten, so the place of the doorbell is unknown"
    if verb == "expect" and bar == facts.reg_bar:
        return f"BAR{bar} holds the test registers"
    if irq and irq.choice not in facts.vectors:
        return f"this function has no {irq.choice.value}"
    if verb == "command" and step.type <= 2 and step.value in list(map(int, Command)):
        return "that is a command"
    if verb == "reset" and not facts.can_reset:
        return "the function has no reset"
    # epf->bar[].submap survives it, and the next pci_epc_set_bar() is -EINVAL.
    if verb in ("reset", "reopen") and model.swapped and not facts.keeps_state:
        return "it would cost the BARs that have a subrange mapping"
    if step.size + step.shift > 64 << 20:
        return "no buffer is that large"
    return ""
