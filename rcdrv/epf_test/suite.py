"""The 23 cases of the kernel's pci_endpoint kselftest, and their runner.

Names, order and selection follow
``tools/testing/selftests/pci_endpoint/pci_endpoint_test.c`` and its harness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

from rcdrv.epf_test import bars, irqs, transfer
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.bars import Progress, no_progress
from rcdrv.epf_test.block import stale_doorbell
from rcdrv.epf_test.doorbell import LOST_BAR_HINT, Doorbell, free_stale_doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.logged import LoggedErrors
from rcdrv.epf_test.registers import Reg
from rcdrv.epf_test.transfer import Direction, Placements
from rcdrv.errors import DeviceLost, Interrupted, RcdrvError, UsageError, did_you_mean
from rcdrv.results.observer import Observer
from rcdrv.results.result import CaseName, CaseResult, Run
from rcdrv.verdict import NotPassed, Reason, Verdict, classify

Body = Callable[[EpfTest, Progress], str]
"""Run a case: return the detail of a pass, or raise NotPassed."""

MSI_VECTORS, MSIX_VECTORS = 32, 2048

_DOORBELL = "pcie_ep_doorbell"
"""Fixture of the case that handles an earlier run's doorbell itself."""


@dataclass(frozen=True)
class Case:
    name: CaseName
    body: Body
    summary: str
    """What it does; of a case of the second suite, what a pass proves."""
    risk: str = "nothing"
    """Possible effects on a board."""
    needs: str = "nothing"
    """Requirements; the case is skipped without them."""

    def run(self, driver: EpfTest, progress: Progress = no_progress) -> str:
        """Run it, at first with the interrupt kind of the user, else that of CAPS.

        That is PCITEST_IRQ_TYPE_AUTO of the kselftest.
        """
        driver.use_irq(driver.irq_choice)
        return self.body(driver, progress)


def cases(
    placements: Placements = transfer.of_kselftest, stretches: bars.Stretches = bars.sampled
) -> tuple[Case, ...]:
    """Return all cases in the order of the kselftest.

    :param placements: sizes and alignments of the transfers
    :param stretches: parts of a BAR to test; default all of it up to 1 GiB
    """
    found: list[Case] = []

    def add(name: str, body: Body, summary: str) -> None:
        found.append(Case(CaseName.parse(name), body, summary))

    for index in range(6):
        bar = f"BAR{index}"
        test: Body = partial(bars.bar_test, index, stretches=stretches)
        halves: Body = partial(bars.subrange_test, index, stretches=stretches)
        add(f"pci_ep_bar.{bar}.BAR_TEST", test, f"fill {bar} with a pattern and read it back")
        add(f"pci_ep_bar.{bar}.BAR_SUBRANGE_TEST", halves, f"map the halves of {bar} swapped")
    consecutive: Body = partial(bars.consecutive_bar_test, stretches=stretches)
    add("pci_ep_basic.CONSECUTIVE_BAR_TEST", consecutive, "write all BARs, then read them all")
    add("pci_ep_basic.LEGACY_IRQ_TEST", irqs.intx_test, "raise INTx")
    msi: Body = partial(irqs.vector_test, IrqChoice.MSI, MSI_VECTORS)
    msix: Body = partial(irqs.vector_test, IrqChoice.MSIX, MSIX_VECTORS)
    add("pci_ep_basic.MSI_TEST", msi, "raise each MSI vector")
    add("pci_ep_basic.MSIX_TEST", msix, "raise each MSI-X vector")
    for variant, dma in (("memcpy", False), ("dma", True)):
        for direction in Direction:
            add(
                f"pci_ep_data_transfer.{variant}.{direction.value}_TEST",
                partial(transfer.transfer_test, direction, dma, placements),
                f"{direction.value.lower()} by {'the DMA engine' if dma else 'the CPU'}",
            )
    add(f"{_DOORBELL}.DOORBELL_TEST", _doorbell, "ring the doorbell")
    return tuple(found)


DESTRUCTIVE = {
    "iommu-fault": Case(
        CaseName.parse("rcdrv_destructive.IOMMU_FAULT_TEST"),
        transfer.iommu_fault_test,
        "transfers to an address that the IOMMU refuses",
    ),
}
"""Cases that may crash an endpoint or its host; each runs only if selected by name."""


def _doorbell(driver: EpfTest, _progress: Progress) -> str:
    with Doorbell(driver) as doorbell:
        answer = doorbell.acknowledged()
        if driver.stray:
            raise NotPassed(Reason.IRQ_TWICE, f"{driver.stray} interrupts too many for one ring")
    assert doorbell.location is not None
    if doorbell.bar_is_lost():
        raise NotPassed(
            Reason.DISABLE_FAILED,
            f"BAR{doorbell.location.bar} was lost at DISABLE_DOORBELL: it reads all ones",
            hint=LOST_BAR_HINT,
        )
    assert answer.latency_ns is not None
    return f"{doorbell.location}, {answer.latency_ns / 1e3:.1f} us"


# -- selection -----------------------------------------------------------------------------------


def select(
    names: Sequence[str],
    filters: Sequence[tuple[str, str]],
    every: Sequence[Case],
    elsewhere: Mapping[str, Sequence[Case]] | None = None,
) -> tuple[Case, ...]:
    """Return the cases to run.

    :param names: full names, parts of them (``BAR4``, ``DOORBELL_TEST``) or shell patterns
    :param filters: options of the harness as (letter, value) in the given order. The first that
        matches a case decides: lower case includes, upper case excludes
    :param elsewhere: cases missing in ``every``, by the hint that says how to run them
    :raises UsageError: no case is left
    """
    chosen = [case for case in every if _enabled(case.name, filters)]
    if names:
        for pattern in names:
            if not any(_matches(case.name, pattern) for case in every):
                raise UsageError(
                    f"no test is called {pattern!r}", hint=_meant(pattern, every, elsewhere or {})
                )
        chosen = [case for case in chosen if any(_matches(case.name, name) for name in names)]
    if not chosen:
        wanted = [value for letter, value in filters if letter.islower()]
        raise UsageError(
            "no test is left", hint=_meant(wanted[0] if wanted else "", every, elsewhere or {})
        )
    return tuple(chosen)


def _meant(word: str, every: Sequence[Case], elsewhere: Mapping[str, Sequence[Case]]) -> str:
    """Return the hint for a name that matches no test."""
    if not any(_matches(case.name, word) for case in every):
        for hint, cases_there in elsewhere.items():
            if any(_matches(case.name, word) for case in cases_there):
                return hint
    names = [case.name for case in every]
    parts = {part for name in names for part in (name.fixture, name.variant, name.test, str(name))}
    unknown = word not in parts  # otherwise another filter excludes everything
    return (did_you_mean(word, sorted(parts)) if unknown else "") or "rcdrv test -l lists them"


def _matches(name: CaseName, pattern: str) -> bool:
    parts = (str(name), name.fixture, name.variant, name.test)
    return any(fnmatchcase(part, pattern) for part in parts if part)


def _enabled(name: CaseName, filters: Sequence[tuple[str, str]]) -> bool:
    """Apply the filters as test_enabled() in kselftest_harness.h does."""
    for letter, value in filters:
        part = {"f": name.fixture, "v": name.variant, "t": name.test, "r": str(name)}
        if part[letter.lower()] == value:
            return letter.islower()
    return not any(letter.islower() for letter, _ in filters)


def describe(driver: EpfTest) -> str:
    """Return ``Rockchip RK3588, 1d87:3588, registers in BAR0, msi``."""
    config = driver.function.config
    return (
        f"{driver.part.name}, {config.vendor_id:04x}:{config.device_id:04x},"
        f" registers in BAR{driver.reg_bar}, {driver.irq_name}"
    )


# -- running -------------------------------------------------------------------------------------


def run_cases(
    driver: EpfTest,
    chosen: Sequence[Case],
    run: Run,
    observer: Observer,
    *,
    host_errors: Callable[[], Sequence[str]] = tuple,
    reconnect: Callable[[DeviceLost], EpfTest | None] = lambda _lost: None,
) -> Run:
    """Run the cases in order; only a lost device ends the run early.

    :param run: receives each result as soon as it is known, so it is valid after an exception
    :param host_errors: returns the errors that the host has counted since the last call
    :param reconnect: wait until a lost device is back, and return the driver for the rest
    :raises Interrupted: the user asked to stop
    """
    run.planned = tuple(case.name for case in chosen)
    observer.start(run)
    try:
        if any(case.name.fixture != _DOORBELL for case in chosen):
            free_stale_doorbell(driver)
        lost: DeviceLost | None = None
        logged = LoggedErrors(driver.function.config)
        for case in chosen:
            observer.case_started(case.name)
            host_errors()
            driver.distrust()
            driver.function.mark("case", str(case.name))
            begun = driver.function.clock.now()
            if lost is None:
                result, lost = _run_one(driver, case, observer)
            else:
                message = "the device was lost before"
                result = CaseResult(case.name, Verdict.LOST, Reason.DEVICE_LOST, message, lost.hint)
            errors = [f"AER: the endpoint logged {name}" for name in logged.risen()]
            result = replace(
                result,
                diagnostics=(*host_errors(), *errors),
                seconds=driver.function.clock.now() - begun,
            )
            if run.baseline is not None:
                result = run.baseline.judge(result)
            run.results.append(result)
            reason = result.reason.value if result.reason else "-"
            driver.function.mark("verdict", result.verdict.value, reason)
            observer.case_finished(result)
            if result.reason in (Reason.SILENT, Reason.STUCK_COMMAND):
                _unwedge(driver)
                logged.risen()  # not the next case's
            if lost is not None and case is not chosen[-1]:
                again = reconnect(lost)
                if again is not None:
                    driver, lost = again, None
                    logged = LoggedErrors(driver.function.config)
    finally:
        observer.finish(run)
    return run


def _run_one(
    driver: EpfTest, case: Case, observer: Observer
) -> tuple[CaseResult, DeviceLost | None]:
    def progress(done: int, total: int) -> None:
        observer.progress(case.name, done, total, case.summary)

    try:
        return CaseResult(case.name, Verdict.PASS, message=case.run(driver, progress)), None
    except Interrupted:
        raise
    except RcdrvError as error:
        verdict, reason = classify(error)
        hint = "" if verdict is Verdict.SKIP else error.hint
        result = CaseResult(case.name, verdict, reason, error.message, hint)
        return result, error if isinstance(error, DeviceLost) else None


def _unwedge(driver: EpfTest) -> None:
    """Reset a function that no longer takes commands, for the sake of the remaining cases."""
    try:
        stuck = driver.not_taken or driver.read(Reg.COMMAND)
        # With a doorbell enabled a reset could crash it: check_may_reset().
        if stuck and stale_doorbell(driver) is None and driver.function.device.can_reset():
            driver.disarm()
            driver.function.reset()
            # COMMAND survives the reset in the endpoint's memory. Unlike another command, a 0 is
            # harmless to an endpoint that is reading the register at this moment.
            driver.write(Reg.COMMAND, 0)
    except RcdrvError:
        pass  # the next case reports it
