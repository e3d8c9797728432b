"""Clients of the kernel's NTB core on the endpoint, on top of pci-epf-vntb.

Each is the endpoint's side of one kernel module, and cites its functions. They act only in
:meth:`run`, when they are due. An interrupt or a link event makes them due, like a timer, a tasklet
or a work in the kernel.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from rcdrv.mmio import MappedWindow
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
