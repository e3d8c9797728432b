"""Pings that end at each access to the device: whatever was brought up is taken down."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.echo import TransportPinger
from rcdrv.epf_vntb.ping import DoorbellPinger, Pinger, PingReport, run_pings
from rcdrv.epf_vntb.registers import RCAR_MAP, Command, Reg
from rcdrv.epf_vntb.window import test_pointing as point_at_memory
from rcdrv.errors import Interrupted, RcdrvError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.sim.layout import load_layout
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import Cancel

QUICK = "rcar-s4-vntb-polled,hz=1000"


class Failed(Exception):
    """What an access raises."""


class Watched(Direct):
    """Calls ``strike`` at the access number ``at``, and notes what stands in the registers."""

    def __init__(self, spec: str, at: int, strike: Callable[[], None]) -> None:
        super().__init__(load_layout(spec))
        self.accesses: list[tuple[str, int, int]] = []
        self._at, self._strike = at, strike
        self.pointed: set[int] = set()
        self.in_cleanup = False
        """The strike came while everything was taken down already."""
        self._argument = 0

    def _tick(self, *access: Any) -> None:
        self.accesses.append(access)
        if len(self.accesses) == self._at:
            self._strike()

    def read(self, region: int, offset: int, size: int) -> bytes:
        self._tick("read", region, offset)
        return super().read(region, offset, size)

    def write(self, region: int, offset: int, data: bytes) -> None:
        self._tick("write", region, offset)
        value = int.from_bytes(data, "little")
        if region == 0 and offset == Reg.ARGUMENT:
            self._argument = value
        if region == 0 and offset == Reg.COMMAND and value == Command.CONFIGURE_MW:
            self.pointed.add(self._argument)
        if region == 0 and offset == Reg.COMMAND and value == Command.TEARDOWN_MW:
            self.pointed.discard(self._argument)
        super().write(region, offset, data)


def ping_by_doorbell(vntb: Vntb) -> None:
    _run(DoorbellPinger(vntb), vntb)


def ping_by_packets(vntb: Vntb) -> None:
    _run(TransportPinger(vntb, ip=bytes((192, 0, 2, 1)), peer_ip=bytes((192, 0, 2, 2))), vntb)


def point(vntb: Vntb) -> None:
    try:
        point_at_memory(vntb, 0)
    finally:
        vntb.close()


def _run(pinger: Pinger, vntb: Vntb) -> None:
    run_pings(pinger, vntb, PingReport(), count=1, interval=0)


def attempt(
    spec: str, work: Callable[[Vntb], None], at: int, *, by_signal: bool
) -> tuple[Watched, BaseException | None]:
    """Do ``work``, struck at access ``at``; the device afterwards, and what came of it."""
    cancel = Cancel()

    def strike() -> None:
        device.in_cleanup = cancel.is_deferred
        if not by_signal:
            raise Failed
        cancel.request(signal.SIGINT)

    device = Watched(spec, at, strike)
    raised: BaseException | None = None
    try:
        with Function(device.attach(), cancel, device.clock) as function:
            work(Vntb(function, RCAR_MAP, timeout=1.0))
    except (RcdrvError, Failed) as error:
        raised = error
    finally:
        cancel.close()
    device.clock.advance(1.0)
    return device, raised


def link_is_up(device: Watched) -> bool:
    with Function(device.attach(), Cancel(), device.clock) as function:
        return Vntb(function, RCAR_MAP).link_is_up


@pytest.mark.parametrize("by_signal", [True, False], ids=["signal", "exception"])
@pytest.mark.parametrize(
    ("spec", "work"),
    [
        (QUICK, ping_by_doorbell),
        (f"{QUICK},vntb.peer=netdev", ping_by_packets),
        (f"{QUICK},vntb.peer=tool", point),
    ],
    ids=["doorbell", "packets", "window"],
)
def test_interrupted_at_every_access(
    spec: str, work: Callable[[Vntb], None], by_signal: bool
) -> None:
    whole, raised = attempt(spec, work, 0, by_signal=by_signal)
    assert raised is None
    accesses = whole.accesses
    # Time is virtual, so every run is the same. Of a poll, the first look will do.
    steps = [at for at in range(2, len(accesses) + 1) if accesses[at - 1] != accesses[at - 2]]
    assert len(steps) > 20
    for at in steps:
        device, raised = attempt(spec, work, at, by_signal=by_signal)
        assert device.left_behind() == [], at
        if by_signal or not device.in_cleanup:
            # An access that fails in the clean-up itself leaves that step undone.
            assert not device.pointed, at
            assert not link_is_up(device), at
        if by_signal:
            # A stop that is asked for while everything is taken down already changes nothing.
            assert raised is None or isinstance(raised, Interrupted), (at, raised)
        elif raised is not None:
            assert isinstance(raised, Failed), (at, raised)
        device.endpoint.close()
    whole.endpoint.close()


def test_a_window_that_is_refused_leaves_nothing() -> None:
    """Before, `_memory` was not set: exit status 70 instead of the endpoint's answer."""
    spec = f"{QUICK},vntb.peer=netdev,align=16M"
    device = Watched(spec, 0, lambda: None)
    with Function(device.attach(), Cancel(), device.clock) as function:
        vntb = Vntb(function, RCAR_MAP)
        with pytest.raises(NotPassed) as caught:
            ping_by_packets(vntb)
    assert caught.value.reason is Reason.COMMAND_REFUSED
    assert "CONFIGURE_MW: CMD_STATUS is 0x0002" in caught.value.message
    assert device.left_behind() == []
    device.endpoint.close()


def test_the_memory_of_windows_is_aligned_to_its_size() -> None:
    """As dma_alloc_coherent() aligns it (ntb_transport.c, ntb_alloc_mw_buffer)."""
    device = Watched(QUICK, 0, lambda: None)
    with Function(device.attach(), Cancel(), device.clock) as function:
        vntb = Vntb(function, RCAR_MAP)
        function.dma_buffer(1)
        for size in (0x1000, 0x10000, 0x100000, 0x18000):
            with vntb.window_buffer(size) as buffer:
                assert buffer.iova % size == 0 or buffer.iova % 0x20000 == 0
    device.endpoint.close()


def ping_after(spec: str, stale: int) -> PingReport:
    device = Watched(spec, 0, lambda: None)
    report = PingReport()
    with Function(device.attach(), Cancel(), device.clock) as function:
        vntb = Vntb(function, RCAR_MAP)
        vntb.spad_write(0, stale)
        run_pings(DoorbellPinger(vntb), vntb, report, count=3, interval=0.0)
    device.endpoint.close()
    return report


@pytest.mark.parametrize("stale", [0, 1, 3, 0xFFFFFFFF])
def test_scratchpads_of_a_module_that_was_unloaded(stale: int) -> None:
    """It counted 4294967294 doorbells, and took the endpoint's own first ping for an answer."""
    report = ping_after(QUICK, stale)
    assert [trip.reported for trip in report.trips] == [1, 1, 1]


def test_the_default_delay_of_ntb_pingpong_is_waited_for() -> None:
    """ntb_pingpong.c: delay_ms is 1000"""
    report = ping_after(f"{QUICK},vntb.peer_delay_ms=1000", 0)
    assert report.misses == []
    assert len(report.trips) == 3
    assert report.spread is not None
    assert report.spread.minimum >= 1000
    assert report.delay is not None
    assert ping_after(f"{QUICK},vntb.peer_delay_ms=0", 0).delay is None
