"""Packets of a ping over Ethernet: ARP and ICMP echo (RFC 826, 791, 792)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

BROADCAST = b"\xff" * 6
_ARP, _IPV4 = 0x0806, 0x0800
_ECHO, _ECHO_REPLY = 8, 0
_ARP_HEAD = struct.Struct(">HHBBH")
_ARP_REQUEST, _ARP_REPLY = 1, 2
_IP_HEAD = struct.Struct(">BBHHHBBH4s4s")
_ICMP_HEAD = struct.Struct(">BBHHH")

OVERHEAD = 14 + _IP_HEAD.size + _ICMP_HEAD.size
"""Bytes of an echo's frame in addition to its data."""


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071); 0 if the data includes a valid one."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class EchoReply:
    """An ICMP echo reply to us."""

    identifier: int
    sequence: int
    data: bytes
    ttl: int


class Station:
    """The host's end of the Ethernet: its address and the peer's, if known."""

    def __init__(self, mac: bytes, ip: bytes, peer_ip: bytes) -> None:
        self.mac, self.ip, self.peer_ip = mac, ip, peer_ip
        self.peer_mac: bytes | None = None

    def arp_request(self) -> bytes:
        """Return an ARP request for the peer's address."""
        return self._arp(_ARP_REQUEST, BROADCAST, bytes(6), self.peer_ip)

    def _arp(self, operation: int, to: bytes, mac: bytes, ip: bytes) -> bytes:
        head = _ARP_HEAD.pack(1, _IPV4, 6, 4, operation)
        return to + self.mac + _ARP.to_bytes(2, "big") + head + self.mac + self.ip + mac + ip

    def echo(self, identifier: int, sequence: int, data: bytes) -> bytes:
        """Return an echo request; the peer's MAC address must be known."""
        assert self.peer_mac is not None
        icmp = _ICMP_HEAD.pack(_ECHO, 0, 0, identifier, sequence) + data
        icmp = icmp[:2] + checksum(icmp).to_bytes(2, "big") + icmp[4:]
        length = _IP_HEAD.size + len(icmp)
        head = _IP_HEAD.pack(0x45, 0, length, 0, 0x4000, 64, 1, 0, self.ip, self.peer_ip)
        head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
        return self.peer_mac + self.mac + _IPV4.to_bytes(2, "big") + head + icmp

    def receive(self, frame: bytes) -> EchoReply | bytes | None:
        """Return a reply to our echo, or an answer to send; None if the frame is not for us."""
        if len(frame) < 34:
            return None
        kind = int.from_bytes(frame[12:14], "big")
        if kind == _ARP and len(frame) >= 42:
            return self._receive_arp(frame[14:42])
        return self._receive_ip(frame[14:]) if kind == _IPV4 else None

    def _receive_arp(self, packet: bytes) -> bytes | None:
        *_, operation = _ARP_HEAD.unpack(packet[:8])
        mac, ip, target = packet[8:14], packet[14:18], packet[24:28]
        if target != self.ip:
            return None
        if ip == self.peer_ip:
            self.peer_mac = mac
        return self._arp(_ARP_REPLY, mac, mac, ip) if operation == _ARP_REQUEST else None

    def _receive_ip(self, packet: bytes) -> EchoReply | None:
        size = 4 * (packet[0] & 0xF)
        length = int.from_bytes(packet[2:4], "big")
        icmp = packet[size:length]
        if packet[9] != 1 or packet[16:20] != self.ip or len(icmp) < 8 or checksum(icmp):
            return None
        kind, _, _, identifier, sequence = _ICMP_HEAD.unpack(icmp[:8])
        if kind != _ECHO_REPLY or packet[12:16] != self.peer_ip:
            return None
        return EchoReply(identifier, sequence, icmp[8:], packet[8])
