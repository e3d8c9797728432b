"""Connection of a vfio-user client: requests with replies, and the server's DMA requests."""

from __future__ import annotations

import errno
import mmap
import socket
from collections.abc import Callable, Sequence

from rcdrv.errors import DeviceLost, HostError
from rcdrv.vfio_user import wire
from rcdrv.vfio_user.messages import DmaAccess
from rcdrv.vfio_user.wire import Connection, Message, ProtocolError, Refused, WireCommand
from rcdrv.wait import Cancel, Deadline

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import TypeVar

    _T = TypeVar("_T")

_OPEN_FILES = "the limit of open files may be too low: ulimit -n"
SERVER_HINT = "is it a vfio-user server? one is started with: rcdrv sim PRESET --socket PATH"

SHARE = 0.05
"""Minimum of seconds that each reply may take on average: a busy host delays every reply."""
_BEYOND = 1.0
"""Seconds by which one reply may exceed the budget. The wait then ends, and the connection cannot
be used any more, also for clean-up."""
_FOR_CLEANUP = 2.0
"""Budget of clean-up in seconds, once the budget of the session is exhausted."""

_LOOK = 0.1
"""Seconds between looks, in a wait for an answer, whether the user asked to stop."""


class ClientMemory:
    """Memory of the client that the server may access, by bus address."""

    def __init__(self) -> None:
        self._buffers: dict[int, tuple[mmap.mmap, int]] = {}
        self._commands = {WireCommand.DMA_READ: self._read, WireCommand.DMA_WRITE: self._write}

    def __len__(self) -> int:
        return len(self._buffers)

    def add(self, iova: int, memory: mmap.mmap, size: int) -> None:
        """Add the first ``size`` bytes of ``memory`` at ``iova``."""
        self._buffers[iova] = memory, size

    def remove(self, iova: int) -> None:
        self._buffers.pop(iova, None)

    def clear(self) -> None:
        self._buffers.clear()

    def serve(self, request: Message) -> tuple[bytes, int]:
        """Serve a request of the server; return the body and the errno of the reply."""
        try:
            if request.fds or request.fds_lost:
                raise Refused(errno.EINVAL)
            if request.command not in self._commands:
                raise Refused(errno.ENOTSUP)
            return self._commands[WireCommand(request.command)](request.body), 0
        except ProtocolError:
            return b"", errno.EINVAL
        except Refused as refused:
            return b"", refused.error

    def _read(self, body: bytes) -> bytes:
        access = DmaAccess.unpack(body, with_data=False)
        if access.count > wire.MAX_DATA_XFER_SIZE:
            raise Refused(errno.E2BIG)
        data = b"".join(
            memory[start : start + size]
            for memory, start, size in self._find(access.address, access.count)
        )
        return DmaAccess(access.address, access.count, data).pack()

    def _write(self, body: bytes) -> bytes:
        access = DmaAccess.unpack(body, with_data=True)
        done = 0
        for memory, start, size in self._find(access.address, access.count):
            memory[start : start + size] = access.data[done : done + size]
            done += size
        return DmaAccess(access.address, access.count).pack()

    def _find(self, address: int, size: int) -> list[tuple[mmap.mmap, int, int]]:
        """Return (memory, offset, size) for each part of a range of bus addresses.

        :raises Refused: EFAULT: a byte is not mapped
        """
        stretches = []
        while size:
            found = [
                (iova, memory, mapped)
                for iova, (memory, mapped) in self._buffers.items()
                if iova <= address < iova + mapped
            ]
            if not found:
                raise Refused(errno.EFAULT)
            iova, memory, mapped = found[0]
            start = address - iova
            step = min(size, mapped - start)
            stretches.append((memory, start, step))
            address, size = address + step, size - step
        return stretches


class Caller:
    """The client's end of a connection.

    The server is lost if it does not answer within ``timeout``, ends, or violates the protocol:
    every later call raises the same :class:`DeviceLost`.

    A server that answers every call late is bounded by a budget for all calls: ``timeout`` seconds,
    to which each call adds :attr:`share`. The call that exhausts it raises :class:`DeviceLost`.
    Clean-up then has a small budget of its own; when that is exhausted, the server is lost.
    """

    def __init__(self, sock: socket.socket, address: str, timeout: float) -> None:
        self.address = address
        """Address as the user wrote it."""
        self.share = SHARE
        """Seconds that each call adds to the budget."""
        self.timeout = timeout
        self._warned = self._endpoint = False
        self._connection = Connection(sock)
        self.memory = ClientMemory()
        self._next_id = 0
        self._lost: tuple[str, str] | None = None
        self.cancel: Cancel | None = None
        """Once it is to hurry, a wait for an answer ends, and with it the connection."""

    @property
    def timeout(self) -> float:
        """Seconds to wait for each reply. Setting it refills the budget."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = self._budget = seconds

    def fail(self, message: str, hint: str = "") -> DeviceLost:
        """End the connection; return the error, which every later call raises."""
        if self._lost is None:
            self._lost = (f"{self.address}: {message}", hint)
            self._connection.shutdown()
        return DeviceLost(self._lost[0], hint=self._lost[1])

    def check_lost(self) -> None:
        """Raise the error that ended the connection, if one did."""
        if self._lost is not None:
            raise DeviceLost(self._lost[0], hint=self._lost[1])

    def call(self, command: WireCommand, body: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Send a command and return its reply; the caller owns the reply's descriptors.

        :raises Refused: an error reply
        """
        if self._lost is not None:
            self.check_lost()
        self._next_id = number = (self._next_id + 1) & 0xFFFF
        deadline = self._deadline()
        try:
            self._connection.send(command, number, 0, body, deadline, fds=fds)
            message = self._await_reply(deadline)
        except (wire.Disconnected, ProtocolError, TimeoutError) as error:
            raise self._end(error, deadline, command) from error
        except OSError as error:
            raise HostError(
                f"{self.address}: cannot send {command.name}: {error.strerror}", hint=_OPEN_FILES
            ) from error
        try:
            self._settle(deadline)
            self._check_reply(message, command, number)
        except BaseException:
            message.close()
            raise
        return message

    def _check_reply(self, message: Message, command: WireCommand, number: int) -> None:
        """Check that a message is the reply to a command, without an error."""
        flags = message.flags
        if flags & wire.TYPE_MASK != wire.TYPE_REPLY or (message.id, message.command) != (
            number,
            command,
        ):
            raise self.fail(
                f"{command.name} {number} was answered by "
                f"{wire.command_name(message.command)} {message.id}",
                SERVER_HINT,
            )
        if flags & wire.ERROR:
            raise Refused(message.error)
        if message.fds_lost:
            raise HostError(
                f"{self.address}: the descriptors in the reply to {command.name} were lost",
                hint=f"the server sent more than {wire.MAX_MSG_FDS}, or {_OPEN_FILES}",
            )

    def post(self, command: WireCommand, body: bytes) -> None:
        """Send a command that the server is not to answer."""
        self.check_lost()
        self._next_id = number = (self._next_id + 1) & 0xFFFF
        deadline = self._deadline()
        try:
            self._connection.send(command, number, wire.NO_REPLY, body, deadline)
        except (wire.Disconnected, TimeoutError) as error:
            raise self._end(error, deadline, command) from error
        self._settle(deadline)  # sending waits while the server does not read

    def allow(self, timeout: float) -> None:
        """Tolerate slow replies, as the user waits ``timeout`` seconds for the endpoint."""
        self.share = max(SHARE, timeout / 20)
        self._endpoint = True

    def _deadline(self) -> Deadline:
        """Return the bound of one call: the remaining budget, and a little more."""
        seconds = self._budget + self.share + _BEYOND
        return Deadline(seconds if seconds < self._timeout else self._timeout)

    def _settle(self, deadline: Deadline) -> None:
        """End a call: add its share to the budget, and deduct its time.

        :raises DeviceLost: the budget is exhausted
        """
        budget = self._budget + self.share
        self._budget = budget if budget < self._timeout else self._timeout
        self._spend(deadline)

    def _spend(self, deadline: Deadline) -> None:
        """Deduct the time since the start of ``deadline`` from the budget.

        :raises DeviceLost: the budget is exhausted
        """
        self._budget -= deadline.seconds - deadline.remaining
        if self._budget >= 0:
            return
        message = "the server's replies are too slow"
        hint = "is its process starved or stopped?"
        if self._endpoint:
            hint += " A slow endpoint needs a higher `timeout`"
        if self._warned:
            raise self.fail(message, hint)
        self._warned = True
        self._budget = min(_FOR_CLEANUP, self.timeout)
        raise DeviceLost(f"{self.address}: {message}", hint=hint)

    def _await_reply(self, deadline: Deadline) -> Message:
        """Return the next reply, and serve requests of the server until then."""
        while True:
            look = Deadline(min(_LOOK, deadline.remaining))
            message = self._connection.receive(look)
            if message is None:
                if self.cancel is not None:
                    self.cancel.notice()
                    if self.cancel.hurried:
                        raise self.fail("stopped while the server owed an answer")
            elif message.is_command:
                self._serve(message, deadline)
            else:
                return message
            if deadline.expired:
                raise TimeoutError

    def ask(self, command: WireCommand, body: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a command whose reply has no descriptors; return the reply's body."""
        try:
            message = self.call(command, body, fds)
        except Refused as refused:
            raise HostError(f"{self.address}: {command.name} was refused: {refused}") from refused
        if message.fds:
            message.close()
        return message.body

    def _end(
        self, error: Exception, deadline: Deadline, command: WireCommand | None = None
    ) -> DeviceLost:
        """Return the error for a connection that ended during ``command``."""
        doing = f" to {command.name}" if command else ""
        if isinstance(error, TimeoutError):
            return self.fail(
                f"no answer{doing} within {deadline.seconds:.3g} s",
                "the endpoint's process hangs, or it serves another client (QEMU?): "
                "a vfio-user server has one client at a time",
            )
        if isinstance(error, ProtocolError):
            return self.fail(f"no vfio-user answer{doing}: {error}", SERVER_HINT)
        return self.fail(
            f"the server is gone{' before its answer' + doing if doing else ''}",
            "look at the output of the endpoint's process, and start it again",
        )

    def _serve(self, message: Message, deadline: Deadline) -> None:
        """Answer a request of the server."""
        with message:
            body, error = self.memory.serve(message)
            if not message.flags & wire.NO_REPLY:
                flags = wire.TYPE_REPLY | (wire.ERROR if error else 0)
                self._connection.send(
                    message.command, message.id, flags, body, deadline, error=error
                )

    def lie(self, what: str) -> ProtocolError:
        """Return the error for an impossible reply."""
        return ProtocolError(f"{self.address}: {what}", hint="the server is at fault")

    def unpack(self, unpack: Callable[[bytes], _T], body: bytes) -> _T:
        """Unpack the body of a reply; a :class:`ProtocolError` names the server."""
        try:
            return unpack(body)
        except ProtocolError as error:
            raise self.lie(error.message) from error

    def fileno(self) -> int:
        return self._connection.fileno()

    def on_readable(self) -> None:
        self.check_lost()
        deadline = self._deadline()
        try:
            # One message per call: the caller's wait is bounded, and the server may never stop.
            message = self._connection.try_receive()
            if message is None:
                return
            if not message.is_command:
                message.close()
                raise ProtocolError(f"an unexpected reply to {wire.command_name(message.command)}")
            deadline = self._deadline()
            replies = not message.flags & wire.NO_REPLY
            self._serve(message, deadline)
            if replies:  # sending waits while the server does not read
                self._spend(deadline)
        except (wire.Disconnected, ProtocolError, TimeoutError) as error:
            raise self._end(error, deadline) from error

    def close(self) -> None:
        """Close the connection. Closing twice is harmless."""
        if self._lost is None:
            self._lost = (f"{self.address}: closed", "")
        self.memory.clear()
        self._connection.close()
