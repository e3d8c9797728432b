"""Bring-up check: test the layers in order and stop at the first broken one.

Each layer depends on those before it, so the first broken layer is the one to fix. The layers run
the harmless cases of :mod:`rcdrv.epf_test.suite`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rcdrv import pci
from rcdrv.describe import describe, missing_bars
from rcdrv.device import IrqKind
from rcdrv.epf_test import bars, irqs
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.doorbell import check_may_reset, free_stale_doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Caps, Reg, decode
from rcdrv.epf_test.suite import Case, cases, select
from rcdrv.errors import (
    Departed,
    DeviceLost,
    EndpointError,
    Interrupted,
    RcdrvError,
    UsageError,
)
from rcdrv.function import Function, lost_by_reset
from rcdrv.parts import Part, part_of
from rcdrv.results.outcome import Result
from rcdrv.verdict import NotPassed, Reason, Verdict, classify, skip, verdict_document

MSI_VECTORS = 32
"""Vectors raised of each kind: all of MSI. ``rcdrv test`` raises all of MSI-X."""


class Side(str, Enum):
    """Side of the link to examine."""

    ENDPOINT = "endpoint"
    ROOT_COMPLEX = "root complex"
    EITHER = "either side"


_SIDES = {
    Reason.IRQ_LOST: Side.EITHER,
    Reason.TRANSFER_FAILED: Side.EITHER,
    Reason.DEVICE_LOST: Side.EITHER,
    Reason.HOST: Side.ROOT_COMPLEX,
}
"""All other reasons point to the endpoint."""


class Layer(str, Enum):
    """Layers in bring-up order; each depends on those before it."""

    LINK = "link"
    CONFIG = "config space"
    BARS = "BARs"
    COMMANDS = "commands"
    INTERRUPTS = "interrupts"
    TRANSFERS = "transfers"
    DOORBELL = "doorbell"
    RESET = "reset"


# Hints for failures that have none of their own.
_LOOK = {
    Layer.LINK: "is the endpoint on, its controller started, and the link up (rcdrv doctor)?",
    Layer.CONFIG: "on the endpoint: what does its controller driver write into config space?",
    Layer.BARS: "on the endpoint: are the inbound mappings of the BARs right?",
    Layer.COMMANDS: "on the endpoint: is pci-epf-test bound and started, what does dmesg say?",
    Layer.INTERRUPTS: "on the endpoint: does the controller raise this interrupt? On this host: is"
    " interrupt remapping on, and what does dmesg say of the IOMMU?",
    Layer.TRANSFERS: "on the endpoint: is the outbound window right? On this host: does dmesg name"
    " a fault of the IOMMU?",
    Layer.DOORBELL: "on the endpoint: what does dmesg say of the doorbell?",
    Layer.RESET: "on the endpoint: its controller driver has to set up again what a reset clears",
}


@dataclass(frozen=True)
class LayerResult:
    layer: Layer
    verdict: Verdict
    """SKIP if the endpoint lacks the feature, or the caller did not ask for the layer."""
    detail: str = ""
    notes: tuple[str, ...] = ()
    """Observations that are no failure."""
    error: RcdrvError | None = None
    """The failure; None if the layer is not broken."""
    noticed: Layer | None = None
    """The later layer that was tried when the link was lost; None if it was not lost later."""

    @property
    def message(self) -> str:
        return self.detail if self.error is None else self.error.message


class CheckResult(Result):
    """Outcome of a bring-up check. It passed if no layer is broken; a skip is no failure."""

    def __init__(self, device: str, description: str, layers: Sequence[LayerResult]) -> None:
        self._device, self._description = device, description
        self.layers = tuple(layers)
        """The layers up to the broken one."""
        self.broken = next((one for one in layers if one.error is not None), None)
        """The first broken layer, where the check ends; None if there is none."""
        super().__init__(None if self.broken is None else self.broken.error)
        self.side = _side(self.broken)
        """Side of the link to examine; None if nothing is broken."""
        if self.broken is not None:
            self.hint = self.hint or _LOOK[self.broken.layer]

    @property
    def picture(self) -> str:
        """How far the path works, in one line: ``RC == link == config space =X= BARs .. EP``."""
        text, good = "RC", True
        states = {one.layer: one for one in self.layers}
        for layer in Layer:
            one = states.get(layer)
            if one is not None and one.error is not None:
                text, good = f"{text} =X= {layer.value}", False
            elif one is not None and one.verdict is Verdict.SKIP:
                text += f" {'==' if good else '..'} ({layer.value})"
            else:
                text += f" {'==' if good else '..'} {layer.value}"
        return f"{text} {'==' if good else '..'} EP"

    def document(self) -> dict[str, Any]:
        """Return the JSON document. Its keys are stable; new ones may be added.

        ``layers``
            In order: ``name``, ``verdict`` (null if not reached), ``message``, ``notes``.
        ``broken``, ``side``
            The first broken layer, and ``endpoint``, ``root complex`` or ``either side``; null if
            none is broken.
        ``verdict``, ``reason``, ``message``, ``hint``
            See :mod:`rcdrv.verdict`; ``reason`` is null on a pass.
        """
        states = {one.layer: one for one in self.layers}
        return {
            "device": self._device,
            "description": self._description,
            "layers": [
                {
                    "name": layer.value,
                    "verdict": one.verdict.value if (one := states.get(layer)) else None,
                    "message": one.message if one else "",
                    "notes": _notes(one) if one else [],
                }
                for layer in Layer
            ],
            "broken": None if self.broken is None else self.broken.layer.value,
            "side": None if self.side is None else self.side.value,
            **verdict_document(self._finding),
            "hint": self.hint,
        }


def _side(broken: LayerResult | None) -> Side | None:
    if broken is None:
        return None
    _, reason = classify(broken.error)
    if reason is Reason.IRQ_LOST and broken.detail:
        return Side.ENDPOINT  # another kind of interrupt arrived at this host
    return Side.ENDPOINT if reason is None else _SIDES.get(reason, Side.ENDPOINT)


def _notes(one: LayerResult) -> list[str]:
    lost = [f"it was lost while this was tried: {one.noticed.value}"] if one.noticed else []
    return [*one.notes, *lost]


def check_endpoint(
    function: Function,
    make_driver: Callable[[], EpfTest],
    *,
    reset: bool,
    done: Callable[[LayerResult], None] = lambda _result: None,
) -> CheckResult:
    """Check the layers in order, and stop after the first broken one.

    :param make_driver: called at the layer of the BARs, as it reads the test registers
    :param reset: also reset the function, which may destroy the endpoint's set-up
    :param done: called with each result as soon as it is known
    :raises UsageError: the function is no pci-epf-test
    :raises NotPassed: ``no-vectors``: the function has no interrupt of the caller's choice
    :raises Departed: the function is a recording of something else
    :raises Interrupted: the user asked to stop
    """
    config = function.config
    part = part_of(config.vendor_id, config.device_id)
    description = f"{part.name}, {config.vendor_id:04x}:{config.device_id:04x}"
    run = _Run(function, make_driver, part, description, reset)
    layers: list[LayerResult] = []
    for layer in Layer:
        function.mark("case", layer.value)
        result = run.layer(layer)
        if result.noticed is not None:  # the link's pass does not hold any more
            layers = [one for one in layers if one.layer is not result.layer]
        layers.append(result)
        _, reason = classify(result.error)
        function.mark("verdict", result.verdict.value, reason.value if reason else "-")
        done(result)
        if result.error is not None:
            break
    return CheckResult(function.address, description, layers)


def unopened(address: str, error: RcdrvError) -> CheckResult:
    """Return the check of a function that failed to open because of the endpoint."""
    layer = Layer.LINK if isinstance(error, DeviceLost) else Layer.CONFIG
    before = [] if layer is Layer.LINK else [LayerResult(Layer.LINK, Verdict.PASS)]
    broken = LayerResult(layer, classify(error)[0], error=error)
    return CheckResult(address, "", [*before, broken])


@dataclass
class _Run:
    function: Function
    make_driver: Callable[[], EpfTest]
    part: Part
    description: str
    reset_too: bool
    notes: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    """Steps of the current layer that passed."""
    driven: bool = False
    """Whether the driver is made, which the layers after the BARs use."""

    def layer(self, layer: Layer) -> LayerResult:
        self.notes, self.passed = [], []
        probe = {
            Layer.LINK: self._link,
            Layer.CONFIG: self._config,
            Layer.BARS: self._bars,
            Layer.COMMANDS: self._commands,
            Layer.INTERRUPTS: self._interrupts,
            Layer.TRANSFERS: self._transfers,
            Layer.DOORBELL: self._doorbell,
            Layer.RESET: self._reset,
        }[layer]
        error: RcdrvError | None = None
        try:
            probe()
        except (Departed, Interrupted, UsageError):
            raise
        except RcdrvError as found:
            error = found
        detail, notes = ", ".join(self.passed), tuple(self.notes)
        verdict, _ = classify(error)
        if error is not None and verdict is Verdict.SKIP:
            if layer is Layer.BARS and not self.driven:
                raise error
            return LayerResult(layer, verdict, error.message, notes)
        if isinstance(error, DeviceLost):
            # All layers depend on the link, so a loss is the link's failure wherever it is noticed.
            noticed = None if layer is Layer.LINK else layer
            return LayerResult(Layer.LINK, verdict, "", notes, error, noticed)
        return LayerResult(layer, verdict, detail, notes, error)

    # -- the layers ---------------------------------------------------------------------------

    def _link(self) -> None:
        self.function.check_alive()
        express = None
        with suppress(EndpointError):  # the next layer reports it
            express = self.function.config.express()
        if express is None or not express.speed:
            self.passed.append("config space answers")
            return
        self.passed.append(str(express))
        if str(express) != express.most:
            self.notes.append(f"the endpoint can do {express.most}")

    def _config(self) -> None:
        found = describe(self.function)
        vectors = [f"{count} {kind}" for kind, count in found["interrupts"].items() if count]
        self.passed.append(self.description)
        self.passed.append(f"{len(found['capabilities'])} capabilities")
        self.passed += [one for one in vectors if one.split()[1] in ("intx", "msi", "msix")]
        msix = self.function.config.msix()
        if msix is not None and self.part.misplaces(msix.place):
            self.notes.append(self.part.msix_note(msix.place))
        if self.part.broken_ats and self.function.config.find(pci.ExtCapId.ATS):
            self.notes.append(self.part.ats_note)

    def _bars(self) -> None:
        function, part = self.function, self.part
        missing = missing_bars(function.config.class_code, part, function.bars)
        if missing:
            raise NotPassed(
                Reason.BAR_DISABLED,
                f"{part.name} has {part.bar_text(missing[0])}, this endpoint does not",
                hint=f'does the endpoint\'s dmesg say "Failed to set BAR{missing[0]}"?',
            )
        self._driver = self.make_driver()
        self.driven = True
        free_stale_doorbell(self._driver)
        tested = bars.consecutive_bar_test(self._driver, stretches=bars.outline)
        self.passed.append(tested.replace(" ", ", "))
        self.passed.append(f"registers in BAR{self._driver.reg_bar}")

    def _commands(self) -> None:
        # Polling tells an endpoint that does not answer from a lost interrupt.
        self._driver.use_irq(IrqChoice.POLL)
        irqs.raise_vector(self._driver, IrqChoice.POLL, 0)
        caps = decode(Reg.CAPS, int(self._driver.caps)) or "none announced"
        self.passed.append(f"answered; CAPS {caps}")

    def _interrupts(self) -> None:
        kinds = list(self._kinds())
        if not kinds:
            raise skip(
                Reason.NO_VECTORS,
                "the function has no interrupt that the endpoint announces",
            )
        self._await_late(kinds)
        for choice in kinds:
            count = self.function.device.irq_count(IrqKind[choice.name])
            if choice is IrqChoice.INTX:
                irqs.intx_test(self._driver)
            else:
                irqs.vector_test(choice, self._armable(choice, count), self._driver)
            self.passed.append(choice.value)

    def _await_late(self, kinds: Sequence[IrqChoice]) -> None:
        """Let the interrupt of a polled command arrive.

        pci_epf_test_raise_irq() sets STATUS before it raises MSI, so it may come once vectors are
        armed. It has come when that of the next command has.
        """
        if IrqChoice.MSI in kinds[:1]:
            self._armable(IrqChoice.MSI, 1)
            self._driver.command(irqs.COMMANDS[IrqChoice.MSI])

    def _kinds(self) -> Iterator[IrqChoice]:
        """Yield the caller's choice; else what CAPS announces, or MSI if it announces none."""
        driver = self._driver
        if driver.irq_choice is not IrqChoice.AUTO:
            yield from () if driver.irq_choice is IrqChoice.POLL else (driver.irq_choice,)
            return
        silent = not driver.announces(Caps.INTX | Caps.MSI | Caps.MSIX)
        for choice in (IrqChoice.MSI, IrqChoice.MSIX, IrqChoice.INTX):
            said = driver.announces(Caps[choice.name]) or (silent and choice is IrqChoice.MSI)
            if said and self.function.device.irq_count(IrqKind[choice.name]):
                yield choice

    def _armable(self, choice: IrqChoice, count: int) -> int:
        self._driver.use_irq(choice)
        return self._driver.arm(min(count, MSI_VECTORS))

    def _transfers(self) -> None:
        for case in _named("pci_ep_data_transfer.memcpy.*"):
            case.run(self._driver)
            self.passed.append(case.name.test.removesuffix("_TEST"))
        self.notes.append("the endpoint's DMA engine was not tried: rcdrv test -v dma does")

    def _doorbell(self) -> None:
        (case,) = _named("pcie_ep_doorbell.DOORBELL_TEST")
        try:
            self.passed.append(case.run(self._driver))
        except NotPassed as error:
            if error.reason is Reason.ENABLE_FAILED and self.part.doorbell == "none":
                message = f"{self.part.name} has no doorbell: {error.message}"
                raise skip(error.reason, message) from error
            raise

    def _reset(self) -> None:
        function, driver = self.function, self._driver
        if not self.reset_too:
            raise skip(
                Reason.NOT_VERIFIED,
                "not asked for: it may lose what the endpoint has set up (`destructive`)",
            )
        if not function.device.can_reset():
            raise skip(Reason.NOT_VERIFIED, "the function has no reset of its own")
        check_may_reset(driver)
        driver.disarm()
        function.reset()
        # Commands must still be answered, and their interrupts must still arrive.
        driver.use_irq(IrqChoice.POLL)
        irqs.raise_vector(driver, IrqChoice.POLL, 0)
        kinds = list(self._kinds())
        self._await_late(kinds)
        for choice in kinds:
            try:
                driver.use_irq(choice)
                irqs.raise_vector(driver, choice, 0)
            except NotPassed as error:
                raise lost_by_reset(function.address, [choice.value.upper()]) from error
        self.passed.append("all as before")


def _named(pattern: str) -> Sequence[Case]:
    return select((pattern,), (), cases())
