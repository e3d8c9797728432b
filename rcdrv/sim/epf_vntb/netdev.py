"""The endpoint's ntb_netdev, after drivers/net/ntb_netdev.c, with a network stack of echoes."""

from __future__ import annotations

from rcdrv.sim.epf_vntb.peer import Bridge
from rcdrv.sim.epf_vntb.transport import SimQueuePair, SimTransport


class Netdev(SimTransport):
    """A queue for each queue pair in use, which one half of a network stack answers: ARP and ICMP
    echo, each by the queue that it came by."""

    MAC = bytes.fromhex("020000000002")

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        self._ip = bytes(map(int, bridge.config.peer_ip.split(".")))
        self._channels_due: float | None = None
        """Time of ``ethtool -L``."""
        # NTB_NETDEV_DEFAULT_QUEUES; without a queue pair ntb_netdev_probe() fails.
        self.set_channels(1)
        if not bridge.config.peer_queues_delay_ms:
            self.set_channels(bridge.config.peer_queues)

    def set_channels(self, count: int) -> None:
        """ntb_inc_channels(): all of the new queues, or none."""
        if count <= len(self.pairs):
            new = self.pairs[len(self.open_pairs) : count]
            self.open_pairs += new
            if self._up:
                for pair in new:
                    pair.link_up()
                self.due = self._bridge.clock()

    def link_event(self, up: bool) -> None:
        super().link_event(up)
        config = self._bridge.config
        if up and len(self.open_pairs) < config.peer_queues:
            self._channels_due = self._bridge.clock() + config.peer_queues_delay_ms / 1000

    def run(self) -> None:
        if self._channels_due is not None and self._bridge.clock() >= self._channels_due:
            self._channels_due = None
            self.set_channels(self._bridge.config.peer_queues)
        super().run()

    def _schedule(self, due: float | None) -> None:
        dues = [one for one in (due, self._channels_due) if one is not None]
        super()._schedule(min(dues, default=None))

    def rx_handler(self, pair: SimQueuePair, packet: bytes | memoryview) -> bytes:
        """Return the network stack's reply: ARP, ICMP echo, or empty."""
        packet = bytes(packet)
        kind = packet[12:14]
        ethernet = packet[6:12] + self.MAC + kind
        if kind == b"\x08\x06" and packet[20:22] == b"\0\1" and packet[38:42] == self._ip:
            return ethernet + packet[14:20] + b"\0\2" + self.MAC + self._ip + packet[22:32]
        if kind != b"\x08\0" or packet[23:24] != b"\1" or packet[30:34] != self._ip:
            return b""
        start = 14 + 4 * (packet[14] & 0xF)
        total = int.from_bytes(packet[16:18], "big")
        echo = packet[start : 14 + total]
        if echo[:1] != b"\x08":
            return b""
        reply = b"\0\0\0\0" + echo[4:]
        reply = reply[:2] + _checksum(reply) + reply[4:]
        # Swapping the addresses leaves the IP header's checksum as it is.
        header = packet[14:26] + packet[30:34] + packet[26:30] + packet[34:start]
        return ethernet + header + reply


def _checksum(data: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (total ^ 0xFFFF).to_bytes(2, "big")
