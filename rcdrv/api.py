"""The Python API: open an endpoint, ring, test, read and write.

The endpoint's outcome is data: :meth:`Endpoint.ring` and :meth:`Endpoint.test` return a
:class:`~rcdrv.results.outcome.Result` also for a dead doorbell or a lost device; its ``check()``
raises. A fault of the caller or the host is an exception: :class:`~rcdrv.errors.UsageError`,
:class:`~rcdrv.errors.HostError`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rcdrv.address import open_function
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.block import stale_doorbell
from rcdrv.epf_test.doorbell import Doorbell, Location, free_stale_doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.outcome import worst
from rcdrv.epf_test.registers import Reg
from rcdrv.epf_test.ring import RingPlan, RingReport, RingRun
from rcdrv.errors import DeviceLost, EndpointError, RcdrvError, UsageError
from rcdrv.function import Function
from rcdrv.mmio import Window
from rcdrv.needs import lacks
from rcdrv.outcomes import RingResult, SuiteResult
from rcdrv.results.baseline import load
from rcdrv.results.observer import Observer
from rcdrv.results.result import Baseline, Run
from rcdrv.verdict import NotPassed
from rcdrv.wait import Cancel

if TYPE_CHECKING:
    from rcdrv.epf_test.check import CheckResult, LayerResult
    from rcdrv.epf_test.suite import Case
    from rcdrv.epf_vntb.driver import Vntb

Irq = Literal["auto", "msi", "msix", "intx", "poll"]


def open(
    address: str | None = None,
    *,
    reg_bar: int | None = None,
    irq: Irq = "auto",
    timeout: float = 1.0,
    width: int = 64,
    trace: Callable[[str], None] | None = None,
    cancel: Cancel | None = None,
    vf_token: str | None = None,
    record: str | os.PathLike[str] | None = None,
) -> Endpoint:
    """Open an endpoint; the caller closes it, best with ``with``. Public as ``rcdrv.open``.

    :param address: ``0000:01:00.0``, ``vfio-user:/path/to.sock``, ``sim:PRESET`` or
        ``sim:FILE.toml``; default ``$RCDRV_DEVICE``, else the only endpoint on this host
    :param reg_bar: the BAR with the test registers; default by the part's ID, else by looking
    :param irq: interrupt kind of the endpoint's answers; ``poll`` uses none
    :param timeout: bound of every wait for the endpoint in seconds; a transfer gets that plus its
        size at 1 MB/s
    :param width: bits of the widest accesses when a test writes and reads a BAR: 64, where these
        are seen to arrive, or 32
    :param trace: called with a line for every access to the test registers
    :param cancel: ends every wait when the user asks to stop
    :param vf_token: UUID that the users of a virtual function and of its physical one share
    :param record: keep in this file what passes between driver and device, for ``replay:FILE``
    :raises UsageError: not an address, or no such preset or file
    :raises HostError: the host is not ready; its ``hint`` names the fix
    :raises DeviceLost: the device does not answer
    :raises EndpointError: its config space contradicts itself
    """
    choices = [choice.value for choice in IrqChoice]
    if irq not in choices:
        raise UsageError(f"irq {irq!r} is not one of {', '.join(choices)}")
    if not timeout > 0:
        raise UsageError(f"a timeout of {timeout} s: it has to be above 0")
    if width not in (32, 64):
        raise UsageError(f"a width of {width} bits is neither 32 nor 64")
    function = open_function(address, cancel=cancel, vf_token=vf_token, record=record)
    function.width = width
    return Endpoint(function, reg_bar=reg_bar, irq=irq, timeout=timeout, trace=trace)


DESTRUCTIVE_NAMES = ("bus-master", "iommu-fault", "link", "power", "reset")
"""What ``destructive`` may name; here, so that the 23 cases run without importing the others."""


def case_names() -> tuple[str, ...]:
    """Return the full names of the cases of :meth:`Endpoint.test`, in the kselftest's order."""
    from rcdrv.epf_test.suite import cases

    return tuple(str(case.name) for case in cases())


def all_cases(
    *,
    sizes: Sequence[int] | None = None,
    align: int | None = None,
    boundaries: bool = False,
    whole: bool = False,
    destructive: Sequence[str] = (),
    more: bool = False,
) -> tuple[Case, ...]:
    """Return the cases with these options, which are those of :meth:`Endpoint.test`.

    :raises UsageError: invalid transfers, or no such destructive case
    """
    from rcdrv.epf_test import bars
    from rcdrv.epf_test.suite import cases
    from rcdrv.epf_test.transfer import choose_placements

    for name in destructive:
        if name not in DESTRUCTIVE_NAMES:
            hint = f"one of {', '.join(DESTRUCTIVE_NAMES)}"
            raise UsageError(f"{name!r} is no destructive case", hint=hint)
    placements = choose_placements(sizes, align, boundaries=boundaries)
    suite = cases(placements, bars.chunks if whole else bars.sampled)
    if not more and not destructive:
        return suite
    from rcdrv.epf_test.more import MORE

    by_name = _destructive()
    suite = MORE if more else suite
    return (*suite, *(case for name in dict.fromkeys(destructive) for case in by_name[name]))


def choose_cases(
    every: Sequence[Case], names: Sequence[str] = (), filters: Sequence[tuple[str, str]] = ()
) -> tuple[Case, ...]:
    """Return the cases to run, in their order.

    :param names: full names, parts of them or shell patterns; none: all
    :param filters: options of the kselftest harness as (letter, value); the first match decides
    :raises UsageError: no case is left
    """
    from rcdrv.epf_test.suite import select

    try:
        return select(names, filters, every)
    except UsageError:
        return select(names, filters, every, _elsewhere())  # raises it with the hint


def _elsewhere() -> Mapping[str, Sequence[Case]]:
    """Return the cases of every suite, by the hint that says how to run them."""
    from rcdrv.epf_test.more import MORE
    from rcdrv.epf_test.suite import cases

    return {
        "it is one of the 23 cases, which run without `more`": cases(),
        "it is a case of the second suite: `more`": MORE,
        **{f"it runs with `destructive={name}` only": one for name, one in _destructive().items()},
    }


def _destructive() -> dict[str, Sequence[Case]]:
    """Return the cases of each destructive name."""
    from rcdrv.epf_test.more import DESTRUCTIVE_MORE
    from rcdrv.epf_test.suite import DESTRUCTIVE

    return {**{name: (case,) for name, case in DESTRUCTIVE.items()}, **DESTRUCTIVE_MORE}


class Endpoint:
    """One open endpoint; made by ``rcdrv.open``.

    No register is read before the first method that needs one, so any other function can be
    opened and examined too.
    """

    def __init__(
        self,
        function: Function,
        *,
        reg_bar: int | None = None,
        irq: Irq = "auto",
        timeout: float = 1.0,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.function = function
        """The function underneath: config space, BARs, interrupts, DMA."""
        self.address = function.address
        """Address as given, or the full PCI address."""
        self._reg_bar = reg_bar
        self._irq = IrqChoice(irq)
        self._timeout = timeout
        self._trace = trace
        self._driver: EpfTest | None = None
        self._vntb: Vntb | None = None

    # -- identity -----------------------------------------------------------------------------

    @property
    def driver(self) -> EpfTest:
        """Driver of pci-epf-test, for what the methods here do not cover.

        :raises UsageError: the function has no such register BAR
        :raises NotPassed: ``no-vectors``: it has no interrupt of the kind asked for
        """
        if self._driver is None:
            self._driver = EpfTest(
                self.function,
                reg_bar=self._reg_bar,
                irq=self._irq,
                timeout=self._timeout,
                trace=self._trace,
            )
        return self._driver

    @property
    def vntb(self) -> Vntb:
        """Driver of pci-epf-vntb, with the BARs of the part's ID; closed with this.

        :raises UsageError: not the ID of a known vNTB, or a BAR is missing
        :raises NotPassed: ``bad-control``: there is no control block of a vNTB
        """
        if self._vntb is None:
            from rcdrv.epf_vntb.driver import Vntb
            from rcdrv.epf_vntb.registers import choose_map

            config = self.function.config
            bars = choose_map(config.vendor_id, config.device_id)
            self._vntb = Vntb(self.function, bars, timeout=self._timeout, trace=self._trace)
        return self._vntb

    def info(self) -> dict[str, Any]:
        """Return the document of ``rcdrv info --json``: IDs, BARs, capabilities, interrupts.

        Touches no BAR.
        """
        from rcdrv.describe import describe

        return describe(self.function)

    def registers(self) -> dict[str, int]:
        """Read each test register once; return them by name (``STATUS``, ``CAPS``, ...)."""
        return {register.name: self.driver.read(register) for register in Reg}

    def lacks(self, capability: str) -> str | None:
        """Return why a capability is missing, or None if it is there.

        :param capability: a key of :data:`rcdrv.CAPABILITIES`
        :raises UsageError: not a key of it
        """
        return lacks(self.address, self.function, capability, lambda: self.driver)

    # -- memory ---------------------------------------------------------------------------------

    def bar(self, index: int) -> Window:
        """Return the memory of a BAR, for many accesses and for bulk ones.

        :raises UsageError: no such BAR, or an I/O BAR
        """
        return self.function.bar(index)

    def peek(self, bar: int, offset: int, width: int = 32) -> int:
        """Read ``width`` bits (8, 16, 32 or 64), little endian, ``offset`` bytes into a BAR.

        :raises UsageError: no such place, or not aligned to the width
        :raises DeviceLost: the device is gone
        """
        self.function.check()
        return self.function.bar(bar).read(width, offset)

    def poke(self, bar: int, offset: int, value: int, width: int = 32) -> None:
        """Write ``width`` bits. ``value`` is unsigned and has to fit. See :meth:`peek`."""
        self.function.check()
        self.function.bar(bar).write(width, offset, value)
        if self._driver is not None and bar == self._driver.reg_bar:
            self._driver.forget()

    # -- the doorbell ---------------------------------------------------------------------------

    def ring(
        self,
        count: int = 1,
        *,
        bar: int | None = None,
        cycles: int = 1,
        interval: float = 0.0,
        wait: bool = True,
        force: bool = False,
        at: Location | None = None,
    ) -> RingResult:
        """Enable the doorbell, ring it, await each acknowledgement, and disable it.

        :param count: rings in a cycle
        :param bar: required BAR of the doorbell; default: the one that the endpoint announces
        :param cycles: number of enable, ring and disable cycles
        :param interval: seconds between rings
        :param wait: wait for acknowledgements; without, the verdict is ``unverified``
        :param force: try although CAPS does not announce doorbells (kernels 6.17 to 6.19)
        :param at: ring here instead of at the announced place
        :raises UsageError: invalid arguments
        :raises HostError: the host lacks a resource
        """
        if count < 1 or cycles < 1 or interval < 0:
            raise UsageError(
                f"{count} rings in {cycles} cycles, every {interval} s: there is nothing to do"
            )
        report = RingReport()
        error: RcdrvError | None = None
        plan = RingPlan(bar, count, cycles, interval, wait, force, at)
        try:
            RingRun(self.driver, plan, report).run()
        except (NotPassed, EndpointError, DeviceLost) as found:
            error = found
        return RingResult(self.address, report, worst(report, error))

    def doorbell(self, *, bar: int | None = None, force: bool = False) -> Doorbell:
        """Return the doorbell: enabled when ``with`` begins, disabled when it ends.

        Entering raises :class:`~rcdrv.verdict.NotPassed` where :meth:`ring` would have a verdict.
        """
        return Doorbell(self.driver, expect_bar=bar, force=force)

    def disable_doorbell(self) -> bool:
        """Disable a doorbell left enabled here or by an earlier run, as far as the endpoint allows.

        :returns: whether none is enabled now
        :raises DeviceLost: the device is gone
        """
        self.driver.doorbell_held = False  # one that was never left is like that of an earlier run
        free_stale_doorbell(self.driver)
        return stale_doorbell(self.driver) is None

    # -- the kselftest --------------------------------------------------------------------------

    def test(
        self,
        *names: str,
        sizes: Sequence[int] | None = None,
        align: int | None = None,
        boundaries: bool = False,
        whole: bool = False,
        destructive: Sequence[str] = (),
        more: bool = False,
        baseline: str | None = None,
        observer: Observer | None = None,
    ) -> SuiteResult:
        """Run cases of the kernel's pci_endpoint kselftest.

        :param names: full names, parts of them (``BAR4``, ``DOORBELL_TEST``) or shell patterns;
            none: all of :func:`case_names`
        :param sizes: bytes that the transfers move, each 1 to 4 MiB
        :param align: put their buffers at multiples of this power of two, and of no larger one
        :param boundaries: transfers around every 4 KiB boundary instead
        :param whole: test all of a BAR above 1 GiB too
        :param destructive: cases that may upset the endpoint or this host: ``iommu-fault``,
            ``bus-master``, ``link``, ``power``, ``reset``
        :param more: the second suite instead of the kselftest's cases
        :param baseline: a file that ``rcdrv test --json`` printed, or a board with known limits
            (``rk3588``): a case failed only if it is worse than there
        :param observer: called for each case
        :raises UsageError: no such cases, or invalid transfers
        :raises HostError: the host lacks what the run needs
        :raises NotPassed: ``no-vectors``: the function lacks the interrupt asked for
        """
        every = all_cases(
            sizes=sizes,
            align=align,
            boundaries=boundaries,
            whole=whole,
            destructive=destructive,
            more=more,
        )
        earlier = None if baseline is None else load(baseline, self.function.cancel)
        return self.run(choose_cases(every, names), baseline=earlier, observer=observer)

    def run(
        self,
        chosen: Sequence[Case],
        *,
        baseline: Baseline | None = None,
        observer: Observer | None = None,
        reconnect: Callable[[DeviceLost], Endpoint | None] = lambda _lost: None,
    ) -> SuiteResult:
        """Run the cases that :func:`choose_cases` returned, one after the other.

        :param baseline: earlier run; a case failed only if it is worse than there
        :param observer: called for each case
        :param reconnect: waits for a lost device and returns it open again, or None to give up
        :raises HostError: the host lacks what the run needs
        :raises NotPassed: ``no-vectors``: the function lacks the interrupt asked for
        """
        from rcdrv.epf_test.suite import describe, run_cases
        from rcdrv.host.aer import ErrorCounters

        def driver_again(lost: DeviceLost) -> EpfTest | None:
            again = reconnect(lost)
            return None if again is None else again.driver

        driver = self.driver
        run = Run(self.address, describe(driver), baseline=baseline)
        # A device that is lost before the first case leaves every planned case not run.
        lost: DeviceLost | None = None
        try:
            run_cases(
                driver,
                chosen,
                run,
                Observer() if observer is None else observer,
                host_errors=ErrorCounters(self.address).risen,
                reconnect=driver_again,
            )
        except DeviceLost as error:
            lost = error
        return SuiteResult(run, lost)

    def check(
        self,
        *,
        destructive: bool = False,
        done: Callable[[LayerResult], None] = lambda _result: None,
    ) -> CheckResult:
        """Check layer by layer, from the link to the doorbell, up to the first that is broken.

        :param destructive: also reset the function, which may lose what the endpoint has set up
        :param done: called with the result of each layer
        :raises UsageError: the function is no pci-epf-test
        :raises NotPassed: ``no-vectors``: it has no interrupt of the caller's choice
        :raises Departed: the function is a recording of something else
        """
        from rcdrv.epf_test.check import check_endpoint

        return check_endpoint(self.function, lambda: self.driver, reset=destructive, done=done)

    def close(self) -> None:
        """Release interrupts, DMA buffers, mappings and COMMAND. Closing twice is harmless."""
        vntb, self._vntb = self._vntb, None
        try:
            if vntb is not None:
                with self.function.cancel.deferred():
                    vntb.close()
        finally:
            self.function.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        # The first error is the one to report.
        with contextlib.suppress(*([RcdrvError] if exc is not None else [])):
            self.close()

    def __repr__(self) -> str:
        return f"<rcdrv.Endpoint {self.address}>"
