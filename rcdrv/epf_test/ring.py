"""Ring a doorbell, once or a million times, and report the outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rcdrv.epf_test.doorbell import LOST_BAR_HINT, Doorbell, Location
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.probe import find_registers
from rcdrv.epf_test.registers import Status
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.mmio import barrier
from rcdrv.record import fresh, mutable_record, record
from rcdrv.verdict import NotPassed, Reason, Verdict
from rcdrv.wait import Deadline

# Rings between checks for cancellation, each of which costs more than a write. Waits check too.
_CHECK_EVERY = 64


class Ring:
    """One ring and its outcome."""

    # Not a record: creating one takes longer than the ring's write, and there may be millions.
    __slots__ = ("acknowledged", "failure", "latency_ns", "number", "status", "vector")

    def __init__(
        self,
        number: int,
        acknowledged: bool | None = None,
        latency_ns: int | None = None,
        status: Status | None = None,
        vector: int | None = None,
        failure: NotPassed | None = None,
    ) -> None:
        self.number = number
        """From 1, counted over all cycles."""
        self.acknowledged = acknowledged
        """None if it was not awaited."""
        self.latency_ns = latency_ns
        """Time from the write to the acknowledgement."""
        self.status = status
        self.vector = vector
        """The vector that fired, from 0; None when polling."""
        self.failure = failure


@mutable_record
class RingReport:
    """Outcome of a run of rings; also valid after the run raised an exception."""

    location: Location | None = None
    """Location that was rung."""
    said: Location | None = None
    """Location that the endpoint reported."""
    irq: str = "none"
    rings: list[Ring] = fresh(factory=list)
    """Every ring if :attr:`keep`; else only failed ones, at most 100."""
    keep: bool = True
    count: int = 0
    """Rings so far."""
    failed: int = 0
    unwatched: bool = False
    """The acknowledgement of the last ring was not awaited."""
    acknowledged: int = 0
    total_ns: int = 0
    """Sum of the latencies of acknowledged rings; the next two are their extremes."""
    shortest_ns: int = 0
    longest_ns: int = 0
    stray: int = 0
    """Interrupts in excess of one per ring or command."""
    left_enabled: bool = False
    """The endpoint may still have its doorbell enabled."""

    def note(self, ring: Ring) -> None:
        self.count += 1
        self.failed += ring.failure is not None
        self.unwatched = ring.acknowledged is None
        if ring.acknowledged and ring.latency_ns is not None:
            latency = ring.latency_ns
            self.shortest_ns = min(self.shortest_ns, latency) if self.acknowledged else latency
            self.longest_ns = max(self.longest_ns, latency)
            self.acknowledged += 1
            self.total_ns += latency
        if self.keep or (ring.failure is not None and len(self.rings) < 100):
            self.rings.append(ring)

    def failure(self) -> NotPassed | None:
        """Return the finding for the run: the first failure with the number of failed rings."""
        for ring in self.rings:
            if ring.failure is None:
                continue
            if self.count == 1:
                return ring.failure
            return NotPassed(
                ring.failure.reason,
                f"{self.failed} of {self.count} rings failed, first ring {ring.number}:"
                f" {ring.failure.message}",
                hint=ring.failure.hint,
            )
        if self.stray:
            return NotPassed(
                Reason.IRQ_TWICE,
                f"{self.stray} more interrupt{'s' if self.stray > 1 else ''} than"
                f" {'rings' if self.count > 1 else 'the one for the ring'}",
                hint="is the endpoint's doorbell interrupt acknowledged before it is raised again?",
            )
        if self.count and self.unwatched:
            return NotPassed(
                Reason.NOT_VERIFIED,
                "written; the acknowledgement was not awaited",
                verdict=Verdict.UNVERIFIED,
            )
        return None


@record
class RingPlan:
    bar: int | None = None
    """BAR in which the doorbell must be; None accepts any."""
    count: int = 1
    """Rings per cycle; 0: until stopped."""
    cycles: int = 1
    """Cycles of enable, ring and disable."""
    interval: float = 0.0
    """Seconds between rings."""
    wait: bool = True
    """Wait for the acknowledgement."""
    force: bool = False
    override: Location | None = None
    """Location to ring instead of the one that the endpoint reports."""
    end: Deadline | None = None
    """After it, only the first ring of a cycle begins."""


class RingRun:
    """One execution of a plan; :attr:`report` is updated after every ring.

    :param report: report to extend; default a new one
    """

    def __init__(self, driver: EpfTest, plan: RingPlan, report: RingReport | None = None) -> None:
        self._driver = driver
        self._plan = plan
        self.on_location: Callable[[RingReport], None] = lambda _report: None
        """Called once, when the doorbell's location is known."""
        self.on_ring: Callable[[Ring], None] = lambda _ring: None
        """Called after every ring."""
        self.report = RingReport() if report is None else report
        self.report.irq = driver.irq_name

    def run(self) -> RingReport:
        """Run all cycles.

        :raises NotPassed: the doorbell could not be enabled, checked or disabled
        :raises DeviceLost: the device is gone
        :raises Interrupted: the user asked to stop
        """
        plan, report = self._plan, self.report
        for _ in range(plan.cycles):
            rung, acknowledged = report.count, report.acknowledged
            doorbell = Doorbell(
                self._driver, expect_bar=plan.bar, override=plan.override, force=plan.force
            )
            try:
                with doorbell:
                    self._announce(doorbell)
                    self._ring_cycle(doorbell)
            finally:
                report.stray += self._driver.stray
                report.left_enabled = report.left_enabled or doorbell.left_enabled
            self._explain_silence(doorbell, rung, worked=acknowledged > 0)
        return report

    def _explain_silence(self, doorbell: Doorbell, rung: int, *, worked: bool) -> None:
        """Attribute this cycle's silent rings to the doorbell's BAR if it is lost.

        Checked after DISABLE, when the BAR shows memory again: while the doorbell is enabled, a
        read would reach registers of the endpoint.
        """
        silent = [
            ring
            for ring in self.report.rings
            if ring.number > rung and ring.failure and ring.failure.reason is Reason.SILENT
        ]
        if not silent or not doorbell.bar_is_lost():
            return
        assert doorbell.location is not None
        bar = f"BAR{doorbell.location.bar}"
        cause = f"{bar} was lost at DISABLE_DOORBELL" if worked else f"{bar} is lost"
        for ring in silent:
            ring.failure = NotPassed(
                Reason.SILENT,
                f"doorbell: no answer in time: {cause} (it reads all ones)",
                hint=LOST_BAR_HINT,
            )

    def _announce(self, doorbell: Doorbell) -> None:
        report = self.report
        if report.location is None:
            report.location, report.said = doorbell.location, doorbell.said
            self.on_location(report)

    def _ring_cycle(self, doorbell: Doorbell) -> None:
        plan, rung = self._plan, 0
        while plan.count == 0 or rung < plan.count:
            if rung % _CHECK_EVERY == 0:
                self._driver.function.check()
            if rung and not self._wait_for_next():
                break
            self._ring(doorbell)
            rung += 1
        if plan.wait:
            doorbell.settle()

    def _wait_for_next(self) -> bool:
        """Wait for the plan's interval; return whether another ring may begin."""
        interval, end = self._plan.interval, self._plan.end
        if interval:
            left = interval if end is None else end.remaining
            self._driver.function.pause(min(interval, left))
        return end is None or not end.expired

    def _ring(self, doorbell: Doorbell) -> None:
        number = self.report.count + 1
        if not self._plan.wait:
            barrier()
            doorbell.write()
            ring = Ring(number)
        else:
            answer = doorbell.ring()
            failure, vector = doorbell.judge(answer), min(answer.vectors, default=None)
            latency = answer.latency_ns
            ring = Ring(number, failure is None, latency, answer.status, vector, failure)
        self.report.note(ring)
        self.on_ring(ring)


def ring_blind(
    function: Function,
    where: Location,
    *,
    count: int = 1,
    interval: float = 0.0,
    reg_bar: int | None = None,
) -> Iterator[Ring]:
    """Write to the location ``count`` times (0: until stopped) without using the test registers.

    :raises UsageError: there is no such location in the function's BARs
    """
    window = where.window(function)
    if where.bar == (find_registers(function)[0] if reg_bar is None else reg_bar):
        raise UsageError(f"BAR{where.bar} holds the test registers; a doorbell is never there")
    register = window.register32(where.offset)
    number = 0
    while count == 0 or number < count:
        if number % _CHECK_EVERY == 0:
            function.check()
        if number and interval:
            function.pause(interval)
        barrier()
        register[0] = where.data
        number += 1
        yield Ring(number)
