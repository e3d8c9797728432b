"""The endpoint's ntb_transport, after drivers/ntb/ntb_transport.c, whose functions are cited."""

from __future__ import annotations

import struct

from rcdrv.mmio import MappedWindow, barrier
from rcdrv.sim.epf_vntb.peer import Bridge, Peer

# Scratchpads, and where things are in a frame.
_VERSION, _QP_LINKS, _NUM_QPS, _NUM_MWS, _MW0_SZ_HIGH, _MW0_SZ_LOW = range(6)
_TRANSPORT_VERSION = 4
_MTU = 0x10000
_RX_INFO_SIZE = 4
HEADER = struct.Struct("<III")  # ver, len, flags
_DONE, _LINK_DOWN = 1, 2
_LINK_RETRY_MS = 10


class SimTransport(Peer):
    """struct ntb_transport_ctx: link, windows and queue pairs.

    A client (:class:`rcdrv.sim.epf_vntb.netdev.Netdev`) says how many queue pairs it uses, and
    takes what they receive.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        config = bridge.config
        self.windows, count = config.transport_windows, config.queue_pairs
        self.pairs = [SimQueuePair(self, bridge, number, count) for number in range(count)]
        self.open_pairs: list[SimQueuePair] = []
        """Queue pairs of the client (ntb_transport_create_queue), which it has linked up."""
        self._up = False
        self._link_due: float | None = None
        """Time of ntb_transport_link_work()."""

    def rx_handler(self, pair: SimQueuePair, packet: bytes | memoryview) -> bytes:
        """Take a packet, which is in its slot until then; return one to send once that is free."""
        raise NotImplementedError

    def event_handler(self, pair: SimQueuePair) -> None:
        """The link of a queue pair went up or down."""

    # -- the link ---------------------------------------------------------------------------------

    def link_event(self, up: bool) -> None:
        """ntb_transport_event_callback()"""
        if not up:
            self._cleanup()
        self.due = self._link_due = self._bridge.clock() if up else None

    def _cleanup(self) -> None:
        """ntb_transport_link_cleanup()"""
        for pair in self.open_pairs:
            pair.cleanup()
        self._up = False
        self._link_due = None
        for pair in self.pairs:
            pair.memory = None
        for index in range(self.windows):
            self._bridge.mw_clear_trans(index)
        for index in range(self._bridge.config.spad_count):
            self._bridge.spad_write(index, 0)

    def remove(self) -> None:
        """ntb_transport_free(), after ntb_netdev has taken the queue pairs' links down."""
        for pair in self.open_pairs:
            pair.link_down()
        self._cleanup()
        self.due = None

    def db_event(self, db: int) -> None:
        """ntb_transport_doorbell_callback()"""
        for pair in self.open_pairs:
            if pair.number == db and pair.up:
                pair.rung = True
                self.due = pair.due = self._bridge.clock()

    def run(self) -> None:
        now = self._bridge.clock()
        if self._link_due is not None and now >= self._link_due:
            self._link_due = None
            self._link_work()
        for pair in self.open_pairs:
            pair.run(now)
        self._schedule(self._link_due)

    def _schedule(self, due: float | None) -> None:
        """Be due then, or when the first queue pair is."""
        for pair in self.open_pairs:
            if pair.due is not None and (due is None or pair.due < due):
                due = pair.due
        self.due = due

    def _link_work(self) -> None:
        """ntb_transport_link_work()"""
        bridge, windows, count = self._bridge, self.windows, len(self.pairs)
        if not windows:
            return
        sizes = bridge.config.mw_sizes[:windows]
        for index, size in enumerate(sizes):
            bridge.peer_spad_write(_MW0_SZ_HIGH + 2 * index, size >> 32)
            bridge.peer_spad_write(_MW0_SZ_LOW + 2 * index, size & 0xFFFF_FFFF)
        bridge.peer_spad_write(_NUM_MWS, windows)
        bridge.peer_spad_write(_NUM_QPS, count)
        bridge.peer_spad_write(_VERSION, _TRANSPORT_VERSION)
        said = [bridge.spad_read(index) for index in (_VERSION, _NUM_QPS, _NUM_MWS)]
        if said == [_TRANSPORT_VERSION, count, windows] and self._set_windows(sizes):
            self._up = True
            for pair in self.open_pairs:
                pair.link_up()
        elif bridge.link_is_up:
            self._link_due = bridge.jiffies(_LINK_RETRY_MS)

    def _set_windows(self, sizes: tuple[int, ...]) -> bool:
        """ntb_set_mw() and ntb_transport_setup_qp_mw() with the sizes that the host says."""
        bridge = self._bridge
        said = []
        for index, size in enumerate(sizes):
            high, low = (bridge.spad_read(one + 2 * index) for one in (_MW0_SZ_HIGH, _MW0_SZ_LOW))
            said.append(high << 32 | low)
            # vntb_epf_mw_set_trans() takes no more.
            if not 0 < said[-1] <= size:
                return False
        try:
            memories = [bridge.mw_set_trans(index) for index in range(self.windows)]
        except OSError:  # ntb_set_mw() fails, and the link does not come up
            return False
        for pair in self.pairs:
            pair.set_up(said[pair.window], memories[pair.window])
        return True


class SimQueuePair:
    """struct ntb_transport_qp"""

    def __init__(self, transport: SimTransport, bridge: Bridge, number: int, count: int) -> None:
        """ntb_transport_init_queue()"""
        self._transport, self._bridge, self.number = transport, bridge, number
        self.window = number % transport.windows  # QP_TO_MW
        self._shares = count // transport.windows
        if self.window < count % transport.windows:
            self._shares += 1
        self._place = number // transport.windows
        tx_size = bridge.config.mw_sizes[self.window] // self._shares
        self._tx_start = tx_size * self._place
        self._tx_end = tx_size - _RX_INFO_SIZE
        self.tx_frame = min(_MTU, self._tx_end // 2)
        self.tx_entries = self._tx_end // self.tx_frame if self.tx_frame else 0
        self.memory: MappedWindow | None = None
        """The window's memory here, which the host writes; None: this queue pair stays down."""
        self._view: memoryview | None = None
        self.due: float | None = None
        self._link_due: float | None = None
        """Time of ntb_qp_link_work()."""
        self._reset()

    def _reset(self) -> None:
        """ntb_qp_link_context_reset()"""
        self.up = self.rung = False
        self._rx_index = self._rx_packets = 0
        self.tx_index = self.tx_packets = 0
        self.due = None

    def set_up(self, window: int, memory: MappedWindow) -> None:
        """ntb_transport_setup_qp_mw()

        :param window: size of the window that the host says
        :param memory: the window's memory here, which is zeroed
        """
        rx_size = window // self._shares
        self._rx_start = rx_size * self._place
        self._rx_end = rx_size - _RX_INFO_SIZE
        self._rx_frame = min(_MTU, self._rx_end // 2)
        # The kernel divides by zero, or makes slots whose headers are no words.
        least, words = min(self._rx_frame, self.tx_frame), self._rx_end | self._rx_frame
        self.memory = None if least <= HEADER.size or words % 4 else memory
        if self.memory is not None:
            self._rx_entries = self._rx_end // self._rx_frame
            self._tell_reader_of_all()

    def _tell_reader_of_all(self) -> None:
        """remote_rx_info->entry, as if the host had read all"""
        assert self.memory is not None
        self.memory.write32(self._rx_start + self._rx_end, self._rx_entries - 1)

    # -- the link ---------------------------------------------------------------------------------

    def link_up(self) -> None:
        """ntb_transport_link_up()"""
        if self.memory is not None:
            self.due = self._link_due = self._bridge.clock()

    def link_down(self) -> None:
        """ntb_transport_link_down()"""
        links = self._bridge.spad_read(_QP_LINKS)
        self._bridge.peer_spad_write(_QP_LINKS, links & ~(1 << self.number))
        if self.up:
            # ntb_send_link_down(), ntb_qp_link_down_reset()
            self.send(b"", _LINK_DOWN)
            self._tell_reader_of_all()
        self._link_due = None
        self._reset()

    def cleanup(self) -> None:
        """ntb_qp_link_cleanup()"""
        self._link_due = None
        self._reset()
        self._transport.event_handler(self)

    def run(self, now: float) -> None:
        if self._link_due is not None and now >= self._link_due:
            self._link_work()
        self.due = self._link_due
        if self.up:
            self._receive()

    def _link_work(self) -> None:
        """ntb_qp_link_work()"""
        bridge, bit = self._bridge, 1 << self.number
        links = bridge.spad_read(_QP_LINKS)
        bridge.peer_spad_write(_QP_LINKS, links | bit)
        self.up = bool(links & bit)
        self._link_due = None if self.up else bridge.jiffies(_LINK_RETRY_MS)
        if self.up:
            self._transport.event_handler(self)

    # -- packets ----------------------------------------------------------------------------------

    def _receive(self) -> None:
        """ntb_transport_rxc_db(), ntb_process_rxc()"""
        memory = self.memory
        assert memory is not None
        for _ in range(self._rx_entries):
            start = self._rx_start + self._rx_frame * self._rx_index
            header = start + self._rx_frame - HEADER.size
            flags = memory.read32(header + 8)
            if not flags & _DONE:
                if not self.rung:
                    return
                self.rung = False  # ntb_db_clear(), and another look
                continue
            barrier()  # the flags are written last; the rest was stale until then
            if flags & _LINK_DOWN:
                # ntb_qp_link_cleanup_work()
                memory.write32(header + 8, 0)
                self.cleanup()
                self._tell_reader_of_all()
                self.due = self._link_due = self._bridge.jiffies(_LINK_RETRY_MS)
                return
            version, length = memory.read32(header), memory.read32(header + 4)
            if version != self._rx_packets:
                return
            answer = b""
            if length <= self._rx_frame - HEADER.size:
                self._rx_packets = (self._rx_packets + 1) & 0xFFFF_FFFF
                answer = self._transport.rx_handler(self, self._packet(start, length))
            # ntb_complete_rxc(), after which the host may write the slot again.
            memory.write32(header + 8, 0)
            barrier()
            self._write(self._tx_end, self._rx_index.to_bytes(4, "little"))
            self._rx_index = (self._rx_index + 1) % self._rx_entries
            if answer:
                self.send(answer)
        self.due = self._bridge.clock()

    def _packet(self, start: int, length: int) -> bytes | memoryview:
        assert self.memory is not None
        if self.memory.plain is None:
            return self.memory.read_block(start, length)
        return self.memory.plain[start : start + length]

    @property
    def largest(self) -> int:
        """ntb_transport_max_size()"""
        return self.tx_frame - HEADER.size

    def send(self, packet: bytes, flags: int = 0) -> None:
        """ntb_process_tx(), ntb_async_tx(), ntb_tx_copy_callback()"""
        if not self.full():
            self.put(len(packet), packet, flags)
            self.ring()

    def ring(self) -> None:
        self._bridge.peer_db_set(1 << self.number)

    def reader(self) -> int:
        """Index of the slot that the host read last."""
        assert self.memory is not None
        return self.memory.read32(self._rx_start + self._rx_end)

    def full(self) -> bool:
        """ntb_transport_tx_free_entry() is 0."""
        return self.reader() == self.tx_index

    def look(self, view: memoryview | None) -> None:
        """Access the host's memory by this view of its window, if that is as large as it was."""
        reaches = view is not None and len(view) >= self._tx_start + self._tx_end + _RX_INFO_SIZE
        self._view = view if reaches else None

    def room(self) -> memoryview | None:
        """The next slot, and a byte more; None without a view of the host's memory.

        The byte is the header's, which is not valid yet: a packet that reaches it is too long.
        """
        if self._view is None:
            return None
        start = self._tx_start + self.tx_frame * self.tx_index
        return self._view[start : start + self.largest + 1]

    def put(self, length: int, packet: bytes | memoryview, flags: int = 0) -> None:
        """Fill the next slot.

        :param packet: the data; empty if it is in the slot already
        """
        faults = self._bridge.faults
        if "sequence-gap" in faults and self.tx_packets == faults.get("sequence-gap", 0):
            self.tx_packets += 1
        start = self.tx_frame * self.tx_index
        header = start + self.tx_frame - HEADER.size
        self.tx_index = (self.tx_index + 1) % self.tx_entries
        self._write(header, HEADER.pack(self.tx_packets, length, 0)[:8])
        if packet:
            self._write(start, packet)
        barrier()  # the flags are seen last
        self._write(header + 8, (flags | _DONE).to_bytes(4, "little"))
        self.tx_packets = (self.tx_packets + 1) & 0xFFFF_FFFF

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        """Write into this queue pair's share of the host's memory."""
        at = self._tx_start + offset
        if self._view is None:
            self._bridge.mw_write(self.window, at, data)
        else:
            self._view[at : at + len(data)] = data
