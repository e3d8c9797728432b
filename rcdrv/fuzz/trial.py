"""Run one layout: start its endpoint, run the cases, judge the outcomes."""

from __future__ import annotations

import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from rcdrv.device import CONFIG_REGION, IrqKind
from rcdrv.epf_test import bars
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Reg
from rcdrv.epf_test.suite import Case, cases, run_cases
from rcdrv.epf_test.transfer import Placement
from rcdrv.errors import EndpointError, HostError, RcdrvError, UsageError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct, Hang
from rcdrv.fuzz.finding import Finding
from rcdrv.fuzz.oracle import (
    ANY,
    CONSECUTIVE_TEST,
    DOORBELL_TEST,
    LARGEST_SUBRANGE,
    LIES,
    STAYS_ENABLED,
    TRANSFER_SIZES,
    WHOLE,
    Oracle,
    Outcomes,
    sample,
)
from rcdrv.results.observer import Observer
from rcdrv.results.result import CaseResult, Run
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.config_space import COMMAND, COMMAND_MASTER, COMMAND_MEMORY
from rcdrv.sim.description import Layout
from rcdrv.sim.endpoint import SimEndpoint
from rcdrv.wait import MONOTONIC

TIMEOUT, REAL_TIMEOUT = 0.3, 1.0
"""Driver's time-out in seconds (virtual time, busy host), more than the slowest endpoint needs: the
fault ``slow`` with 200 ms and a tick."""

LONGEST = 120.0
"""Virtual seconds after which a run counts as hung: every case has a few bounded waits."""

MOST_ACCESSES = 30_000
"""Size limit of a BAR on virtual time, where large BARs are sampled."""


@dataclass
class Report:
    outcomes: dict[str, str] = field(default_factory=dict)
    """Outcomes by case; names of the second session end in ``again``."""
    findings: list[Finding] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    """Cases without a single prediction, such as one whose outcome depends on the tick."""

    def find(self, kind: str, what: str, message: str) -> None:
        finding = Finding(kind, what, message)
        if all(found.key != finding.key for found in self.findings):
            self.findings.append(finding)


class Watch(AccessLog):
    """Watch every access and event of an endpoint, and record violations."""

    def __init__(self, oracle: Oracle, report: Report) -> None:
        super().__init__()
        self._oracle = oracle
        self._layout = oracle.layout
        self._report = report
        self._lies = any(name in oracle.faults for name in LIES)
        place = oracle.place()
        # A doorbell beyond the 32 bits of DB_OFFSET is announced wrongly too.
        self._lies = self._lies or (place is not None and place[1] >= 1 << 32)
        self.endpoint: SimEndpoint | None = None
        self.virtual = False
        self.accesses = 0
        self.shows: dict[int, str] = {}
        """Contents that replace BARs' memory."""
        self.command = 0
        """Last value written to config space COMMAND."""

    def access(self, op: str, region: int, offset: int, data: bytes) -> None:
        self.accesses += 1
        if self.virtual and self.accesses > MOST_ACCESSES:
            raise Hang(f"{MOST_ACCESSES} accesses")
        if op == "write" and not self._allowed(region, offset, data):
            name = "config space" if region == CONFIG_REGION else f"BAR{region}"
            state = f" (shows {self.shows[region]})" if region in self.shows else ""
            kind = "config" if region == CONFIG_REGION else "BAR"
            if region == self._layout.register_bar:
                kind = "register"
            elif region in self.shows:
                kind = "doorbell BAR"
            self._report.find(
                "access",
                f"write to {kind}",
                f"{len(data)} bytes written to {name}+{offset:#x}{state}, which is not allowed",
            )

    def _allowed(self, region: int, offset: int, data: bytes) -> bool:
        if region == CONFIG_REGION:
            if offset == COMMAND:
                self.command = int.from_bytes(data, "little")
            # Function.reset() compares the BARs' sizes before and after a reset.
            sizing = offset in range(0x10, 0x28, 4) and len(data) == 4
            return sizing or (offset == COMMAND and len(data) == 2)
        if region == self._layout.register_bar:
            return offset <= Reg.FLAGS and offset % 4 == 0 and len(data) == 4
        if self._is_ring(region, offset, data):
            return True
        return self.shows.get(region) != "registers" and not self._oracle.is_reserved(region)

    def _is_ring(self, region: int, offset: int, data: bytes) -> bool:
        assert self.endpoint is not None
        if len(data) != 4 or not self.endpoint.doorbell_enabled:
            return False
        registers = self.endpoint.controller.window(self._layout.register_bar)
        said = registers.read32(Reg.DB_OFFSET)
        if "offset-changes" in self._oracle.faults:
            said = offset
        return (region, offset) == (registers.read32(Reg.DB_BAR), said)

    def event(self, event: str, **details: object) -> None:
        if event == "inbound":
            bar, shows = details["bar"], details["shows"]
            assert isinstance(bar, int)
            if shows == "memory":
                self.shows.pop(bar, None)
            else:
                self.shows[bar] = str(shows)
        elif event in ("harm", "oops") or (event == "stray" and not self._lies):
            said = " ".join(f"{key}={value}" for key, value in details.items())
            self._report.find("access", event, f"the endpoint met a {event}: {said}")


@lru_cache
def _all_cases(whole: bool) -> tuple[Case, ...]:
    return cases(
        lambda _driver: [Placement(size) for size in TRANSFER_SIZES],
        bars.chunks if whole else sample,
    )


def _sessions(layout: Layout, *, whole: bool) -> Iterator[tuple[bool, tuple[Case, ...]]]:
    """Yield the cases of both sessions; the flag is true for the second."""
    chosen = []
    for case in _all_cases(whole):
        if case.name.fixture == "pci_ep_basic" and str(case.name) != CONSECUTIVE_TEST:
            continue
        if case.name.variant == "dma" and case.name.test == "WRITE_TEST":
            continue  # as READ
        if case.name.test == "BAR_SUBRANGE_TEST" and not whole:
            bar = layout.bars[int(case.name.variant[3:])]
            if bar is not None and WHOLE < bar.size <= LARGEST_SUBRANGE:
                continue  # the endpoint fills all of it
        chosen.append(case)
    yield False, tuple(chosen)
    yield True, tuple(one for one in chosen if str(one.name) in (CONSECUTIVE_TEST, DOORBELL_TEST))


@contextmanager
def _direct(device: Direct) -> Iterator[Function]:
    clock = device.clock
    clock.limit = clock.time + LONGEST
    with Function(device.attach(), clock=clock) as function:
        yield function


@contextmanager
def _served(endpoint: SimEndpoint) -> Iterator[Function]:
    """Serve over a socket pair, from another thread, at the real tick."""
    from rcdrv.vfio_user.client import Client
    from rcdrv.vfio_user.server import Server

    ours, theirs = socket.socketpair()
    server = Server(endpoint)
    thread = threading.Thread(target=server.serve_connected, args=(theirs,))
    thread.start()
    try:
        with Function(Client(ours, "the endpoint", timeout=10.0)) as function:
            yield function
    finally:
        ours.close()
        thread.join(20.0)
        server.close()


def run_layout(layout: Layout, *, real_time: bool = False, whole: bool = False) -> Report:
    """Run the root complex's side against the endpoint of ``layout``, twice.

    :param real_time: over vfio-user, with the endpoint's own tick
    :param whole: test large BARs as a whole
    """
    report = Report()
    oracle = Oracle(layout)
    watch = Watch(oracle, report)
    device = None if real_time else Direct(layout, watch)
    endpoint = device.endpoint if device is not None else SimEndpoint(layout, watch)
    watch.endpoint, watch.virtual = endpoint, device is not None
    try:
        for again, chosen in _sessions(layout, whole=whole):
            opened = _direct(device) if device is not None else _served(endpoint)
            _session(report, oracle, opened, chosen, again)
            _check_rest(report, oracle, watch, device)
    finally:
        endpoint.close()
    return report


def run_elsewhere(layout: Layout, opened: Callable[[], Function]) -> Report:
    """Run as :func:`run_layout`, against an existing endpoint of this layout.

    Its accesses cannot be watched, so only the verdicts are judged.

    :param opened: opens the function; called once for each of the two sessions
    :raises NotPresented: the endpoint does not look like the layout
    :raises HostError: it cannot be opened
    """
    report = Report()
    oracle = Oracle(layout)
    for again, chosen in _sessions(layout, whole=False):
        with opened() as function:
            _check_presented(oracle, function)
            _session(report, oracle, nullcontext(function), chosen, again)
    return report


class NotPresented(HostError):
    """A layout does not reach the driver unchanged: a layer in between rejects it."""


def _check_presented(oracle: Oracle, function: Function) -> None:
    layout = oracle.layout
    found = function.config.vendor_id, function.config.device_id
    if found != (layout.vendor, layout.device):
        raise NotPresented(
            f"{function.address} is {found[0]:04x}:{found[1]:04x},"
            f" not {layout.vendor:04x}:{layout.device:04x}"
        )
    for index, (bar, seen) in enumerate(zip(oracle.bars, function.bars, strict=True)):
        wanted, size = bar.size if bar else 0, seen.size if seen else 0
        if wanted != size:
            raise NotPresented(f"BAR{index} has {size:#x} bytes here, and not {wanted:#x}")
    device = function.device
    for kind, count in (
        (IrqKind.INTX, int(layout.intx_pin > 0)),
        (IrqKind.MSI, layout.msi_capable),
        (IrqKind.MSIX, layout.msix),
    ):
        if device.irq_count(kind) != count:
            raise NotPresented(
                f"{device.irq_count(kind)} {kind.name} vectors are here, and not {count}"
            )


def _session(
    report: Report,
    oracle: Oracle,
    opened: AbstractContextManager[Function],
    chosen: tuple[Case, ...],
    again: bool,
) -> None:
    lost = oracle.unpredictable
    run = Run("fuzz")
    try:
        with opened as function:
            if not again:
                _walk_capabilities(report, oracle, function)
            timeout = REAL_TIMEOUT if function.clock is MONOTONIC else TIMEOUT
            driver = EpfTest(function, reg_bar=oracle.reg_bar, timeout=timeout)
            if driver.reg_bar != oracle.layout.register_bar:
                report.find("verdict", "register BAR", f"took BAR{driver.reg_bar} for registers")
                return
            if driver.irq_name != oracle.irq and not lost:
                report.find("verdict", "irq", f"uses {driver.irq_name} instead of {oracle.irq}")
            run_cases(driver, chosen, run, Observer())
    except Hang as hang:
        report.find("hang", "hang", f"hangs: {hang}, {len(run.results)} cases done")
    except RcdrvError as error:
        if not lost and (oracle.reachable or not isinstance(error, UsageError)):
            report.find("verdict", f"{type(error).__name__}", f"the run ends: {error.message}")
    except Exception as error:
        report.find("crash", *describe_crash(error))
    for case, result in zip(chosen, run.results, strict=False):
        _judge(report, oracle.expect(case, again=again), result, " again" if again else "")


def _judge(report: Report, expected: Outcomes, result: CaseResult, suffix: str) -> None:
    """Compare the outcome of a case with the acceptable ones."""
    name, outcome = f"{result.name}{suffix}", result.outcome
    report.outcomes[name] = outcome
    if len(expected) != 1:
        report.open.add(name)
    if expected is not ANY and outcome not in expected:
        instead = f"{outcome} instead of {' or '.join(sorted(expected))}"
        report.find(
            "verdict",
            f"{result.name.test}{suffix}: {instead}",
            f"{name}: {instead} ({result.message})",
        )


def _walk_capabilities(report: Report, oracle: Oracle, function: Function) -> None:
    broken = next((name for name in ("cap-loop", "rebar-empty") if name in oracle.faults), "")
    try:
        list(function.config.capabilities())
        function.config.msix()
        function.config.resizable_bars()
    except EndpointError as error:
        if not broken:
            report.find("verdict", "capabilities", f"capabilities: {error.message}")
    else:
        if broken:
            report.find("verdict", "capability loop", f"capabilities with {broken} are accepted")


def _check_rest(report: Report, oracle: Oracle, watch: Watch, device: Direct | None) -> None:
    """Check that a closed session released its resources."""
    if device is not None:
        for left in device.left_behind():
            report.find("left", left.lstrip("0123456789 "), left)
    assert watch.endpoint is not None
    gone = any(name in oracle.faults for name in ("all-ones", "vanish"))
    if watch.command & (COMMAND_MEMORY | COMMAND_MASTER) and not gone:
        report.find("left", "COMMAND", f"config COMMAND left at {watch.command:#06x}")
    if any(name in oracle.faults for name in (*STAYS_ENABLED, "silent", "swallow")):
        return
    place = oracle.place()
    if "contradiction" in oracle.faults and place is not None and not oracle.names_bar(place[0]):
        return  # nothing proves that one is enabled, and then DISABLE could do harm
    if watch.endpoint.doorbell_enabled:
        report.find("left", "doorbell", "the doorbell is left enabled")
    for bar, shows in watch.shows.items():
        if shows == "nothing" and oracle.bars[bar] is None:
            continue  # no session took it
        report.find("left", f"BAR shows {shows}", f"BAR{bar} is left showing {shows}")


def describe_crash(error: Exception) -> tuple[str, str]:
    """Return an exception's type with its place in rcdrv, and the same with its message."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "rcdrv" in frame.filename
    ]
    frame = frames[-1] if frames else None
    where = f"{Path(frame.filename).name}:{frame.name}" if frame else "?"
    return f"{type(error).__name__} in {where}", f"{type(error).__name__} in {where}: {error}"
