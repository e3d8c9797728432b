"""``vntb.peer=tap``: the endpoint's ntb_netdev is a TAP interface of the machine that serves it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Iterator
from ipaddress import IPv4Interface

from rcdrv.errors import HostError
from rcdrv.sim.epf_vntb.netdev import Netdev
from rcdrv.sim.epf_vntb.peer import Bridge
from rcdrv.sim.epf_vntb.transport import SimQueuePair
from rcdrv.tap import ETHERNET, LARGEST_MTU, LEAST_MTU, Tap

_NETNS = "/run/netns"
_CLONE_NEWNET = 0x4000_0000
_FULL = 0.0002
"""Seconds until the next check of a full ring (tx_time in ntb_netdev.c, 1 us there)."""


class TapNetdev(Netdev):
    """Like :class:`Netdev`, with this machine's network stack.

    The stack does not use a queue whose queue pair is down. The kernel's ntb_netdev stops it, and
    frames wait for it.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        config = bridge.config
        with _namespace(config.peer_netns):
            self._tap = Tap(config.peer_name, config.peer_queues)
            # The settings are ioctls on a socket that stays in the namespace.
            try:
                for queue in self._tap.queues:
                    queue.detach()
                if not self._tap.existed:
                    self._tap.set_address(IPv4Interface(f"{config.peer_ip}/{config.peer_prefix}"))
                    self._tap.up()
            except BaseException:
                self._tap.close()
                raise
        self._tap.carrier(False)
        self._buffer = memoryview(bytearray(LARGEST_MTU + ETHERNET + 4))
        self._readable = select.epoll()
        for queue in self._tap.queues:
            self._readable.register(queue.fd, select.EPOLLIN)
        self.wake_fd = self._readable.fileno()

    def next_due(self) -> float | None:
        idle = [pair for pair in self.open_pairs if pair.up and pair.due is None]
        if idle and (ready := self._readable.poll(0)):
            descriptors = {descriptor for descriptor, _ in ready}
            for pair in idle:
                if self._tap.queues[pair.number].fd in descriptors:
                    self.due = pair.due = self._bridge.clock()
        return self.due

    def _set_windows(self, sizes: tuple[int, ...]) -> bool:
        done = super()._set_windows(sizes)
        # Less than an interface can have stays what it was: ntb_netdev sets it unchecked, and to
        # what the first queue pair takes.
        mtu = min(self.pairs[0].largest - ETHERNET, LARGEST_MTU) if self.pairs else 0
        if done and not self._tap.existed and mtu >= LEAST_MTU:
            self._tap.set_mtu(mtu)
        return done

    def run(self) -> None:
        # For this run only, as the host may unmap it afterwards.
        views: dict[int, memoryview | None] = {}
        for pair in self.open_pairs:
            if pair.up:
                if pair.window not in views:
                    views[pair.window] = self._bridge.mw_view(pair.window)
                pair.look(views[pair.window])
        try:
            super().run()
            for pair in self.open_pairs:
                if pair.up:
                    self._transmit(pair)
            self._schedule(self._link_due)
        finally:
            for pair in self.open_pairs:
                pair.look(None)

    def event_handler(self, pair: SimQueuePair) -> None:
        """ntb_netdev_event_handler()"""
        queue = self._tap.queues[pair.number]
        if pair.up:
            queue.attach()
        else:
            queue.detach()
        self._tap.carrier(any(one.up for one in self.open_pairs))

    def _transmit(self, pair: SimQueuePair) -> None:
        """ntb_netdev_start_xmit() for all waiting frames, with one interrupt, and one more for the
        first if the host has read all before it."""
        read, unheard = self._tap.queues[pair.number].read_into, 0
        idle = pair.reader() == (pair.tx_index - 1) % pair.tx_entries
        for _ in range(pair.tx_entries):
            if pair.full():
                if pair.due is None:
                    pair.due = self._bridge.clock() + _FULL
                break
            slot = pair.room()
            room = self._buffer if slot is None else slot
            length = read(room)
            if not length:
                break
            if length > pair.largest:
                continue
            pair.put(length, room[:length] if slot is None else b"")
            unheard += 1
            if idle:
                pair.ring()
                idle, unheard = False, 0
        if unheard:
            pair.ring()

    def rx_handler(self, pair: SimQueuePair, packet: bytes | memoryview) -> bytes:
        self._tap.queues[pair.number].write(packet)
        return b""

    def close(self) -> None:
        self._readable.close()
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
