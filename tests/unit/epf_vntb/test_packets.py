"""Packets, rings and statistics: what needs no endpoint."""

from __future__ import annotations

import pytest

from rcdrv.epf_vntb.packets import OVERHEAD, EchoReply, Station, checksum
from rcdrv.epf_vntb.ping import RoundTrip, Spread
from rcdrv.epf_vntb.registers import BarMap, choose_map
from rcdrv.epf_vntb.rings import Ring
from rcdrv.errors import UsageError

US = Station(b"\2\0\0\0\0\1", bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]))


def them() -> Station:
    station = Station(b"\2\0\0\0\0\2", US.peer_ip, US.ip)
    station.peer_mac = US.mac
    return station


def test_checksum_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    assert checksum(b"\1") == 0xFEFF


def test_arp() -> None:
    station = Station(US.mac, US.ip, US.peer_ip)
    peer = Station(b"\2\0\0\0\0\2", US.peer_ip, US.ip)
    answer = peer.receive(station.arp_request())
    assert isinstance(answer, bytes)
    assert peer.peer_mac == station.mac
    assert station.receive(answer) is None
    assert station.peer_mac == peer.mac
    assert peer.receive(Station(US.mac, US.ip, b"\1\2\3\4").arp_request()) is None


def test_echo() -> None:
    US.peer_mac = them().mac
    frame = US.echo(7, 3, b"data!")
    assert len(frame) == OVERHEAD + 5
    assert checksum(frame[14:34]) == 0
    assert checksum(frame[34:]) == 0
    back = frame[6:12] + frame[:6] + frame[12:26] + frame[30:34] + frame[26:30]
    icmp = b"\0\0\0\0" + frame[38:]
    reply = back + icmp[:2] + checksum(icmp).to_bytes(2, "big") + icmp[4:]
    assert US.receive(reply) == EchoReply(7, 3, b"data!", 64)
    assert US.receive(reply + bytes(6)) == EchoReply(7, 3, b"data!", 64), "padding"
    assert US.receive(reply[:-1] + b"?") is None, "a wrong checksum"
    for size in range(len(reply)):
        assert US.receive(reply[:size]) is None


def test_rings_are_cut_as_the_kernel_does() -> None:
    ring = Ring.of(1 << 20, 1, 0x10000)
    assert (ring.end, ring.frame, ring.entries) == (0xFFFFC, 0x10000, 15)
    assert ring.header(0) == 0x10000 - 12
    with pytest.raises(ValueError, match="not whole words"):
        Ring.of(0x10000, 1, 0x10000)  # the kernel makes slots of 32766 bytes
    with pytest.raises(ValueError, match="no slots"):
        Ring.of(16, 1, 0x10000)


def test_spread() -> None:
    spread = Spread.of([RoundTrip(n, n * 1_000_000, 4) for n in range(1, 101)])
    assert (spread.minimum, spread.average, spread.maximum) == (1, 50.5, 100)
    assert (spread.p50, spread.p90, spread.p99, spread.p999) == (50, 90, 99, 100)
    assert spread.mdev == pytest.approx(28.866, abs=0.001)


def test_bar_maps() -> None:
    # pci-epf-vntb's, not pci-epf-ntb's as in ntb_epf_pci_tbl: peer scratchpads are no doorbells
    assert choose_map(0x104C, 0xB00D) == BarMap(0, 0, 1, (2, 3, 4, 5))
    assert choose_map(0x1957, 0x0809).windows == (4, 5)
    assert choose_map(0x1912, 0x0030) == BarMap(0, 0, 4, (2,))
    assert choose_map(0x1912, 0x0030, control=1) == BarMap(1, 1, 4, (2,))
    assert choose_map(1, 2, control=0, doorbell=3, windows=(1,)) == BarMap(0, 0, 3, (1,))
    with pytest.raises(UsageError, match="no BAR map"):
        choose_map(1, 2, control=0, doorbell=3)
