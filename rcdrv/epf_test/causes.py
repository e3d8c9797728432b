"""Causes of pci-epf-test failures, likeliest first for a part, with the dmesg line of each.

Source (Linux 7.3): ``drivers/pci/endpoint/functions/pci-epf-test.c``,
``drivers/pci/endpoint/pci-ep-msi.c`` and ``drivers/pci/controller/dwc/pcie-designware-ep.c``. Lines
that the kernel also prints on success are not listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rcdrv.parts import Part


class Symptom(Enum):
    """Observed failure, finer than a reason where one reason has several groups of causes."""

    REFUSED = "DOORBELL_ENABLE_FAIL, DB_BAR unchanged: pci_epf_alloc_doorbell() failed"
    NOT_MAPPED = "DOORBELL_ENABLE_FAIL, DB_BAR became NO_BAR: allocated, and then not mapped"
    NOT_TAKEN = "COMMAND stays set"
    DMA_FAILED = "a READ or WRITE with USE_DMA failed"
    DMA_COPY_FAILED = "a COPY with USE_DMA failed"
    TRANSFER_FAILED = "a transfer without DMA failed"


@dataclass(frozen=True)
class Cause:
    """Possible cause of a symptom."""

    symptoms: tuple[Symptom, ...]
    text: str
    """The fault, with the fix where it is not obvious."""
    dmesg: str = ""
    """Line in the endpoint's dmesg that confirms the cause; empty if there is none."""
    doorbell: str = ""
    """Likeliest for parts with this kind of doorbell (:attr:`rcdrv.parts.Part.doorbell`)."""
    linkup_notifier: bool = False
    """Only possible on a part with a link-up notifier, and likeliest there; an unknown part may
    have one."""


CAUSES = (
    Cause(
        (Symptom.REFUSED,),
        "it has neither an MSI domain nor an eDMA that can be a doorbell (an HDMA cannot)",
        "Failed to allocate doorbell: -19",
        doorbell="none",
    ),
    Cause(
        (Symptom.REFUSED,),
        "its kernel lacks CONFIG_PCI_ENDPOINT_MSI_DOORBELL (its dmesg says nothing)",
        doorbell="embedded",
    ),
    Cause(
        (Symptom.REFUSED,),
        "another endpoint function is the first one on this controller",
        "Doorbell doesn't support multiple EPF",
    ),
    Cause(
        (Symptom.REFUSED,),
        "its MSI controller gave no interrupt, after which the eDMA is not tried",
        "Failed to allocate MSI",
    ),
    Cause(
        (Symptom.REFUSED,),
        "pci-epf-test was unbound while a doorbell was enabled, which stays allocated until the"
        " endpoint reboots (its dmesg says nothing)",
    ),
    Cause(
        (Symptom.NOT_MAPPED,),
        "an inbound window cannot begin at the doorbell's page, rounded down to the BAR's size:"
        " give the BAR at least the size to which the controller aligns windows",
        "Failed to program IB window",
    ),
    Cause(
        (Symptom.NOT_MAPPED,),
        "no BAR is free behind that of the registers (its dmesg says nothing)",
    ),
    Cause((Symptom.NOT_MAPPED,), "no inbound window is free", "No free inbound window"),
    Cause(
        (Symptom.NOT_MAPPED,),
        "the doorbell's interrupt could not be requested",
        "Failed to request doorbell IRQ",
    ),
    Cause(
        (Symptom.NOT_TAKEN,),
        "pci-epf-test looks for commands only after its controller has reported a link-up: bound"
        " since then, it needs the link to go down and up again",
        linkup_notifier=True,
    ),
    Cause(
        (Symptom.NOT_TAKEN,),
        "pci-epf-test is not bound, or its controller not started (1 in start, in its configfs)",
    ),
    Cause(
        (Symptom.NOT_TAKEN,),
        "its command handler crashed, until a reboot",
        "Unable to handle kernel",
    ),
    Cause((Symptom.NOT_TAKEN,), "it waits for a DMA completion that was lost, until a reboot"),
    Cause(
        (Symptom.DMA_COPY_FAILED,),
        "COPY with DMA needs an engine that copies memory to memory, which the eDMA does not",
        "DMA controller doesn't support MEMCPY",
    ),
    Cause(
        (Symptom.DMA_FAILED, Symptom.DMA_COPY_FAILED),
        "it took another DMA engine than the controller's, which may not reach the link (is"
        " CONFIG_DW_EDMA set?)",
        "Failed to get private DMA rx channel. Falling back to generic one",
    ),
    Cause(
        (Symptom.DMA_FAILED, Symptom.DMA_COPY_FAILED, Symptom.TRANSFER_FAILED),
        "the host's IOMMU refused the access (this host's dmesg names the address)",
    ),
)


def causes(symptom: Symptom, part: Part) -> list[Cause]:
    """Return the causes of ``symptom``, likeliest first for ``part``."""
    known = bool(part.bars) or part.linkup_notifier
    possible = [
        cause
        for cause in CAUSES
        if symptom in cause.symptoms
        and (not cause.linkup_notifier or part.linkup_notifier or not known)
    ]

    def unlikely(cause: Cause) -> bool:
        fits = cause.linkup_notifier and part.linkup_notifier
        return not (fits or (cause.doorbell and cause.doorbell == part.doorbell))

    return sorted(possible, key=unlikely)


def hint(symptom: Symptom, part: Part) -> str:
    """Return all causes in one line, likeliest first, with the dmesg lines that confirm them."""
    said = [
        cause.text + (f' (its dmesg: "{cause.dmesg}")' if cause.dmesg else "")
        for cause in causes(symptom, part)
    ]
    return "on the endpoint, likeliest first: " + "; ".join(said)
