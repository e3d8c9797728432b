"""A reset of the function: what it had before, it has and can afterwards."""

from __future__ import annotations

from collections.abc import Callable

from rcdrv.epf_test.bars import bar_test
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.epf_test.driver import EpfTest, IrqChoice
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.irqs import raise_vector
from rcdrv.epf_test.more.case import Progress, case, skip
from rcdrv.epf_test.registers import Command, Reg
from rcdrv.epf_test.transfer import Direction, Placement, transfer_test
from rcdrv.errors import EndpointError
from rcdrv.pci import ConfigSpace
from rcdrv.verdict import NotPassed, Reason, Verdict

_BACK = 5.0
"""Seconds until an endpoint whose link was down has to take commands."""


def _fields(config: ConfigSpace) -> dict[str, object]:
    """What a reset must not change, by name."""
    window = config.window
    found: dict[str, object] = {
        f"BAR{index}'s register": window.read32(0x10 + 4 * index) for index in range(6)
    }
    found["COMMAND"] = config.command
    capabilities: dict[str, Callable[[], object]] = {
        "MSI": config.msi,
        "MSI-X": config.msix,
        "the PCI Express capability, with speed and width": config.express,
        "Resizable BAR": config.resizable_bars,
        "the capability list": lambda: [(cap.offset, cap.id) for cap in config.capabilities()],
    }
    for name, read in capabilities.items():
        try:
            found[name] = read()
        except EndpointError as error:  # CAPABILITIES_TEST judges it
            found[name] = error.message
    return found


def reset(driver: EpfTest, progress: Progress) -> str:
    """Reset, compare config space, then write the BARs, interrupt, transfer and ring.

    What kind of reset it is the kernel chooses (VFIO_DEVICE_RESET): FLR, else the bus.

    :raises NotPassed: ``lost-by-reset``, with what was lost
    """
    function = driver.function
    if not function.device.can_reset():
        raise skip(Reason.HOST, "the function has no reset")
    # What did not work before is for other cases to judge.
    every = _checks(driver, progress)
    checks = [entry for entry in every if _fails(entry[1]) is None]
    before = _fields(function.config)
    driver.disarm()
    begun = function.clock.now()
    function.reset()
    took = function.clock.now() - begun
    after = _fields(function.config)
    lost = [name for name in before if before[name] != after[name]]
    if lost:
        raise _lost(f"config space differs in {', '.join(lost)}", "rcdrv rescan sets it up again")
    driver.write(Reg.COMMAND, 0)
    for name, check in checks:
        why = _fails(check)
        if why is not None:
            raise _lost(f"{name}: {why.message}", why.hint)
    return f"all is there after a reset of {took * 1e3:.0f} ms"


def _checks(driver: EpfTest, progress: Progress) -> list[tuple[str, Callable[[], object]]]:
    checks: list[tuple[str, Callable[[], object]]] = [
        (f"BAR{bar.index}", _bar(driver, bar.index, progress))
        for bar in driver.function.bars
        if bar is not None
    ]
    checks += [
        ("commands", lambda: _command(driver)),
        ("interrupts", lambda: _interrupt(driver)),
        (
            "transfers",
            lambda: transfer_test(Direction.READ, False, lambda _: [Placement(1024)], driver),
        ),
        ("the doorbell", lambda: _ring(driver)),
    ]
    return checks


def _fails(check: Callable[[], object]) -> NotPassed | None:
    try:
        check()
    except NotPassed as error:
        return None if error.verdict is Verdict.SKIP else error
    return None


def _lost(message: str, hint: str) -> NotPassed:
    return NotPassed(Reason.LOST_BY_RESET, f"after the reset: {message}", hint=hint)


def _bar(driver: EpfTest, index: int, progress: Progress) -> Callable[[], object]:
    return lambda: bar_test(index, driver, progress)


def _command(driver: EpfTest) -> None:
    answer = driver.command(Command.RAISE_MSI_IRQ, timeout=max(_BACK, driver.timeout))
    if not answer.answered:
        raise explain(driver, answer, "RAISE_MSI_IRQ")


def _interrupt(driver: EpfTest) -> None:
    choice = IrqChoice(driver.irq_name)
    if choice in (IrqChoice.MSI, IrqChoice.MSIX):
        raise_vector(driver, choice, 0)


def _ring(driver: EpfTest) -> None:
    with Doorbell(driver) as doorbell:
        failure = doorbell.judge(doorbell.ring())
        if failure is not None:
            raise failure
        doorbell.settle()


CASE = case(
    "destructive",
    "RESET",
    reset,
    "config space, BARs, interrupts, transfers and the doorbell outlive a reset",
    risk="resets the function: many endpoints lose their set-up and have to be restarted",
    needs="a reset that the kernel offers",
)
