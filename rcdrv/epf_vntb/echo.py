"""Round trips by ICMP echo over queue pair 0 of ntb_transport."""

from __future__ import annotations

import os
from collections.abc import Callable

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.packets import OVERHEAD, EchoReply, Station
from rcdrv.epf_vntb.ping import RoundTrip
from rcdrv.epf_vntb.transport import MTU, Transport
from rcdrv.errors import UsageError
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import Deadline


class TransportPinger:
    """Ping by ICMP echo in Ethernet frames of ntb_netdev, answered by the endpoint's network stack.

    :param size: bytes of data in an echo
    """

    MAC = bytes.fromhex("020000000001")

    def __init__(
        self, vntb: Vntb, *, ip: bytes, peer_ip: bytes, size: int = 56, mtu: int = MTU
    ) -> None:
        self._vntb = vntb
        self._transport = Transport(vntb, mtu=mtu)
        self._station = Station(self.MAC, ip, peer_ip)
        self._identifier = os.getpid() & 0xFFFF
        self._data = bytes(index & 0xFF for index in range(size))

    @property
    def title(self) -> str:
        size = len(self._data)
        return f"{self.source} over ntb_transport: {size}({size + OVERHEAD - 14}) bytes of data"

    @property
    def source(self) -> str:
        return ".".join(map(str, self._station.peer_ip))

    def open(self) -> None:
        self._queue = self._transport.open()
        if len(self._data) + OVERHEAD > min(self._queue.largest, 0xFFFF):
            raise UsageError(
                f"`size` {len(self._data)}: a packet takes"
                f" {min(self._queue.largest, 0xFFFF) - OVERHEAD} at most"
            )
        self._find_peer()

    def _find_peer(self) -> None:
        deadline = self._vntb.function.deadline(self._vntb.timeout)
        while self._station.peer_mac is None:
            self._vntb.check_link()
            if deadline.expired:
                raise NotPassed(
                    Reason.SILENT,
                    f"no answer to ARP for {self.source} within {self._vntb.timeout:g} s",
                    hint="`peer_ip` is the address of the endpoint's ntb_netdev (ip addr add)",
                )
            self._queue.send(self._station.arp_request())
            soon = self._vntb.function.deadline(min(deadline.remaining, 0.1))
            self._exchange(soon, lambda _reply: False)

    def ping(self, sequence: int) -> RoundTrip:
        now_ns = self._vntb.function.clock.now_ns
        start = now_ns()
        self._queue.send(self._station.echo(self._identifier, sequence & 0xFFFF, self._data))

        def ours(reply: EchoReply) -> bool:
            return (reply.identifier, reply.sequence) == (self._identifier, sequence & 0xFFFF)

        reply = self._exchange(self._vntb.function.deadline(self._vntb.timeout), ours)
        now = now_ns()
        if reply is None:
            self._vntb.check_link()
            raise NotPassed(
                Reason.SILENT,
                f"{self.source} does not answer within {self._vntb.timeout:g} s",
                hint="on the endpoint: what do 'ip -s link' and the qp0 stats in debugfs count?",
            )
        if reply.data != self._data:
            raise NotPassed(
                Reason.DATA_MISMATCH,
                f"icmp_seq {sequence}: the data came back changed",
                hint="its checksum is right, so the endpoint's stack sent it so",
            )
        return RoundTrip(sequence, now - start, len(reply.data) + 8)

    def _exchange(
        self, deadline: Deadline, wanted: Callable[[EchoReply], bool]
    ) -> EchoReply | None:
        """Receive packets and answer requests until the wanted reply or the deadline."""
        resolved = self._station.peer_mac is not None
        rang = True
        while True:
            packet = self._queue.receive()
            # The packet may have arrived after the wait, ahead of its interrupt.
            if packet is not None and resolved and not (rang or self._queue.wait_long()):
                self._vntb.check_link()
                raise NotPassed(
                    Reason.IRQ_LOST,
                    "the endpoint put a packet into our ring, but MSI vector 2 did not fire",
                    hint="it raises MSI only; does the endpoint's dmesg say that raising failed?",
                )
            if packet is None:
                if deadline.expired or (not resolved and self._station.peer_mac is not None):
                    return None
                rang = self._queue.wait(deadline)
                if not rang:
                    self._vntb.check_link()
                continue
            answer = self._station.receive(packet)
            if isinstance(answer, bytes):
                self._queue.send(answer)
            elif isinstance(answer, EchoReply) and wanted(answer):
                return answer
            if deadline.expired:  # packets of others may never stop
                return None
            self._vntb.function.check()

    def close(self) -> None:
        self._transport.close()
