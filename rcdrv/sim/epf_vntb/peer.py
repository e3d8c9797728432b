"""Clients of the kernel's NTB core on the endpoint, on top of pci-epf-vntb.

Each is the endpoint's side of one kernel module, and cites its functions. They act only in
:meth:`run`, when they are due. An interrupt or a link event makes them due, like a timer, a tasklet
or a work in the kernel.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Protocol

from rcdrv.mmio import MappedWindow, barrier
from rcdrv.sim.epf_vntb import VntbLayout
from rcdrv.sim.faults import Faults


class Bridge(Protocol):
    """The endpoint's ntb_dev; :class:`rcdrv.sim.epf_vntb.function.SimEpfVntb` is one."""

    config: VntbLayout
    faults: Faults

    def clock(self) -> float: ...
    def jiffies(self, milliseconds: int) -> float: ...

    @property
    def db_valid_mask(self) -> int: ...
    @property
    def link_is_up(self) -> bool: ...

    def spad_read(self, index: int) -> int: ...
    def spad_write(self, index: int, value: int) -> None: ...
    def peer_spad_write(self, index: int, value: int) -> None: ...
    def peer_db_set(self, bits: int) -> None: ...
    def mw_set_trans(self, index: int) -> MappedWindow: ...
    def mw_clear_trans(self, index: int) -> None: ...
    def mw_view(self, index: int) -> memoryview | None: ...
    def mw_write(self, index: int, offset: int, data: bytes | memoryview) -> None: ...


class Peer:
    """No client; the base class of all clients."""

    wake_fd = -1
    """Descriptor that is readable when :meth:`next_due` may be sooner than before."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.due: float | None = None
        """Time of the next :meth:`run`; None if there is none."""

    def next_due(self) -> float | None:
        """Return :attr:`due`, after a look at what may have made it sooner."""
        return self.due

    def link_event(self, up: bool) -> None:
        """ntb_ctx_ops.link_event"""

    def db_event(self, db: int) -> None:
        """ntb_ctx_ops.db_event"""

    def run(self) -> None:
        self.due = None

    def remove(self) -> None:
        """ntb_client_ops.remove"""
        self.due = None

    def close(self) -> None:
        """Free its resources on this machine."""


class PingPong(Peer):
    """drivers/ntb/test/ntb_pingpong.c.

    It ignores which doorbell rings, so if one ring reports several, each is counted.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        self._count = 0

    def link_event(self, up: bool) -> None:
        """pp_setup(): send the first ping."""
        self.due = self._later() if up else None

    def db_event(self, db: int) -> None:
        """pp_pong()"""
        self._count = (self._count + 1) & 0xFFFF_FFFF
        self.due = self._later()

    def run(self) -> None:
        """pp_ping(), to port 0"""
        self.due = None
        self._bridge.peer_spad_write(0, self._count)
        self._bridge.peer_db_set(1 << 0)

    def remove(self) -> None:
        super().remove()
        self._count = 0

    def _later(self) -> float:
        return self._bridge.clock() + self._bridge.config.peer_delay_ms / 1000


class Tool(Peer):
    """drivers/ntb/test/ntb_tool.c, after a size was written into each ``mw_trans``."""

    def link_event(self, up: bool) -> None:
        for index in range(self._bridge.config.num_mws):
            if up:
                with contextlib.suppress(OSError):  # a window without a BAR
                    self._bridge.mw_set_trans(index)
            else:
                self._bridge.mw_clear_trans(index)


# ntb_transport.c: its scratchpads, and where things are in a frame.
_VERSION, _QP_LINKS, _NUM_QPS, _NUM_MWS, _MW0_SZ_HIGH, _MW0_SZ_LOW = range(6)
_TRANSPORT_VERSION = 4
_MTU = 0x10000
_RX_INFO_SIZE = 4
HEADER = struct.Struct("<III")  # ver, len, flags
_DONE, _LINK_DOWN = 1, 2
_LINK_RETRY_MS = 10


class Netdev(Peer):
    """drivers/ntb/ntb_transport.c with drivers/net/ntb_netdev.c on queue pair 0, and a network
    stack with ARP and ICMP echo."""

    MAC = bytes.fromhex("020000000002")

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        config = bridge.config
        # ntb_transport_probe(): ilog2 of the valid doorbells, and a window each at least.
        self._qps = min(bridge.db_valid_mask.bit_length() - 1, config.num_mws)
        self._shares = -(-self._qps // config.num_mws)
        self._ip = bytes(map(int, config.peer_ip.split(".")))
        self._memory: MappedWindow | None = None
        self._reset()

    def _reset(self) -> None:
        self._up = self._qp_up = False
        self._rx_index = self._rx_packets = 0
        self._tx_index = self._tx_packets = 0
        self._rung = False

    # -- the link ---------------------------------------------------------------------------------

    def link_event(self, up: bool) -> None:
        """ntb_transport_event_callback()"""
        if not up:
            self._cleanup()
        self.due = self._bridge.clock() if up else None

    def _cleanup(self) -> None:
        """ntb_transport_link_cleanup()"""
        self._reset()
        self._memory = None
        for index in range(self._bridge.config.num_mws):
            self._bridge.mw_clear_trans(index)
        for index in range(self._bridge.config.spad_count):
            self._bridge.spad_write(index, 0)

    def remove(self) -> None:
        """ntb_transport_free(), after ntb_netdev has taken the queue's link down."""
        if self._qp_up:
            # ntb_transport_link_down()
            self._bridge.peer_spad_write(_QP_LINKS, 0)
            self._send(b"", _LINK_DOWN)
        self._cleanup()
        self.due = None

    def db_event(self, db: int) -> None:
        """ntb_transport_doorbell_callback()"""
        if self._qp_up and db == 0:
            self._rung = True
            self.due = self._bridge.clock()

    def run(self) -> None:
        self.due = None
        if not self._up:
            self._link_work()
        if self._up and not self._qp_up:
            self._qp_link_work()
        if self._qp_up:
            self._receive()
        elif self._qps and self._bridge.link_is_up:
            self.due = self._bridge.jiffies(_LINK_RETRY_MS)

    def _link_work(self) -> None:
        """ntb_transport_link_work()"""
        bridge, config = self._bridge, self._bridge.config
        for index, size in enumerate(config.mw_sizes):
            bridge.peer_spad_write(_MW0_SZ_HIGH + 2 * index, size >> 32)
            bridge.peer_spad_write(_MW0_SZ_LOW + 2 * index, size & 0xFFFF_FFFF)
        bridge.peer_spad_write(_NUM_MWS, config.num_mws)
        bridge.peer_spad_write(_NUM_QPS, self._qps)
        bridge.peer_spad_write(_VERSION, _TRANSPORT_VERSION)
        said = [bridge.spad_read(index) for index in (_VERSION, _NUM_QPS, _NUM_MWS)]
        if said != [_TRANSPORT_VERSION, self._qps, config.num_mws]:
            return
        high, low = (bridge.spad_read(spad) for spad in (_MW0_SZ_HIGH, _MW0_SZ_LOW))
        size = high << 32 | low
        end = size // self._shares - _RX_INFO_SIZE
        frame = min(_MTU, end // 2)
        # vntb_epf_mw_set_trans() takes no more than mw1. The rest the kernel would take, and divide
        # by zero, or make slots whose headers are no words.
        if size > config.mw1 or frame <= HEADER.size or end % 4 or frame % 4:
            return
        for index in range(config.num_mws):
            try:
                memory = bridge.mw_set_trans(index)
            except OSError:  # ntb_set_mw() fails, and the link does not come up
                return
            if index == 0:
                self._memory = memory
                self._set_up_queue(size)
        self._up = True

    def _set_up_queue(self, rx_size: int) -> None:
        """ntb_transport_setup_qp_mw(), ntb_transport_init_queue()"""
        shares = self._shares
        self._rx_end = rx_size // shares - _RX_INFO_SIZE
        self._rx_frame = min(_MTU, self._rx_end // 2)
        self._rx_entries = self._rx_end // self._rx_frame
        self._tx_end = self._bridge.config.mw1 // shares - _RX_INFO_SIZE
        self._tx_frame = min(_MTU, self._tx_end // 2)
        self._tx_entries = self._tx_end // self._tx_frame
        assert self._memory is not None
        self._memory.write32(self._rx_end, self._rx_entries - 1)

    def _qp_link_work(self) -> None:
        """ntb_qp_link_work()"""
        links = self._bridge.spad_read(_QP_LINKS)
        self._bridge.peer_spad_write(_QP_LINKS, links | 1 << 0)
        self._qp_up = bool(links & 1 << 0)

    # -- packets ----------------------------------------------------------------------------------

    def _receive(self) -> None:
        """ntb_transport_rxc_db(), ntb_process_rxc()"""
        memory = self._memory
        assert memory is not None
        for _ in range(self._rx_entries):
            start = self._rx_frame * self._rx_index
            header = start + self._rx_frame - HEADER.size
            flags = memory.read32(header + 8)
            if not flags & _DONE:
                if not self._rung:
                    return
                self._rung = False  # ntb_db_clear(), and another look
                continue
            barrier()  # the flags are written last; the rest was stale until then
            if flags & _LINK_DOWN:
                # ntb_qp_link_cleanup_work()
                memory.write32(header + 8, 0)
                up = self._up
                self._reset()
                self._up = up
                memory.write32(self._rx_end, self._rx_entries - 1)
                self.due = self._bridge.jiffies(_LINK_RETRY_MS)
                return
            version, length = memory.read32(header), memory.read32(header + 4)
            if version != self._rx_packets:
                return
            answer = b""
            if length <= self._rx_frame - HEADER.size:
                self._rx_packets = (self._rx_packets + 1) & 0xFFFF_FFFF
                answer = self._answer(self._packet(start, length))
            # ntb_complete_rxc(), after which the host may write the slot again.
            memory.write32(header + 8, 0)
            barrier()
            self._write(self._tx_end, self._rx_index.to_bytes(4, "little"))
            self._rx_index = (self._rx_index + 1) % self._rx_entries
            if answer:
                self._send(answer)
        self.due = self._bridge.clock()

    def _packet(self, start: int, length: int) -> bytes | memoryview:
        assert self._memory is not None
        return self._memory.read_block(start, length)

    def _send(self, packet: bytes, flags: int = 0) -> None:
        """ntb_process_tx(), ntb_async_tx(), ntb_tx_copy_callback()"""
        if not self._full():
            self._put(len(packet), packet, flags)
            self._bridge.peer_db_set(1 << 0)

    def _full(self) -> bool:
        """ntb_transport_tx_free_entry() is 0."""
        assert self._memory is not None
        return self._memory.read32(self._rx_end) == self._tx_index

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        """Write into the host's memory behind the window."""
        self._bridge.mw_write(0, offset, data)

    def _put(self, length: int, packet: bytes | memoryview, flags: int = 0) -> None:
        """Fill the next slot.

        :param packet: the data; empty if it is in the slot already
        """
        faults = self._bridge.faults
        if "sequence-gap" in faults and self._tx_packets == faults.get("sequence-gap", 0):
            self._tx_packets += 1
        start = self._tx_frame * self._tx_index
        header = start + self._tx_frame - HEADER.size
        self._tx_index = (self._tx_index + 1) % self._tx_entries
        self._write(header, HEADER.pack(self._tx_packets, length, 0)[:8])
        if packet:
            self._write(start, packet)
        barrier()  # the flags are seen last
        self._write(header + 8, (flags | _DONE).to_bytes(4, "little"))
        self._tx_packets = (self._tx_packets + 1) & 0xFFFF_FFFF

    def _answer(self, packet: bytes | memoryview) -> bytes:
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
