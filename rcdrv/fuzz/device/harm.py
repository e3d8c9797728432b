"""What a step could do to an endpoint's kernel (Linux 7.3), and so is not done unless named.

Each class is a thing that ``drivers/pci/endpoint/functions/pci-epf-test.c`` takes from the host
unchecked. A model that knows the endpoint's state is needed: DISABLE is harmless behind an ENABLE.
"""

from __future__ import annotations

from rcdrv.epf_test.driver import IrqChoice
from rcdrv.epf_test.registers import NO_BAR, Caps, Command, Reg
from rcdrv.errors import UsageError
from rcdrv.fuzz.device.model import LARGEST_SIZE, Model
from rcdrv.fuzz.device.steps import TRANSFERS, Step, command_of

CLASSES = {
    "disable-without-enable": "DISABLE_DOORBELL where none was enabled: a null pointer is followed",
    "subrange-index": "a BAR number of 0x80000000 and more: it indexes an array, signed",
    "large-size": "a transfer of more than 4 MiB: its allocation warns, panics with panic_on_warn",
    "irq-zero": "IRQ_NUMBER 0 with MSI or MSI-X: what precedes the table is used as an entry",
    "write-db-bar": "DB_BAR overwritten: DISABLE_DOORBELL indexes an array with it",
    "doorbell-bar": "accesses to a BAR that shows the endpoint's interrupt controller",
    "iommu-fault": "a transfer to a bus address that the host refuses: some parts do worse than"
    " to fail it, and DMA has no time-out",
}
"""Every class that ``--destructive`` can name, and what it does."""


def harm_of(step: Step, model: Model) -> str:
    """The class of what ``step`` could do now; empty when it is harmless."""
    # The endpoint itself refuses NO_BAR; anything else it takes for an enabled doorbell.
    free = not model.enabled and model.registers[Reg.DB_BAR] != NO_BAR
    if free and command_of(step) & Command.DISABLE_DOORBELL:
        return "disable-without-enable"
    if step.verb == "db_bar" or (step.verb == "disable" and model.tainted):
        return "write-db-bar"
    if step.verb in ("setup", "clear") and step.bar >= 1 << 31:
        return "subrange-index"
    if step.verb in TRANSFERS and step.size > LARGEST_SIZE:
        return "large-size"
    if step.irq and not step.irq.number and step.irq.choice is not IrqChoice.INTX:
        return "irq-zero"
    if step.verb in TRANSFERS and step.unmapped:
        return "iommu-fault"
    if step.bar == model.doorbell_bar and step.verb in ("peek", "poke"):
        # One that is always exposed is in a reserved BAR, and so never accessed either.
        return "doorbell-bar"
    return ""


def check_sense(step: Step, model: Model) -> None:
    """What is never done, whatever may be harmed.

    :raises UsageError: there is no such thing to do, or now is not the time
    """
    facts = model.facts
    if step.verb in ("peek", "poke") and model.in_window(step):
        if step.bar in facts.reserved:
            raise UsageError(f"{step}: BAR{step.bar} is reserved")
        behind_magic = step.bar == facts.reg_bar and step.offset + step.width // 8 > 4
        if step.verb == "poke" and behind_magic:
            raise UsageError(f"{step}: the test registers are not for poking")
    for verbs, cap in (
        (("enable", "disable", "cycle", "expect"), Caps.DYNAMIC_INBOUND_MAPPING),
        (("setup", "clear"), Caps.SUBRANGE_MAPPING),
    ):
        # What is not announced, an older kernel may not know, or do without saying so.
        if step.verb in verbs and not facts.caps & cap:
            raise UsageError(f"{step}: CAPS does not announce {cap.name}")
    if step.verb in ("ring", "threads") and not model.enabled:
        raise UsageError(f"{step}: no doorbell is enabled")
    if step.verb in ("ring", "threads", "cycle", "expect") and model.tainted:
        raise UsageError(f"{step}: DB_BAR was overwritten, so nobody knows where the doorbell is")
    if step.verb in ("setup", "clear") and step.bar == model.doorbell_bar:
        raise UsageError(f"{step}: BAR{step.bar} holds the doorbell")
    if step.verb == "expect" and step.bar == facts.reg_bar:
        raise UsageError(f"{step}: BAR{step.bar} holds the test registers")
    if step.irq and step.irq.choice not in facts.vectors:
        raise UsageError(f"{step}: this function has no {step.irq.choice.value}")
    if step.verb == "command" and step.type <= 2 and step.value in [int(one) for one in Command]:
        raise UsageError(f"{step}: that is a command")
    if step.verb == "reset" and not facts.can_reset:
        raise UsageError(f"{step}: the function has no reset")
    if step.verb in ("reset", "reopen") and model.swapped and not facts.keeps_state:
        # epf->bar[].submap outlives it, and the first pci_epc_set_bar() behind it is -EINVAL.
        raise UsageError(f"{step}: it would cost the BARs that have a subrange mapping")
    if step.size + step.shift > 64 << 20:
        raise UsageError(f"{step}: no buffer is that large")
