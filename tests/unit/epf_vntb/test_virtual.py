"""Pings against software vNTBs in this process, on virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count

import pytest

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.echo import TransportPinger
from rcdrv.epf_vntb.ping import DoorbellPinger, Pinger, PingReport, run_pings
from rcdrv.epf_vntb.registers import Reg, choose_map
from rcdrv.errors import RcdrvError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.sim.layout import load_layout
from rcdrv.verdict import NotPassed, Reason

POLLED, RK3588 = "rcar-s4-vntb-polled", "rk3588-vntb"
US, THEM = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])


@contextmanager
def endpoint(spec: str) -> Iterator[Direct]:
    device = Direct(load_layout(spec))
    try:
        yield device
    finally:
        device.endpoint.close()


def by_doorbell(vntb: Vntb) -> Pinger:
    return DoorbellPinger(vntb)


def by_transport(vntb: Vntb) -> Pinger:
    return TransportPinger(vntb, ip=US, peer_ip=THEM)


def ping(
    device: Direct,
    how: Callable[[Vntb], Pinger] = by_doorbell,
    *,
    times: int = 3,
    before: Callable[[Function], None] = lambda _function: None,
) -> PingReport:
    report = PingReport()
    with Function(device.attach(), clock=device.clock) as function:
        before(function)
        config = function.config
        vntb = Vntb(function, choose_map(config.vendor_id, config.device_id))
        try:
            run_pings(how(vntb), vntb, report, count=times, interval=0.0)
        finally:
            vntb.close()
    return report


@pytest.mark.parametrize("preset", [POLLED, "rcar-s4-vntb", RK3588])
def test_the_stock_delay_of_pingpong_is_waited_for(preset: str) -> None:
    """ntb_pingpong's delay_ms is 1000 unless it is set: seen as irq-lost on the running kernel."""
    with endpoint(preset) as device:
        report = ping(device)
        assert not report.misses
        assert report.delay == pytest.approx(1000, abs=25)
        assert {trip.reported for trip in report.trips} == {1 if preset == POLLED else 2}


def test_a_prompt_endpoint_has_no_delay() -> None:
    with endpoint(f"{POLLED},vntb.peer_delay_ms=0") as device:
        assert ping(device).delay is None


@pytest.mark.parametrize("stale", [5, 0xFFFF_FFFF, 0])
def test_what_a_reloaded_pingpong_left_in_the_scratchpad_is_no_count(stale: int) -> None:
    """Its count begins at 0 again, and pp_setup() sends a ping of its own with it."""
    with endpoint(f"{POLLED},vntb.peer_delay_ms=20") as device:
        control = 0x134  # the host's own scratchpad 0

        def write(function: Function) -> None:
            function.bar(0).write32(control, stale)

        report = ping(device, before=write)
        assert [trip.reported for trip in report.trips] == [1, 1, 1]


def test_an_endpoint_without_pingpong_is_silent_and_says_what_to_look_at() -> None:
    with endpoint(f"{POLLED},vntb.peer=none") as device:
        (miss,) = ping(device, times=1).misses
        assert (miss.reason, "delay_ms" in miss.hint) == (Reason.SILENT, True)


def test_windows_are_aligned_to_their_size() -> None:
    """As dma_alloc_coherent() aligns them: 4 KiB, of mw_get_align(), is refused on RK3588."""
    two = "vntb.num_mws=2,bar5.type=resizable,vntb.mw2_bar=5,vntb.mw2=0x100000"
    with endpoint(f"{RK3588},vntb.peer=netdev,{two}") as device:
        report = PingReport()
        with Function(device.attach(), clock=device.clock) as function:
            bars = choose_map(0x1912, 0x0030, windows=(2, 5))
            vntb = Vntb(function, bars)
            for size in (0x1000, 0x10000, 0x18000):
                with vntb.window_buffer(size) as buffer:
                    assert buffer.iova % size == 0 or buffer.iova % 0x20000 == 0
            run_pings(by_transport(vntb), vntb, report, count=3, interval=0.0)
        assert (len(report.trips), device.left_behind()) == (3, [])


def test_the_bridge_between_two_hosts_is_told_apart() -> None:
    """pci-epf-ntb: its doorbells are before MW1, in the same BAR, and MW1_OFFSET says how far."""
    with endpoint(f"{POLLED},vendor=0x104c,device=0xb00d") as device:

        def as_ntb(function: Function) -> None:
            function.bar(0).write32(Reg.MW1_OFFSET, 0x1000)

        with pytest.raises(NotPassed, match="pci-epf-ntb") as refused:
            ping(device, before=as_ntb)
        assert refused.value.reason is Reason.BAD_CONTROL


class Stopped(Exception):
    """What a signal handler might raise, anywhere."""


class Tripwire(Direct):
    """Ends the program at its n-th write to the control block or to the window."""

    writes_left = 0
    function: Function | None = None
    """The one to cancel; else :class:`Stopped` is raised."""

    def write(self, region: int, offset: int, data: bytes) -> None:
        super().write(region, offset, data)
        if region in (0, 2):
            self.writes_left -= 1
            if self.writes_left == 0 and self.function is None:
                raise Stopped
            if self.writes_left == 0 and self.function is not None:
                self.function.cancel.request()


@pytest.mark.parametrize("by_signal", [False, True], ids=["exception", "signal"])
@pytest.mark.parametrize(
    ("spec", "how"),
    [
        (f"{POLLED},hz=1000,vntb.peer_delay_ms=0", by_doorbell),
        (f"{POLLED},hz=1000,vntb.peer=netdev", by_transport),
        (f"{RK3588},vntb.peer=netdev", by_transport),
    ],
)
def test_an_end_at_any_write_leaves_nothing_behind(
    spec: str, how: Callable[[Vntb], Pinger], by_signal: bool
) -> None:
    """No buffer, no vector, and no link that this run took up."""
    for number in count(1):
        device = Tripwire(load_layout(spec))
        device.writes_left = number

        def watch(function: Function, device: Tripwire = device) -> None:
            device.function = function if by_signal else None

        with suppress(Stopped, RcdrvError):
            ping(device, how, times=2, before=watch)
        reached = device.writes_left <= 0
        device.writes_left = 0
        assert device.left_behind() == [], number
        with Function(device.attach(), clock=device.clock) as again:
            again.pause(1.0)  # whatever it was still told, it does
            # An exception in the clean-up itself may keep LINK_DOWN from being sent.
            assert not again.bar(0).read16(Reg.LINK_STATUS) & 1 or not by_signal, number
        device.endpoint.close()
        if not reached:
            assert number > 10
            return


@pytest.mark.parametrize("size", [0, 3, 4, 27, 0x10002, 0x100004, 1 << 40, (1 << 64) - 1])
def test_a_host_that_announces_nonsense_does_not_end_the_endpoint(size: int) -> None:
    """ZeroDivisionError or an access outside of the window before; the link does not come up."""
    with (
        endpoint(f"{POLLED},vntb.peer=netdev") as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        vntb = Vntb(function, choose_map(0x1912, 0x0030))
        vntb.link_up()
        # ntb_transport's scratchpads: the size of window 0, and all else as it has to be.
        for spad, value in enumerate((4, 1, 1, 1, size >> 32, size & 0xFFFF_FFFF)):
            vntb.spad_write(spad, value, peer=True)
        function.pause(0.2)
        assert vntb.spad_read(1) == 0  # QP_LINKS
        vntb.link_down()
