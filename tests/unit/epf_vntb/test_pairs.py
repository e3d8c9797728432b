"""Several queue pairs of ntb_transport: their shares, and how each comes up and goes down."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.echo import TransportPinger
from rcdrv.epf_vntb.perf import Rate, measure
from rcdrv.epf_vntb.ping import PingReport, run_pings
from rcdrv.epf_vntb.registers import RCAR_MAP, BarMap
from rcdrv.epf_vntb.rings import LINK_DOWN, Ring, Share
from rcdrv.epf_vntb.transport import QueuePair, Transport
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.sim.epf_vntb.netdev import Netdev
from rcdrv.sim.epf_vntb.transport import SimQueuePair
from rcdrv.sim.layout import load_layout
from rcdrv.verdict import NotPassed, Reason

QUICK = "rcar-s4-vntb-polled,hz=1000,vntb.peer=netdev"
QP_LINKS, NUM_QPS = 1, 2
MTU = 0x10000


def clients(count: int, queues: int = 1) -> str:
    """So many queue pairs in the one window, of which ntb_netdev uses some."""
    limit = f"vntb.db_count={count + 4},vntb.peer_max_clients={count}"
    return f"{QUICK},{limit},vntb.peer_queues={queues}"


TWO_WINDOWS = (
    f"{QUICK},vntb.db_count=5,vntb.num_mws=2,vntb.mw2=256K,vntb.mw2_bar=3,bar3.type=programmable"
)


# -- shares ---------------------------------------------------------------------------------------


def sim_pair(number: int, pairs: int, sizes: tuple[int, ...]) -> SimQueuePair:
    transport: Any = SimpleNamespace(windows=len(sizes))
    bridge: Any = SimpleNamespace(config=SimpleNamespace(mw_sizes=sizes))
    return SimQueuePair(transport, bridge, number, pairs)


@given(
    st.integers(1, 64),
    st.lists(st.integers(12, 24).map(lambda bits: 1 << bits), min_size=1, max_size=4),
)
def test_shares_are_disjoint_and_both_sides_agree(pairs: int, sizes: list[int]) -> None:
    taken: dict[int, list[tuple[int, int]]] = {}
    for number in range(pairs):
        share = Share.of(number, pairs, len(sizes))
        size = sizes[share.window]
        sim = sim_pair(number, pairs, tuple(sizes))
        assert sim.window == share.window
        memory: Any = SimpleNamespace(write32=lambda *_: None)
        sim.set_up(size, memory)
        try:
            ring = Ring.of(size, share.count, MTU, share.index)
        except ValueError:
            assert sim.memory is None
            continue
        assert sim.memory is memory
        assert (ring.base, ring.end) == (sim._tx_start, sim._tx_end)
        assert (ring.frame, ring.entries) == (sim.tx_frame, sim.tx_entries)
        receiving = (sim._rx_start, sim._rx_end, sim._rx_frame, sim._rx_entries)
        assert receiving == (ring.base, ring.end, ring.frame, ring.entries)
        assert ring.slot(ring.entries) <= ring.info
        taken.setdefault(share.window, []).append((ring.base, ring.info + 4))
    for window, places in taken.items():
        ends = [0, *(end for _, end in places)]
        assert all(start >= before for (start, _), before in zip(places, ends, strict=False))
        assert ends[-1] <= sizes[window]


@pytest.mark.parametrize(
    ("pairs", "windows", "shares"),
    [
        # ntb_transport_setup_qp_mw() by hand: window, place, number of shares
        (1, 1, [(0, 0, 1)]),
        (3, 2, [(0, 0, 2), (1, 0, 1), (0, 1, 2)]),
        (2, 4, [(0, 0, 1), (1, 0, 1)]),
        (5, 3, [(0, 0, 2), (1, 0, 2), (2, 0, 1), (0, 1, 2), (1, 1, 2)]),
    ],
)
def test_the_windows_are_shared_in_turn(
    pairs: int, windows: int, shares: list[tuple[int, int, int]]
) -> None:
    assert [Share.of(number, pairs, windows) for number in range(pairs)] == [
        Share(*one) for one in shares
    ]


# -- against a software endpoint in this process --------------------------------------------------


class Both:
    """The host's transport, and the endpoint's ntb_netdev."""

    def __init__(self, device: Direct, vntb: Vntb, queues: int) -> None:
        self.device, self.vntb = device, vntb
        self.transport = Transport(vntb, queues=queues)
        peer = device.endpoint.function._peer  # type: ignore[attr-defined]
        assert isinstance(peer, Netdev)
        self.peer = peer

    def up(self) -> list[int]:
        """Numbers of the queue pairs that are up at the endpoint."""
        return [pair.number for pair in self.peer.pairs if pair.up]

    def join(self, times: int = 20) -> list[int]:
        """Join what there is, as every 10 ms; the queue pairs that are up here."""
        for _ in range(times):
            self.transport.join()
            self.vntb.function.pause(0.01)
        return [pair.number for pair in self.transport.pairs if pair.up]

    def hear(self) -> list[QueuePair]:
        """Take LINK_DOWN where it came, in the order of the queue pairs."""
        gone = []
        for pair in self.transport.pairs:
            arrived = pair.rings.arrived()
            if arrived is not None and arrived[2] & LINK_DOWN:
                self.transport.leave(pair)
                gone.append(pair)
        return gone


@pytest.fixture
def both(request: pytest.FixtureRequest) -> Iterator[Both]:
    spec, queues = request.param
    device = Direct(load_layout(spec))
    bars = BarMap(0, 0, 4, (2, 3)) if "mw2" in spec else RCAR_MAP
    with Function(device.attach(), clock=device.clock) as function:
        both = Both(device, Vntb(function, bars, timeout=5.0), queues)
        yield both
        both.transport.close()
    assert device.left_behind() == []
    device.endpoint.close()


@pytest.mark.parametrize(
    "both",
    [
        (clients(2, 2), 2),
        (clients(4, 4), 4),
        (f"{clients(8, 8)},vntb.mw1=4M", 8),
        (f"{TWO_WINDOWS},vntb.peer_queues=2", 2),
    ],
    indirect=True,
    ids=["two-shares", "four-shares", "eight-shares", "two-windows"],
)
def test_all_queue_pairs_come_up_and_each_has_its_own_ring(both: Both) -> None:
    """A frame of each is answered by the same, as nothing of it is another's."""
    both.transport.prepare()
    every = list(range(len(both.transport.pairs)))
    assert both.join(40) == both.up() == every
    station = TransportPinger.MAC
    ask = b"\xff" * 6 + station + b"\x08\x06\0\1\x08\0\x06\x04\0\1" + station
    ask += bytes([192, 0, 2, 1]) + bytes(6) + bytes([192, 0, 2, 2])
    for _ in range(2 * both.transport.pairs[0].rings.tx.entries):
        for pair in both.transport.pairs:
            pair.send(ask)
        both.vntb.function.pause(0.02)
        for pair in both.transport.pairs:
            answer = pair.receive()
            assert answer is not None
            assert answer[:6] == station
            assert pair.receive() is None


@pytest.mark.parametrize("both", [(clients(2, 2), 1)], indirect=True)
def test_a_queue_pair_that_is_not_used_here_stays_down_there(both: Both) -> None:
    """Its bit of QP_LINKS came back with pair 0's: the endpoint's stack sent into the void."""
    both.transport.open()
    both.vntb.function.pause(0.1)
    assert both.up() == [0]
    both.transport.close()
    both.transport.prepare()
    assert both.join() == both.up() == [0]


@pytest.mark.parametrize("both", [(clients(2, 1), 2)], indirect=True)
def test_a_queue_pair_that_the_endpoint_does_not_use_stays_down_here(both: Both) -> None:
    """ntb_qp_link_work() writes back what it has read, and pair 1's bit would come with it."""
    both.transport.prepare()
    assert both.join() == [0]
    both.peer.set_channels(2)
    assert both.join() == both.up() == [0, 1]


@pytest.mark.parametrize("both", [(clients(4, 4), 4)], indirect=True)
def test_an_interface_that_is_set_down_and_up(both: Both) -> None:
    """ntb_transport_link_down() leaves the bits of the pairs that went down before it."""
    both.transport.prepare()
    assert both.join() == [0, 1, 2, 3]
    for pair in both.peer.open_pairs:
        pair.link_down()
    assert both.vntb.spad_read(QP_LINKS) == 0b0111
    assert len(both.hear()) == 4
    assert both.join() == []
    for pair in both.peer.open_pairs:
        pair.link_up()
    both.peer.due = both.device.clock.now()
    assert both.join() == both.up() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "both", [(f"{TWO_WINDOWS},vntb.mw2=64K,vntb.peer_queues=2", 1)], indirect=True
)
def test_a_queue_pair_without_slots_is_in_the_way_of_none(both: Both) -> None:
    both.transport.prepare()
    assert both.join() == both.up() == [0]


@pytest.mark.parametrize("both", [(clients(2, 2), 2)], indirect=True)
@pytest.mark.parametrize("late", [False, True])
def test_an_mtu_that_is_changed_there(both: Both, late: bool) -> None:
    """ntb_netdev_change_mtu(): down and up at once, before the host has heard of it or after."""
    both.transport.prepare()
    assert both.join() == [0, 1]
    for pair in both.peer.open_pairs:
        pair.link_down()
    if not late:
        assert len(both.hear()) == 2
    for pair in both.peer.open_pairs:
        pair.link_up()
    both.peer.due = both.device.clock.now()
    both.vntb.function.pause(0.02)
    if late:
        assert both.up() == [0, 1]
        assert len(both.hear()) == 2
    assert both.join() == both.up() == [0, 1]


@pytest.mark.parametrize("both", [(clients(2, 2), 2)], indirect=True)
def test_a_queue_pair_whose_bit_was_overwritten_is_known_by_its_frames(both: Both) -> None:
    """Up by what was announced before, and pair 0's ntb_qp_link_work() wrote 1 since."""
    both.transport.prepare()
    assert both.join() == [0, 1]
    first, second = both.peer.open_pairs
    second.send(b"before")
    assert both.transport.pairs[1].receive() == b"before"
    first.link_down()
    assert [pair.number for pair in both.hear()] == [0]
    second.link_down()
    first.link_up()
    second.link_up()
    both.peer.due = both.device.clock.now()
    both.vntb.function.pause(0.001)
    assert both.up() == [1]
    second.send(b"early")
    assert [pair.number for pair in both.hear()] == [1]
    both.vntb.function.pause(0.02)
    assert both.vntb.spad_read(QP_LINKS) == 0b01
    assert both.join() == both.up() == [0, 1]
    assert both.transport.pairs[1].receive() == b"early"


@pytest.mark.parametrize("both", [(clients(2, 2), 2)], indirect=True)
def test_one_queue_pair_goes_down_and_the_other_stays(both: Both) -> None:
    """ethtool -L with one queue less (ntb_dec_channels)."""
    both.transport.prepare()
    assert both.join() == [0, 1]
    both.peer.open_pairs[1].link_down()
    assert [pair.number for pair in both.hear()] == [1]
    assert both.join() == both.up() == [0]
    # And from here: LINK_DOWN_FLAG is of one queue pair.
    both.transport.pairs[0].send(b"", LINK_DOWN)
    both.vntb.function.pause(0.006)
    assert both.up() == []


@pytest.mark.parametrize(
    ("both", "limit"),
    [
        ((QUICK, 2), "has 1 queue pair, by its db_count 4 and num_mws 1"),
        ((f"{QUICK},vntb.db_count=8", 2), "has 1 queue pair, by its num_mws 1"),
        # max_num_clients has to be less than the doorbells allow, or it counts for nothing.
        ((f"{QUICK},vntb.db_count=5,vntb.peer_max_clients=2", 2), "has 1 queue pair, by its num"),
        ((clients(2, 2), 3), "2 queue pairs, by its ntb_transport's parameter max_num_clients"),
    ],
    indirect=["both"],
)
def test_too_many_queues_are_refused_with_what_limits_them(both: Both, limit: str) -> None:
    with pytest.raises(UsageError, match=limit) as caught:
        both.transport.prepare()
    assert "`queues`" in caught.value.message
    wanted = both.transport._queues
    assert f"db_count {wanted + 4} or more" in caught.value.hint
    assert f"max_num_clients={wanted}" in caught.value.hint


@pytest.mark.parametrize("both", [(clients(2, 2), 29), (clients(2, 2), 64)], indirect=True)
def test_more_queues_than_any_endpoint_has_get_no_cure_that_it_refuses(both: Both) -> None:
    """The cure of 64 was db_count 68, and epf_ntb_db_count_store() takes 32 at most."""
    with pytest.raises(UsageError, match="has 2 queue pairs") as caught:
        both.transport.prepare()
    assert caught.value.hint.startswith("`queues` 28 at most: pci-epf-vntb has a db_count of 32")


@pytest.mark.parametrize("both", [(clients(2, 2), 2)], indirect=True)
def test_too_few_vectors_are_refused(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vntb, "vectors", 3)
    with pytest.raises(NotPassed, match="2 queue pairs need 4 MSI vectors, there are 3") as caught:
        both.transport.prepare()
    assert caught.value.reason is Reason.NO_VECTORS
    assert caught.value.hint.startswith("`queues` 1 at most")


@pytest.mark.parametrize("both", [(clients(3), 1)], indirect=True)
def test_three_queue_pairs_in_a_window_have_no_whole_words(both: Both) -> None:
    with pytest.raises(NotPassed, match="3 queue pairs in window 0: slots of") as caught:
        both.transport.prepare()
    assert "1, 2 or 4" in caught.value.hint


@pytest.mark.parametrize("both", [(clients(2, 2), 1)], indirect=True)
def test_ping_and_perf_use_the_first_of_several(both: Both) -> None:
    """The bits of the endpoint's pairs overwrite each other, so pair 0's is rarely seen."""
    report = PingReport()
    us, them = (bytes([192, 0, 2, last]) for last in (1, 2))
    vntb = both.vntb
    run_pings(TransportPinger(vntb, ip=us, peer_ip=them), vntb, report, count=3, interval=0.0)
    assert len(report.trips) == 3
    rates: list[Rate] = []
    measure(vntb, 0, rates.append, chunk=4096, seconds=0.001)
    assert rates


@pytest.mark.parametrize("both", [(TWO_WINDOWS, 1)], indirect=True)
def test_windows_without_scratchpads_for_their_sizes_are_refused(both: Both) -> None:
    """By an endpoint that lies; ntb_transport_probe() takes fewer windows then."""
    both.transport._vntb.spads = 7
    with pytest.raises(NotPassed, match="announces 2 windows and") as caught:
        both.transport.prepare()
    assert "are for 1;" in caught.value.hint
