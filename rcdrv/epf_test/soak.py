"""Ring for hours: distribution and drift of the latency, and the resources of this process.

Memory is bounded for any duration: histograms are kept, and not the rings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.outcome import ring_document
from rcdrv.epf_test.ring import Ring, RingPlan, RingReport, RingRun
from rcdrv.errors import RcdrvError
from rcdrv.function import Function
from rcdrv.results.bench import percentiles
from rcdrv.results.distribution import PERCENTILES, Histogram
from rcdrv.wait import MONOTONIC, Clock, Deadline

_PARTS, _SHORTEST = 60, 1.0
_DRIFTS = ((50.0, 20), (99.0, 200))
"""Percentile, and the rings that a part needs to be used for it."""
_LEAST, _SURE = 0.1, 0.9


@dataclass
class Part:
    """One of at most 60 equal parts of the duration, each at least a second long."""

    start: float
    """Seconds since the start of the soak."""
    failed: int = 0
    latencies: Histogram = field(default_factory=Histogram)

    def note(self, ring: Ring) -> None:
        self.failed += ring.failure is not None
        if ring.acknowledged and ring.latency_ns is not None:
            self.latencies.add(ring.latency_ns)

    def document(self) -> dict[str, Any]:
        """Return ``start`` (s), ``acknowledged``, ``failed``, and percentiles (ns) if there are any
        latencies."""
        found = self.latencies.distribution()
        return {
            "start": self.start,
            "acknowledged": self.latencies.count,
            "failed": self.failed,
            **({} if found is None else percentiles(found)),
        }


class Drift(NamedTuple):
    """Lasting change of a percentile from the first to the last quarter of the duration."""

    percent: float
    before_ns: float
    after_ns: float

    @property
    def change(self) -> float:
        """Relative change; negative if it fell."""
        return self.after_ns / self.before_ns - 1


class Held(NamedTuple):
    descriptors: int
    mappings: int
    """Lines of /proc/self/maps."""
    memory: int
    """Resident set size in bytes."""
    dma_buffers: int


class Soak:
    """Cycles of enable, ring and disable until the time is up; may continue after a lost device.

    :param seconds: duration
    """

    def __init__(self, seconds: float, *, clock: Clock = MONOTONIC) -> None:
        self.seconds = seconds
        self.report = RingReport(keep=False)
        self.cycles = 0
        """Cycles that ended without an exception."""
        self.latencies = Histogram()
        self.parts: list[Part] = []
        self.held: tuple[Held, Held] | None = None
        """Resources after the first cycle, and after the latest."""
        self.on_location: Callable[[RingReport], None] = lambda _report: None
        self.on_ring: Callable[[Ring], None] = lambda _ring: None
        """These two as of :class:`RingRun`, for every cycle."""
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Start the duration now, as opening the endpoint may have taken some of it."""
        self._start = self._clock.now()
        self.end = Deadline(self.seconds, self._clock)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock.now() - self._start

    def run(self, driver: EpfTest, plan: RingPlan) -> None:
        """Ring until the time is up, at least once.

        :param plan: one cycle
        :raises NotPassed: the doorbell could not be enabled, checked or disabled
        :raises DeviceLost: the device is gone
        :raises Interrupted: the user asked to stop
        """
        while True:
            self.cycle(driver, plan)
            if plan.interval:
                driver.function.pause(min(plan.interval, self.end.remaining))
            if self.end.expired:
                return

    def cycle(self, driver: EpfTest, plan: RingPlan) -> None:
        """Enable, ring, disable; see :meth:`run`."""
        run = RingRun(driver, plan, self.report)
        run.on_location, run.on_ring = self.on_location, self._note
        run.run()
        self.cycles += 1
        now = held(driver.function)
        self.held = (now if self.held is None else self.held[0], now)

    def _note(self, ring: Ring) -> None:
        # A ring may end after the time is up, on a silent endpoint: it belongs to the last part.
        length = max(_SHORTEST, self.seconds / _PARTS)
        number = min(int(self.elapsed / length), _PARTS - 1)
        if not self.parts or number * length > self.parts[-1].start:
            self.parts.append(Part(number * length))
        self.parts[-1].note(ring)
        if ring.acknowledged and ring.latency_ns is not None:
            self.latencies.add(ring.latency_ns)
        self.on_ring(ring)

    def drifts(self) -> list[Drift]:
        """Return the percentiles that differ between the first and the last quarter.

        The medians must differ by a tenth, in the same direction as nine of ten pairs of parts:
        one slow minute is no drift.
        """
        found = []
        for percent, least in _DRIFTS:
            values = [
                distribution.percentile(percent)
                for part in self.parts
                if (distribution := part.latencies.distribution()) is not None
                and distribution.count >= least
            ]
            quarter = len(values) // 4
            if quarter < 2:
                continue
            first, last = values[:quarter], values[-quarter:]
            drift = Drift(percent, median(first), median(last))
            above = sum(after > before for before in first for after in last) / quarter**2
            sure = above if drift.change > 0 else 1 - above
            if abs(drift.change) >= _LEAST and sure >= _SURE:
                found.append(drift)
        return found


def held(function: Function) -> Held:
    """Return the resources of this process; 0 for those that /proc does not report."""

    def lines(name: str) -> int:
        try:
            with Path("/proc/self", name).open("rb") as file:
                return sum(1 for _ in file)
        except OSError:
            return 0

    try:
        descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
        fields = Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()
        memory = int(fields[0]) << 10 if fields else 0
    except OSError:
        descriptors = memory = 0
    return Held(descriptors, lines("maps"), memory, function.dma_buffers)


def document(soak: Soak, device: str | None, finding: RcdrvError | None) -> dict[str, Any]:
    """Return the document of ``rcdrv ring`` with the additional key ``soak``.

    ``rings`` holds only failed rings, at most 100. In ``soak``:

    ``seconds``, ``elapsed``, ``count``, ``acknowledged``, ``failed``, ``cycles``
        Requested and actual duration; rings and cycles.
    ``min``, ``p50``, ``p90``, ``p99``, ``p99.9``, ``max``, ``histogram``
        Nanoseconds from write to acknowledgement, as in a benchmark's series; null and empty
        if no ring was acknowledged.
    ``parts``
        At most 60, in order: ``start`` in seconds, ``acknowledged``, ``failed``, the percentiles.
    ``drift``
        Percentiles with a lasting change: ``percentile``, ``before``, ``after`` (nanoseconds).
    ``held``
        ``descriptors``, ``mappings``, ``memory`` (bytes) and ``dma_buffers`` of this process:
        ``first`` after the first cycle, ``last`` after the last one; null if no cycle ended.
    """
    report, found = soak.report, soak.latencies.distribution()
    names = [f"p{percent:g}" for percent in PERCENTILES]
    return {
        **ring_document(device, report, finding),
        "soak": {
            "seconds": soak.seconds,
            "elapsed": soak.elapsed,
            "count": report.count,
            "acknowledged": report.acknowledged,
            "failed": report.failed,
            "cycles": soak.cycles,
            "min": report.shortest_ns if found else None,
            **(percentiles(found) if found else dict.fromkeys(names)),
            "max": report.longest_ns if found else None,
            "histogram": found.histogram() if found else [],
            "parts": [part.document() for part in soak.parts],
            "drift": [
                {"percentile": one.percent, "before": one.before_ns, "after": one.after_ns}
                for one in soak.drifts()
            ],
            "held": None
            if soak.held is None
            else dict(zip(("first", "last"), (one._asdict() for one in soak.held), strict=True)),
        },
    }
