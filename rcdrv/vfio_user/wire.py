"""Base of the vfio-user protocol: commands, errors, and messages over a connection.

The protocol is specified in QEMU's ``docs/interop/vfio-user.rst``: VFIO's ioctls as messages over a
UNIX stream socket, in host byte order, with file descriptors as SCM_RIGHTS. Message bodies are in
:mod:`rcdrv.vfio_user.version` and :mod:`rcdrv.vfio_user.messages`.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct

from rcdrv.errors import EndpointError, RcdrvError
from rcdrv.wait import Deadline, Readable

MAX_DATA_XFER_SIZE = 65536
"""Limit of the data of one message in bytes. The specification's default of 1 MiB is not usable:
QEMU cannot send a DMA_READ reply above about 208 KiB, the size of a socket buffer."""

MAX_MSG_FDS = 16
"""Limit of file descriptors in one message. QEMU refuses a server with a higher limit
(VFIO_USER_MAX_MAX_FDS in hw/vfio-user/proxy.h)."""

MAX_MESSAGE = (1 << 20) + 4096
"""Limit of a message in bytes: the default max_data_xfer_size plus headers, so that a sender that
ignores the negotiated limit still gets a reply."""


class ProtocolError(EndpointError):
    """A message that violates the vfio-user specification."""


class Disconnected(RcdrvError):
    """The other side has closed the connection."""

    exit_status = 5


class Refused(Exception):
    """An error reply.

    :param error: errno of the reply; 0 if the reply gives no reason
    """

    def __init__(self, error: int) -> None:
        super().__init__(error_text(error))
        self.error = error


def error_text(error: int) -> str:
    """Describe the errno of an error reply, which may be any number of 32 bits."""
    if not error:
        return "no reason given"
    return os.strerror(error) if error in errno.errorcode else f"error {error:#x}"


class WireCommand(IntEnum):
    """VFIO_USER_*. DMA_READ and DMA_WRITE are sent by the server, all others by the client."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


def command_name(command: int) -> str:
    """Return the name of a command, or its number if it is unknown."""
    return (
        WireCommand(command).name if command in WireCommand._value2member_map_ else f"{command:#x}"
    )


# -- the header ---------------------------------------------------------------------------------

HEADER = Struct("=HHIII")  # message id, command, size, flags, error
TYPE_MASK, TYPE_COMMAND, TYPE_REPLY = 0xF, 0x0, 0x1
NO_REPLY = 0x10
ERROR = 0x20

_AHEAD = 36
"""Bytes of the first read, when the size of a message is not known: a register's write, or the
answer to its read. It cannot hold a bare reply and a whole request of the server behind it, which
nothing would wake a client for."""


class Message:
    """A received message. It owns the descriptors in ``fds``; remove one to keep it open."""

    __slots__ = ("body", "command", "error", "fds", "fds_lost", "flags", "id")

    def __init__(
        self,
        number: int,
        command: int,
        flags: int,
        error: int,
        body: bytes,
        fds: list[int] | None = None,
        fds_lost: bool = False,
    ) -> None:
        self.id = number
        self.command = command
        self.flags = flags
        self.error = error
        self.body = body
        self.fds = [] if fds is None else fds
        self.fds_lost = fds_lost
        """Whether descriptors were lost, to the limit of a message or of this process."""

    @property
    def is_reply(self) -> bool:
        return self.flags & TYPE_MASK == TYPE_REPLY

    @property
    def is_command(self) -> bool:
        return self.flags & TYPE_MASK == TYPE_COMMAND

    def close(self) -> None:
        """Close the file descriptors that remain in ``fds``."""
        while self.fds:
            os.close(self.fds.pop())

    def __enter__(self) -> Message:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


# -- the connection -----------------------------------------------------------------------------


class Connection:
    """Complete messages over a connected UNIX stream socket, which it owns.

    Every wait has a :class:`Deadline`. A read may extend into the next message, but not beyond
    bytes that came with file descriptors (unix_stream_read_generic() in the kernel). So descriptors
    belong to the message of the last byte.
    """

    def __init__(
        self, sock: socket.socket, max_fds: int = MAX_MSG_FDS, max_size: int = MAX_MESSAGE
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._max_fds = max_fds
        self._max_size = max_size
        self._room = socket.CMSG_SPACE(max_fds * _INT.itemsize)
        self._data = bytearray()
        """Received bytes of messages not yet returned."""
        self._fds: list[int] = []
        self._fds_lost = False
        self._readable = Readable(sock.fileno())

    def fileno(self) -> int:
        """Return the socket's descriptor; -1 once closed."""
        return self._sock.fileno()

    def receive(self, deadline: Deadline) -> Message | None:
        """Return the next message, or None at the deadline.

        :raises Disconnected: the other side has closed the connection
        :raises ProtocolError: the header has an invalid size; the stream is not usable any more
        """
        while self.holds_message or self._readable.wait(deadline.remaining):
            message = self.try_receive()
            if message is not None or deadline.expired:
                return message
        return None

    @property
    def holds_message(self) -> bool:
        """Whether a message can be returned or refused without reading the socket."""
        data = self._data
        if len(data) < HEADER.size:
            return False
        size: int = HEADER.unpack_from(data)[2]
        return len(data) >= size or size > self._max_size  # which is refused at once

    def try_receive(self) -> Message | None:
        """Return the next message if it is complete, else None. Errors as in :meth:`receive`."""
        if not self._data:
            chunk = self._receive_chunk(_AHEAD)
            if chunk is None:
                return None
            if len(chunk) >= HEADER.size:
                number, command, size, flags, error = HEADER.unpack_from(chunk)
                if size == len(chunk):
                    return self._message(number, command, flags, error, chunk[HEADER.size :])
            self._data += chunk
        return self._assemble()

    def _assemble(self) -> Message | None:
        """Return the next message, of which some bytes are received, if it is complete."""
        data = self._data
        earlier, late = (0, False), self._fds_lost
        while True:
            size = _AHEAD
            if len(data) >= HEADER.size:
                number, command, size, flags, error = HEADER.unpack_from(data)
                if not HEADER.size <= size <= self._max_size:
                    raise ProtocolError(f"a message of {size} bytes")
            if len(data) >= size:
                break
            earlier, self._fds_lost = (len(self._fds), self._fds_lost), False
            chunk = self._receive_chunk(size - len(data))
            late = self._fds_lost
            self._fds_lost = late or earlier[1]
            if chunk is None:
                return None
            data += chunk
        with memoryview(data) as view:
            body = bytes(view[HEADER.size : size])
        del data[:size]
        if not data:
            return self._message(number, command, flags, error, body)
        count, lost = earlier  # what came with the last bytes belongs to a later message
        fds, self._fds = self._fds[:count], self._fds[count:]
        self._fds_lost = late
        return Message(number, command, flags, error, body, fds, lost)

    def _message(self, number: int, command: int, flags: int, error: int, body: bytes) -> Message:
        """Return a message that owns all descriptors received so far."""
        message = Message(number, command, flags, error, body, self._fds, self._fds_lost)
        self._fds, self._fds_lost = [], False
        return message

    def _receive_chunk(self, size: int) -> bytes | None:
        try:
            chunk, ancillary, flags, _ = self._sock.recvmsg(size, self._room, _CLOEXEC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise Disconnected(f"the connection failed: {error.strerror}") from error
        if ancillary or flags & _CTRUNC:
            self._keep(ancillary, bool(flags & _CTRUNC))
        if not chunk:
            raise Disconnected("the other side has closed the connection")
        return chunk

    def _keep(self, ancillary: Sequence[tuple[int, int, bytes]], truncated: bool) -> None:
        """Keep received descriptors, up to the limit of a message."""
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds += fds
        # The kernel closes descriptors that do not fit, or exceed the limit of this process.
        if truncated:
            self._fds_lost = True
        while len(self._fds) > self._max_fds:
            os.close(self._fds.pop())
            self._fds_lost = True

    def send(
        self,
        command: int,
        number: int,
        flags: int,
        body: bytes,
        deadline: Deadline,
        *,
        fds: Sequence[int] = (),
        error: int = 0,
    ) -> None:
        """Send one message.

        :param number: message id
        :param fds: descriptors to send, which stay the caller's
        :raises Disconnected: the other side has closed the connection
        :raises TimeoutError: the other side does not read; the stream is not usable any more
        :raises OSError: a descriptor cannot be sent (ETOOMANYREFS: too many are in flight), and
            nothing was sent
        """
        data = HEADER.pack(number, command, HEADER.size + len(body), flags, error) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        unsent = memoryview(data)
        while unsent:
            try:
                # Header and body in one call: QEMU treats a partial header as a broken stream.
                if rights:
                    sent = self._sock.sendmsg([unsent], rights, _NOSIGNAL)
                else:
                    sent = self._sock.send(unsent, _NOSIGNAL)
            except BlockingIOError:
                self._wait_writable(deadline)
                continue
            except ConnectionError as gone:
                raise Disconnected("the other side has closed the connection") from gone
            except OSError as failed:
                if rights:
                    raise
                raise Disconnected(f"the connection failed: {failed.strerror}") from failed
            unsent = unsent[sent:]
            rights = []

    def _wait_writable(self, deadline: Deadline) -> None:
        writable = select.poll()
        writable.register(self._sock, select.POLLOUT)
        if not writable.poll(deadline.remaining * 1000):
            raise TimeoutError(f"the other side has not read for {deadline.seconds:g} s")

    def shutdown(self) -> None:
        """Shut down both directions. The descriptor stays open, and is readable from now on."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and the descriptors of an incomplete message. Twice is harmless."""
        while self._fds:
            os.close(self._fds.pop())
        self._sock.close()


_INT = array.array("i")
# Plain integers: operations on flags take as long as a system call.
_CLOEXEC, _CTRUNC = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
