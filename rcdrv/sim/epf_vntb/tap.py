"""``vntb.peer=tap``: the endpoint's ntb_netdev is a TAP interface of the machine that serves it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Iterator
from ipaddress import IPv4Interface

from rcdrv.errors import HostError
from rcdrv.sim.epf_vntb.peer import HEADER, Bridge, Netdev
from rcdrv.tap import ETHERNET, LARGEST_MTU, LEAST_MTU, Tap

_NETNS = "/run/netns"
_CLONE_NEWNET = 0x4000_0000
_FULL = 0.0002
"""Seconds until the next check of a full ring (tx_time in ntb_netdev.c, 1 us there)."""


class TapNetdev(Netdev):
    """Like :class:`Netdev`, with this machine's network stack."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        config = bridge.config
        with _namespace(config.peer_netns):
            self._tap = Tap(config.peer_name)
            # The settings are ioctls on a socket that stays in the namespace.
            try:
                if not self._tap.existed:
                    self._tap.set_address(IPv4Interface(f"{config.peer_ip}/{config.peer_prefix}"))
                    self._tap.up()
            except BaseException:
                self._tap.close()
                raise
        self.wake_fd = self._tap.fd
        self._tap.carrier(False)
        self._buffer = memoryview(bytearray(LARGEST_MTU + ETHERNET + 4))
        self._host: memoryview | None = None
        self._readable = select.poll()
        self._readable.register(self._tap.fd, select.POLLIN)

    def next_due(self) -> float | None:
        if self.due is None and self._qp_up and self._readable.poll(0):
            self.due = self._bridge.clock()
        return self.due

    def _set_up_queue(self, rx_size: int) -> None:
        super()._set_up_queue(rx_size)
        self._largest = self._tx_frame - HEADER.size
        # Less than an interface can have stays what it was: ntb_netdev sets it unchecked.
        mtu = min(self._largest - ETHERNET, LARGEST_MTU)
        if not self._tap.existed and mtu >= LEAST_MTU:
            self._tap.set_mtu(mtu)

    def run(self) -> None:
        was = self._qp_up
        # For this run only, as the host may unmap it afterwards.
        host = self._bridge.mw_view(0) if was else None
        self._host = host if host is not None and len(host) >= self._tx_end + 4 else None
        try:
            super().run()
            if self._qp_up != was:
                self._tap.carrier(self._qp_up)
            if self._qp_up:
                self._transmit()
        finally:
            self._host = None

    def remove(self) -> None:
        super().remove()
        self._tap.carrier(False)

    def _cleanup(self) -> None:
        super()._cleanup()
        self._tap.carrier(False)

    def _transmit(self) -> None:
        """ntb_netdev_start_xmit() for all waiting frames, with one interrupt, and one more for the
        first if the host has read all before it."""
        host, unheard = self._host, 0
        assert self._memory is not None
        reader = self._memory.read32(self._rx_end)
        idle = reader == (self._tx_index - 1) % self._tx_entries
        for _ in range(self._tx_entries):
            if self._full():
                if self.due is None:
                    self.due = self._bridge.clock() + _FULL
                break
            start = self._tx_frame * self._tx_index
            # A byte more, of the header, which is not valid yet: then the frame is too long.
            room = self._buffer if host is None else host[start : start + self._largest + 1]
            length = self._tap.read_into(room)
            if not length:
                break
            if length > self._largest:
                continue
            self._put(length, room[:length] if host is None else b"")
            unheard += 1
            if idle:
                self._bridge.peer_db_set(1 << 0)
                idle, unheard = False, 0
        if unheard:
            self._bridge.peer_db_set(1 << 0)

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        if self._host is None:
            super()._write(offset, data)
        else:
            self._host[offset : offset + len(data)] = data

    def _packet(self, start: int, length: int) -> memoryview:
        assert self._memory is not None
        assert self._memory.plain is not None
        return self._memory.plain[start : start + length]

    def _answer(self, packet: bytes | memoryview) -> bytes:
        self._tap.write(packet)
        return b""

    def close(self) -> None:
        self._tap.close()


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[None]:
    """Put this thread into a network namespace of ``ip netns`` for a while; empty: leave it.

    :raises HostError: no such namespace, or no permission
    """
    if not name:
        yield
        return
    path = f"{_NETNS}/{name}"
    with contextlib.ExitStack() as stack:
        try:
            here, there = (
                os.open(one, os.O_RDONLY | os.O_CLOEXEC) for one in ("/proc/self/ns/net", path)
            )
        except OSError as error:
            raise HostError(
                f"the network namespace {name}: {error.strerror}", hint=f"ip netns add {name}"
            ) from None
        for fd in here, there:
            stack.callback(os.close, fd)
        _enter(there, name)
        try:
            yield
        finally:
            _enter(here, name)


def _enter(fd: int, name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise HostError(f"cannot enter the network namespace {name}: {reason}", hint="run as root")
