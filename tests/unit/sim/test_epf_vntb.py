"""pci-epf-vntb's protocol: commands, doorbells of each backend, windows, faults."""

from __future__ import annotations

import pytest

from rcdrv.device import IrqKind
from rcdrv.errors import UsageError
from rcdrv.sim.epf_vntb import VntbLayout, settings
from rcdrv.sim.epf_vntb.function import (
    LINK_IS_UP,
    STATUS_ERROR,
    STATUS_OK,
    SimControl,
    SimVntbCommand,
)
from rcdrv.sim.layout import load_layout

from .host import MEMORY_BASE, Host

_PROMPT = ",vntb.peer_delay_ms=0"
POLLED, EMBEDDED = f"rcar-s4-vntb-polled{_PROMPT}", f"rcar-s4-vntb{_PROMPT}"
SPADS = 0x134


def command(host: Host, value: int, argument: int = 0, seconds: float = 0.6) -> int:
    """Give a command; CMD_STATUS after ``seconds``, cleared as a root complex does."""
    host.write(0, SimControl.ARGUMENT, argument)
    host.write(0, SimControl.COMMAND, value)
    host.advance(seconds)
    status = host.read(0, SimControl.COMMAND_STATUS, 2)
    host.write(0, SimControl.COMMAND_STATUS, 0, 2)
    return status


def ring(host: Host, number: int = 0) -> None:
    slot = number + 2
    size = host.read(0, SimControl.DB_ENTRY_SIZE)
    offset = size * slot + host.read(0, SimControl.DB_OFFSET + 4 * slot)
    host.write(4, offset, host.read(0, SimControl.DB_DATA + 4 * slot))


def rung(host: Host) -> list[int]:
    return [event["db"] for event in host.events("doorbell")]


# -- the control block ----------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [POLLED, EMBEDDED, "rk3588-vntb"])
def test_control_block(preset: str) -> None:
    host = Host(preset)
    assert host.read(0, SimControl.SPAD_OFFSET) == SPADS
    assert host.read(0, SimControl.SPAD_COUNT) == 128
    assert host.read(0, SimControl.NUM_MWS) == 1
    slots = [
        (host.read(0, SimControl.DB_OFFSET + 4 * n), host.read(0, SimControl.DB_DATA + 4 * n))
        for n in range(5)
    ]
    if preset == POLLED:
        assert host.read(0, SimControl.DB_ENTRY_SIZE) == 4
        assert slots == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 0)]
    else:
        assert host.read(0, SimControl.DB_ENTRY_SIZE) == 0
        assert slots == [(0xA0, 0)] * 4 + [(0, 0)]
    assert host.read_config(0x0A, 2) == 0x0500
    assert tuple(host.endpoint.irq_counts())[:3] == (1, 16, 0)


def test_another_db_bar_on_rk3588_falls_back_to_polling() -> None:
    host = Host("rk3588-vntb,bar5.type=programmable,vntb.db_bar=5")
    assert host.read(0, SimControl.DB_ENTRY_SIZE) == 4


@pytest.mark.parametrize(("preset", "longest"), [(POLLED, 0.012), (EMBEDDED, 0.508)])
def test_commands_wait_for_the_tick(preset: str, longest: float) -> None:
    host = Host(preset)
    host.advance(1.0)
    host.write(0, SimControl.COMMAND, SimVntbCommand.LINK_UP)
    host.advance(longest)
    assert host.read(0, SimControl.COMMAND) == 0
    assert host.read(0, SimControl.COMMAND_STATUS, 2) == STATUS_OK
    assert host.read(0, SimControl.LINK_STATUS, 2) == LINK_IS_UP


def test_link_down_and_an_unknown_command() -> None:
    host = Host(POLLED)
    assert command(host, SimVntbCommand.LINK_UP) == STATUS_OK
    assert command(host, SimVntbCommand.LINK_DOWN) == STATUS_OK
    assert host.read(0, SimControl.LINK_STATUS, 2) == 0
    assert command(host, 99) == 0
    assert host.read(0, SimControl.COMMAND) == 0


# -- doorbells ------------------------------------------------------------------------------------


def test_polled_doorbells_are_told_apart() -> None:
    host = Host(POLLED)
    ring(host, 1)
    assert rung(host) == []
    host.advance(0.013)
    assert rung(host) == [1]
    assert host.read(4, 4 * 3) == 0


@pytest.mark.parametrize("hz", [100, 250, 1000])
def test_the_poll_tick(hz: int) -> None:
    host = Host(POLLED, hz=hz)
    # msecs_to_jiffies(5) and the jiffy that the timer wheel adds.
    longest = {100: 0.020, 250: 0.012, 1000: 0.006}[hz]
    waits = []
    for step in range(100):
        host.advance(longest * (1 + step / 100) + 1e-5)
        start = host.now
        ring(host)
        while host.read(4, 4 * 2):  # until the endpoint has taken it
            due = host.endpoint.next_event()
            assert due is not None
            host.advance(due - host.now)
        waits.append(host.now - start)
    assert max(waits) == pytest.approx(longest, rel=0.1)
    assert min(waits) < longest / 10


def test_one_embedded_ring_reports_every_doorbell() -> None:
    host = Host(EMBEDDED)
    ring(host, 1)
    assert rung(host) == [0, 1]


def test_the_its_tells_doorbells_apart() -> None:
    host = Host(f"{EMBEDDED},doorbell.backend=msi,doorbell.address=0x48050040,doorbell.data=42")
    assert host.read(0, SimControl.DB_DATA + 4 * 3) == 45
    ring(host, 1)
    assert rung(host) == [1]


def test_it_raises_msi_and_never_msix() -> None:
    host = Host(POLLED, **{"msix": 8, "bar0.type": "programmable", "msix_bar": 2})
    host.vectors[IrqKind.MSI] = 0
    command(host, SimVntbCommand.LINK_UP)
    assert host.fired == []
    assert host.events("irq-failed")


# -- peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "each"), [(POLLED, 1), (EMBEDDED, 2)])
def test_pingpong(preset: str, each: int) -> None:
    host = Host(preset)
    command(host, SimVntbCommand.LINK_UP)
    assert host.fired == [(IrqKind.MSI, 2)], "its own first ping"
    for count in (1, 2, 3):
        host.fired.clear()
        ring(host)
        host.advance(0.013)
        assert host.fired == [(IrqKind.MSI, 2)]
        assert host.read(0, SPADS) == each * count


def test_pingpong_delay() -> None:
    host = Host(EMBEDDED, **{"vntb.peer_delay_ms": 50})
    command(host, SimVntbCommand.LINK_UP)
    host.fired.clear()
    ring(host)
    host.advance(0.049)
    assert host.fired == []
    host.advance(0.002)
    assert host.fired == [(IrqKind.MSI, 2)]


# -- windows --------------------------------------------------------------------------------------


def test_a_window_that_is_not_translated_is_not_to_be_touched() -> None:
    host = Host(POLLED, **{"vntb.peer": "tool"})
    host.write(2, 0x40, 1)
    command(host, SimVntbCommand.LINK_UP)
    assert [event["bar"] for event in host.events("stray")] == [2]
    host.write(2, 0x40, 0x55)
    assert host.read(2, 0x40) == 0x55


@pytest.mark.parametrize(
    ("address", "size", "status"),
    [
        (MEMORY_BASE, 0x1000, STATUS_OK),
        (MEMORY_BASE, 0, STATUS_ERROR),
        (MEMORY_BASE + 4, 0x1000, STATUS_ERROR),
    ],
)
def test_configure_mw(address: int, size: int, status: int) -> None:
    host = Host(POLLED)
    for offset, value in ((0, address), (8, size)):
        host.write(0, SimControl.ADDR + offset, value & 0xFFFF_FFFF)
        host.write(0, SimControl.ADDR + offset + 4, value >> 32)
    assert command(host, SimVntbCommand.CONFIGURE_MW, 0) == status
    assert command(host, SimVntbCommand.TEARDOWN_MW, 0) == STATUS_OK
    assert not host.events("harm")


def test_a_window_that_is_not_there_harms() -> None:
    host = Host(POLLED)
    command(host, SimVntbCommand.CONFIGURE_MW, 3)
    assert not host.events("harm")
    command(host, SimVntbCommand.CONFIGURE_MW, 4)  # MAX_MW of pci-epf-vntb.c
    assert host.events("harm")


def test_the_other_bits_of_link_status_stay() -> None:
    """epf_ntb_link_up() sets and clears LINK_STATUS_UP alone."""
    host = Host(POLLED)
    host.write(0, SimControl.LINK_STATUS, 0x8002, 2)
    command(host, SimVntbCommand.LINK_UP)
    assert host.read(0, SimControl.LINK_STATUS, 2) == 0x8003
    command(host, SimVntbCommand.LINK_DOWN)
    assert host.read(0, SimControl.LINK_STATUS, 2) == 0x8002


def test_a_window_has_to_meet_the_granularity_of_the_controller() -> None:
    """dw_pcie_prog_outbound_atu(): region_align, 64 KiB on RK3588."""
    host = Host("rk3588-vntb,vntb.peer=none")
    for address, status in ((0x1000, STATUS_ERROR), (0x10000, STATUS_OK)):
        host.write(0, SimControl.ADDR, address)
        host.write(0, SimControl.SIZE, 0x1000)
        assert command(host, SimVntbCommand.CONFIGURE_MW) == status


# -- faults ---------------------------------------------------------------------------------------


def test_faults_of_commands() -> None:
    assert command(Host(POLLED, fault="swallow"), SimVntbCommand.LINK_UP) == 0
    assert command(Host(POLLED, fault="command-error"), SimVntbCommand.LINK_UP) == STATUS_ERROR
    assert command(Host(POLLED, fault="slow=300"), SimVntbCommand.LINK_UP, seconds=0.2) == 0
    silent = Host(POLLED, fault="silent")
    assert command(silent, SimVntbCommand.LINK_UP) == 0
    assert silent.read(0, SimControl.COMMAND) == SimVntbCommand.LINK_UP


def test_link_drops() -> None:
    host = Host(EMBEDDED, fault="link-drops=1")
    command(host, SimVntbCommand.LINK_UP)
    ring(host)
    assert host.read(0, SimControl.LINK_STATUS, 2) == LINK_IS_UP
    ring(host)
    host.advance(0.001)
    assert host.read(0, SimControl.LINK_STATUS, 2) == 0
    assert host.events("unbind")


# -- the layout -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("vntb.db_count=2", "vntb.db_count"),
        ("vntb.db_count=33", "vntb.db_count"),
        ("vntb.mw1=0x1800", "a window of 0x1800 bytes"),
        ("vntb.mw1_bar=0", "the same BAR"),
        ("vntb.mw1_bar=3", "BAR3 is absent"),
        ("vntb.peer=other", "vntb.peer"),
        ("vntb.peer_ip=1.2.3", "not an IPv4"),
        ("vntb.peer_prefix=33", "vntb.peer_prefix"),
        ("vntb.peer_name=a/b", "cannot be the name of an interface"),
        ("vntb.peer_name=sixteen-letters-", "cannot be the name of an interface"),
        ("vntb.peer_netns=../../tmp/x", "is not a name of ip netns"),
        ("vntb.peer_queues=0", "vntb.peer_queues"),
        ("vntb.peer_queues=65", "vntb.peer_queues"),
        ("vntb.peer_queues=2", "peer_queues is 2, and ntb_transport makes 1 queue pairs"),
        ("vntb.peer_max_clients=256", "vntb.peer_max_clients"),
        ("vntb.db_bra=4", "no such key"),
        ("bar0.type=fixed,bar0.size=1024", "the registers need 0x534"),
    ],
)
def test_what_cannot_be(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_layout(f"{POLLED},{change}")


@pytest.mark.parametrize(
    ("db_count", "windows", "max_num_clients", "pairs"),
    [
        # ntb_transport_probe() by hand. ilog2() of db_count - 2 valid doorbells is db_count - 3.
        (3, 1, 0, 0),
        (4, 1, 0, 1),
        (4, 4, 0, 1),
        (6, 2, 0, 2),
        (6, 4, 0, 3),
        (32, 4, 0, 4),
        (6, 1, 2, 2),
        (6, 4, 1, 1),
        (32, 1, 28, 28),
        # No less than the doorbells allow: the number of windows is looked at instead.
        (5, 1, 2, 1),
        (5, 1, 255, 1),
        (5, 4, 2, 2),
        (3, 1, 5, 0),
    ],
)
def test_the_number_of_queue_pairs(
    db_count: int, windows: int, max_num_clients: int, pairs: int
) -> None:
    layout = VntbLayout(db_count=db_count, num_mws=windows, peer_max_clients=max_num_clients)
    assert layout.queue_pairs == pairs


@pytest.mark.parametrize(("spads", "windows"), [(5, 0), (6, 1), (7, 1), (8, 2), (64, 4)])
def test_windows_without_scratchpads_are_not_used(spads: int, windows: int) -> None:
    """max_mw_count_for_spads, and NTB_TRANSPORT_MIN_SPADS"""
    layout = VntbLayout(db_count=32, spad_count=spads, num_mws=4, peer_max_clients=2)
    assert (layout.transport_windows, layout.queue_pairs) == (windows, 2 if windows else 0)


def test_bars_that_nobody_named_are_found() -> None:
    layout = load_layout("generic,function=epf_vntb,msix=0,vntb.num_mws=3,vntb.mw2=64K,vntb.mw3=4K")
    assert (settings(layout).ctrl_bar, settings(layout).db_bar) == (0, 1)
    assert settings(layout).mw_bars == (2, 3, -1), "the last one is never looked at"
    assert layout.bar(3).size == 64 << 10
    assert layout.hz == 250
    assert settings(layout).peer_delay_ms == 1000, "delay_ms of ntb_pingpong.c"


def test_a_window_without_a_bar_harms() -> None:
    """epf_ntb_init_epc_bar() leaves it at NO_BAR, epf_ntb_mw_bar_init() writes epf->bar[-1]."""
    host = Host("generic,function=epf_vntb,msix=0,vntb.num_mws=2,vntb.mw2=64K,vntb.peer=tool")
    assert "bar[-1]" in host.events("harm")[0]["reason"]
    assert command(host, SimVntbCommand.LINK_UP) == STATUS_OK
    named = Host("generic,function=epf_vntb,msix=0,vntb.num_mws=2,vntb.mw2=64K,vntb.mw2_bar=3")
    assert not named.events("harm")


def test_windows_that_no_bar_is_left_for_are_given_up() -> None:
    layout = load_layout(f"{POLLED},vntb.num_mws=3,vntb.mw2=4K,vntb.mw3=4K")
    assert (settings(layout).num_mws, settings(layout).mw_bars) == (2, (2, -1)), (
        "the second one is NO_BAR"
    )
