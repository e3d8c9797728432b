"""Ringing for hours, on virtual time."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable

import pytest

from rcdrv.cli import build_parser
from rcdrv.cli import soak as cli
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.outcome import worst
from rcdrv.epf_test.ring import Ring, RingPlan
from rcdrv.epf_test.soak import Drift, Part, Soak, document
from rcdrv.errors import DeviceLost
from rcdrv.function import Function
from rcdrv.results.distribution import Histogram
from rcdrv.sim.epf_test.function import SimEpfTest
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import Cancel, Clock, Deadline
from tests.unit.epf_test.virtual import endpoint


def soaked(spec: str, seconds: float, interval: float, count: int = 1000) -> Soak:
    """The soak of an endpoint, which nothing ends early."""
    with (
        endpoint(spec) as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        soak = Soak(seconds, clock=device.clock)
        plan = RingPlan(count=count, interval=interval, end=soak.end)
        soak.run(EpfTest(function), plan)
        assert function.dma_buffers == 0
    assert not device.left_behind()
    return soak


def test_an_hour_of_rings_ends_when_the_time_is_up() -> None:
    soak = soaked("rk3588", 3600, 5, count=100)
    assert 719 <= soak.report.count <= 721
    assert soak.cycles == 8
    assert 3600 <= soak.elapsed < 3602
    assert [part.start for part in soak.parts] == [60 * number for number in range(60)]
    assert {part.latencies.count for part in soak.parts} <= {11, 12, 13}
    assert worst(soak.report, None) is None
    assert soak.drifts() == []
    found = json.loads(json.dumps(document(soak, "sim:rk3588", None)))
    assert (found["verdict"], found["rings"]) == ("pass", [])
    assert found["soak"]["count"] == sum(one["acknowledged"] for one in found["soak"]["parts"])
    assert (
        found["soak"]["held"]["first"]["descriptors"]
        == (found["soak"]["held"]["last"]["descriptors"])
    )


@pytest.mark.parametrize(("seconds", "interval"), [(0.001, 0), (10, 3600)])
def test_it_rings_once_at_least_and_waits_no_longer_than_asked(
    seconds: float, interval: float
) -> None:
    soak = soaked("rk3588", seconds, interval)
    assert soak.report.acknowledged >= 1
    assert soak.elapsed < seconds + 1


def test_failures_are_counted_and_do_not_end_it() -> None:
    soak = soaked("rk3588,fault=doorbell-dead", 300, 0)
    assert 295 <= soak.report.failed == soak.report.count <= 305
    assert len(soak.report.rings) == 100
    finding = worst(soak.report, None)
    assert finding is not None
    assert finding.exit_status == 1
    found = document(soak, None, finding)["soak"]
    assert (found["p50"], found["histogram"], found["max"]) == (None, [], None)


def test_a_doorbell_that_leaks_ends_it() -> None:
    """pci_epf_test_disable_doorbell() that frees no interrupt: no more at some ENABLE."""
    with (
        endpoint("rk3588,fault=doorbell-leaks") as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        soak = Soak(3600, clock=device.clock)
        with pytest.raises(NotPassed) as caught:
            soak.run(EpfTest(function), RingPlan(count=10, interval=1, end=soak.end))
    assert caught.value.reason is Reason.ENABLE_FAILED
    assert 1 <= soak.cycles < 300
    assert soak.report.count == 10 * soak.cycles


def test_a_latency_that_rises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the endpoint's handler runs later and later."""
    begun: list[float] = []

    def late(self: SimEpfTest) -> None:
        begun.append(self.clock())
        self._late_rings.append(self.clock() + 1e-3 + (begun[-1] - begun[0]) * 1e-4)

    monkeypatch.setattr(SimEpfTest, "_doorbell_handler", late)
    (drift,) = soaked("rk3588", 600, 0.4, count=50).drifts()
    assert drift.percent == 50
    assert drift.change > 1


class Hands(Clock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = 0.0
        self.now = lambda: self.time


def noted(medians: list[int], rings: int = 250) -> list[Drift]:
    """Drifts of parts with these latencies."""
    soak = Soak(600, clock=Hands())
    for number, value in enumerate(medians):
        part = Part(float(number))
        for step in range(rings):
            part.note(Ring(step, True, value + step))
        soak.parts.append(part)
    return soak.drifts()


STEADY = [100_000, 104_000, 97_000, 101_000] * 5


def test_what_is_a_drift() -> None:
    assert noted(STEADY) == []
    assert noted([*STEADY[:10], 900_000, *STEADY[11:]]) == []  # one slow minute
    assert noted([*STEADY[:16], 120_000, 121_000, 99_000, 122_000]) == []  # not for good
    assert noted([*STEADY[:15], *[105_000] * 5]) == []  # of less than a tenth
    assert [d.percent for d in noted([*STEADY[:15], *[150_000] * 5])] == [50, 99]
    (fell,) = noted([200_000] * 4 + STEADY, rings=50)  # too few for a 99th percentile
    assert fell.change < -0.4
    assert noted([1000, 9000] * 3) == []  # too few parts


def test_memory_is_bounded() -> None:
    histogram = Histogram()
    for value in range(1, 200_000):
        histogram.add(value * value)
    assert histogram.count == 199_999
    assert len(histogram.counts) <= 900 * 11
    found = histogram.distribution()
    assert found is not None
    assert found.percentile(50) == pytest.approx(100_000**2, rel=0.01)
    soak = Soak(1e6, clock=(clock := Hands()))
    ring = Ring(1, True, 100_000)

    def size() -> int:
        for _ in range(5000):
            clock.time += 100
            soak._note(ring)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    size()
    before = len(soak.parts)
    clock.time = 2e6  # later than its end, as where an endpoint is silent
    assert size() - size() == pytest.approx(0, abs=2000)
    tracemalloc.stop()
    assert before <= len(soak.parts) <= 60


@pytest.mark.parametrize("rings", [0, 1])  # lost by ENABLE, or by a ring
def test_an_endpoint_that_every_cycle_loses_is_not_awaited_beyond_the_time(
    rings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--reconnect`, each reboot lets a cycle begin, which loses the endpoint again."""
    lost = 0

    def cycle(soak: Soak, *_args: object, **_kwargs: object) -> None:
        nonlocal lost
        lost += 1
        soak.report.count += rings
        soak.end = Deadline(0.0)
        raise DeviceLost("gone")

    def persist(_args: object, _cancel: object, use: Callable[[Function], None]) -> None:
        for _ in range(5):
            with (
                endpoint("generic") as device,
                Function(device.attach(), clock=device.clock) as function,
                contextlib.suppress(DeviceLost),
            ):
                use(function)
                break

    monkeypatch.setattr(Soak, "cycle", cycle)
    monkeypatch.setattr(cli, "persist", persist)
    words = ["ring", "--soak", "1h", "--count", "1000", "--reconnect", "--json"]
    args = build_parser(words).parse_args(words)
    args.device = "generic"
    with contextlib.closing(Cancel()) as cancel:
        cli.soak(args, cancel, None)
    assert lost == 1
