"""``python hostile_server.py SOCKET SPEC MODE [COMMAND]``: a vfio-user server that does harm."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import rcdrv.sim.memory
from rcdrv.device import IrqKind
from rcdrv.sim.endpoint import SimEndpoint
from rcdrv.sim.layout import load_layout
from rcdrv.vfio_user import messages, server, session, wire
from rcdrv.vfio_user.listen import listen
from rcdrv.vfio_user.wire import Message, Refused, WireCommand
from rcdrv.wait import Deadline

SOCKET, SPEC, MODE, *REST = sys.argv[1:]
BAR = 2
BAD_ERRNO = 0x8000_0001
FLOOD = 1000 * (
    wire.HEADER.pack(0, WireCommand.DMA_READ, wire.HEADER.size + 16, wire.NO_REPLY, 0)
    + messages.DmaAccess(0, 4).pack()
)


def unsealed(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def _has_mapped(pid: int | str) -> bool:
    with contextlib.suppress(OSError):
        return f"/memfd:rcdrv-bar{BAR}" in Path(f"/proc/{pid}/maps").read_text()
    return False


class Hostile(session.Session):
    shown = -1
    """The file of BAR 2, once the client has it."""
    flooding = False

    def _handle(self, message: Message) -> session._Reply:
        if MODE == "late":
            print(wire.command_name(message.command), flush=True)
            time.sleep(1.0)
        if MODE == "truncate-early" and self.shown >= 0:
            os.ftruncate(self.shown, 0)
        if MODE == "errno" and message.command == WireCommand[REST[0]]:
            raise Refused(BAD_ERRNO)
        if message.command == WireCommand.DEVICE_SET_IRQS:
            self.flooding = True
        body, fds = super()._handle(message)
        if fds and message.body == messages.RegionInfoRequest(BAR, 4096).pack():
            self.shown = fds[0]
            if MODE == "truncate":
                Thread(target=self._truncate_when_mapped, daemon=True).start()
        return body, fds

    def _truncate_when_mapped(self) -> None:
        peer = self._connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = struct.unpack("3i", peer)[0]
        children = Path(f"/proc/{pid}/task/{pid}/children")
        while not any(map(_has_mapped, [pid, *children.read_text().split()])):
            time.sleep(0.001)
        os.ftruncate(self.shown, 0)

    def _reply(
        self, message: Message, body: bytes, deadline: Deadline, fds: Sequence[int], error: int
    ) -> None:
        if MODE == "descriptors":
            fds = [2] * wire.MAX_MSG_FDS
        self._flood(finish=True)
        super()._reply(message, body, deadline, fds, error)

    def _dma_map(self, message: Message) -> session._Reply:
        if MODE == "truncate-dma":
            try:
                os.ftruncate(message.fds[0], 0)
            except OSError as error:
                print("truncating:", errno.errorcode[error.errno or 0], flush=True)
        return super()._dma_map(message)

    def _turn(self, seconds: float | None) -> None:
        if not self.flooding or MODE not in ("messages", "interrupts"):
            super()._turn(seconds)
            return
        # What the endpoint is to do is late by some milliseconds, and the client has no rest.
        if MODE == "interrupts":
            for _ in range(100):
                self._irqs.trigger(IrqKind.MSI, 0)
        else:
            self._flood()
        super()._turn(0)

    unsent = b""

    def _flood(self, *, finish: bool = False) -> None:
        """Send messages, faster than the client can take them."""
        sock = self._connection._sock
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while select.select([], [sock], [], 5.0 if finish and self.unsent else 0.0)[1]:
                if not self.unsent and finish:
                    return
                self.unsent = self.unsent or FLOOD
                self.unsent = self.unsent[sock.send(self.unsent) :]


if MODE.startswith("truncate"):
    rcdrv.sim.memory.sealed_memory = unsealed  # type: ignore[attr-defined]
server.Session = Hostile  # type: ignore[attr-defined]
with listen(SOCKET) as listener:
    server.Server(SimEndpoint(load_layout(SPEC))).serve(listener)
