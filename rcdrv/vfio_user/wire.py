"""The vfio-user protocol: message bodies, and a connection that carries whole messages.

The protocol is ``docs/interop/vfio-user.rst`` in QEMU: VFIO's ioctls as messages over a UNIX
stream socket, in host byte order, file descriptors as SCM_RIGHTS. Every body is a dataclass with
``pack`` and ``unpack``; what ``unpack`` returns has consistent sizes, or it raises
:class:`ProtocolError` that names the field. A structure that begins with ``argsz`` may be
followed by bytes that a later version adds, as in VFIO; every other body must fit exactly.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import select
import socket
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from struct import Struct

from rcdrv.device import Area, RegionFlag
from rcdrv.errors import EndpointError, RcdrvError
from rcdrv.record import fresh, mutable_record, record
from rcdrv.wait import Deadline

MAJOR, MINOR = 0, 0
"""The protocol version spoken here: QEMU's. What later minors add comes as capabilities."""

MAX_DATA_XFER_SIZE = 65536
"""Data bytes taken in one message. QEMU cannot send a DMA_READ reply above about 208 KiB, the
size of a socket buffer, so the default of 1 MiB in the specification is not usable."""

MAX_MSG_FDS = 16
"""File descriptors taken in one message; QEMU refuses a server that takes more
(VFIO_USER_MAX_MAX_FDS in hw/vfio-user/proxy.h)."""

MAX_DMA_MAPS = 65535
PAGE_SIZE = 4096
"""The granularity of DMA mappings; the specification's default, whatever the host's page size."""

MAX_MESSAGE = (1 << 20) + 4096
"""Bytes of the longest message taken: the default max_data_xfer_size and room for its headers.
A sender that ignores what was negotiated thus still gets an answer."""

MAX_VERSION_DATA = 16384


class ProtocolError(EndpointError):
    """A message that the vfio-user specification does not allow."""


class Disconnected(RcdrvError):
    """The other side has closed the connection."""

    exit_status = 5


class Refused(Exception):
    """A request that is answered with an error reply.

    :param error: the reply's errno; 0 gives no reason
    """

    def __init__(self, error: int) -> None:
        super().__init__(error_text(error))
        self.error = error


def error_text(error: int) -> str:
    """The meaning of an error reply's errno. The other side may send any 32 bits."""
    if not error:
        return "no reason given"
    return os.strerror(error) if error in errno.errorcode else f"error {error:#x}"


class Command(IntEnum):
    """VFIO_USER_*; all but DMA_READ and DMA_WRITE go from the client to the server."""

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
    """The name of a command, also of one that does not exist."""
    return Command(command).name if command in Command._value2member_map_ else f"{command:#x}"


# -- the header ---------------------------------------------------------------------------------

HEADER = Struct("=HHIII")  # message id, command, size, flags, error
TYPE_MASK, TYPE_COMMAND, TYPE_REPLY = 0xF, 0x0, 0x1
NO_REPLY = 0x10
ERROR = 0x20


@mutable_record
class Message:
    """One message as it arrived. It owns ``fds`` until somebody takes them out of the list."""

    id: int
    command: int
    flags: int
    error: int
    body: bytes
    fds: list[int] = fresh(factory=list)
    fds_lost: bool = False
    """More file descriptors came than are taken, or than this process may have open."""

    @property
    def is_reply(self) -> bool:
        return self.flags & TYPE_MASK == TYPE_REPLY

    @property
    def is_command(self) -> bool:
        return self.flags & TYPE_MASK == TYPE_COMMAND

    def close(self) -> None:
        """Close the file descriptors that nobody took."""
        while self.fds:
            os.close(self.fds.pop())

    def __enter__(self) -> Message:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


# -- message bodies -----------------------------------------------------------------------------


def _check_size(what: str, data: bytes, size: int) -> None:
    if len(data) != size:
        raise ProtocolError(f"{what} has {len(data)} bytes instead of {size}")


def _check_argsz(what: str, data: bytes, form: Struct) -> None:
    """The length of a structure that begins with argsz, and argsz itself."""
    if len(data) < form.size:
        raise ProtocolError(f"{what} has {len(data)} bytes instead of {form.size}")
    argsz = int(_U32.unpack_from(data)[0])
    if argsz < form.size:
        raise ProtocolError(f"{what}: argsz is {argsz}, below {form.size}")


_U32 = Struct("=I")
_VERSION = Struct("=HH")
_DMA_MAP = Struct("=IIQQQ")
_DMA_UNMAP = Struct("=IIQQ")
_DEVICE_INFO = Struct("=IIII")
_REGION_INFO = Struct("=IIIIQQ")
_CAP_HEADER = Struct("=HHI")
_SPARSE_MMAP = Struct("=II")
_AREA = Struct("=QQ")
_IRQ_INFO = Struct("=IIII")
_IRQ_SET = Struct("=IIIII")
_REGION_ACCESS = Struct("=QII")
_DMA_ACCESS = Struct("=QQ")
_COUNT = Struct("=Q")
_WRITE_ONE = Struct("=QII8s")

REGION_INFO_SIZE = _REGION_INFO.size
CAP_SPARSE_MMAP = 1
"""VFIO_REGION_INFO_CAP_SPARSE_MMAP"""


_NUMBERS = ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes")


@record
class Capabilities:
    """What a side can do; the defaults are what the specification says of a silent one."""

    max_msg_fds: int = 1
    max_data_xfer_size: int = 1 << 20
    max_dma_maps: int = MAX_DMA_MAPS
    pgsizes: int = PAGE_SIZE
    write_multiple: bool = False
    unknown: frozenset[str] = frozenset()
    """Those of the numbers that a side has not named, and may not know."""

    @classmethod
    def unpack(cls, text: bytes) -> Capabilities:
        try:
            document = json.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise ProtocolError("VERSION: the version data is not JSON") from error
        found = document.get("capabilities", {}) if isinstance(document, dict) else None
        if not isinstance(found, dict):
            raise ProtocolError("VERSION: capabilities is not a JSON object")
        numbers = {}
        for name in _NUMBERS:
            value = found.get(name, getattr(_DEFAULTS, name))
            if type(value) is not int or not 0 <= value < 1 << 64:
                raise ProtocolError(f"VERSION: {name} is not a number of 64 bits")
            numbers[name] = value
        multiple = found.get("write_multiple", False)
        if type(multiple) is not bool:
            raise ProtocolError("VERSION: write_multiple is not a boolean")
        return cls(
            **numbers, write_multiple=multiple, unknown=frozenset(_NUMBERS) - frozenset(found)
        )

    def pack(self) -> bytes:
        capabilities: dict[str, int | bool] = {
            name: getattr(self, name) for name in _NUMBERS if name not in self.unknown
        }
        if self.write_multiple:
            capabilities["write_multiple"] = True
        return json.dumps({"capabilities": capabilities}).encode()


_DEFAULTS = Capabilities()

OURS = Capabilities(
    max_msg_fds=MAX_MSG_FDS, max_data_xfer_size=MAX_DATA_XFER_SIZE, write_multiple=True
)
"""What both our sides announce."""


@record
class Version:
    """VERSION, request and reply."""

    major: int = MAJOR
    minor: int = MINOR
    capabilities: Capabilities = OURS

    def pack(self) -> bytes:
        return _VERSION.pack(self.major, self.minor) + self.capabilities.pack() + b"\0"

    @classmethod
    def unpack(cls, data: bytes) -> Version:
        if not _VERSION.size <= len(data) <= MAX_VERSION_DATA:
            raise ProtocolError(f"VERSION has {len(data)} bytes")
        major, minor = _VERSION.unpack_from(data)
        text = data[_VERSION.size :]
        if text and not text.endswith(b"\0"):
            raise ProtocolError("VERSION: the version data does not end with NUL")
        text = text.rstrip(b"\0")
        return cls(major, minor, Capabilities.unpack(text or b"{}"))


class DmaFlag(IntFlag):
    """What the device may do with a mapping (the flags of DMA_MAP)."""

    READ = 1
    WRITE = 2


@record
class DmaMap:
    """DMA_MAP: ``size`` bytes at bus address ``address``, found at ``offset`` of the file."""

    flags: int
    offset: int
    address: int
    size: int

    def pack(self) -> bytes:
        return _DMA_MAP.pack(_DMA_MAP.size, self.flags, self.offset, self.address, self.size)

    @classmethod
    def unpack(cls, data: bytes) -> DmaMap:
        _check_argsz("DMA_MAP", data, _DMA_MAP)
        return cls(*_DMA_MAP.unpack_from(data)[1:])


UNMAP_GET_DIRTY_BITMAP = 1
UNMAP_ALL = 2
"""VFIO_DMA_UNMAP_FLAG_*"""


@record
class DmaUnmap:
    """DMA_UNMAP, request and reply."""

    flags: int
    address: int
    size: int

    def pack(self) -> bytes:
        return _DMA_UNMAP.pack(_DMA_UNMAP.size, self.flags, self.address, self.size)

    @classmethod
    def unpack(cls, data: bytes) -> DmaUnmap:
        _check_argsz("DMA_UNMAP", data, _DMA_UNMAP)
        return cls(*_DMA_UNMAP.unpack_from(data)[1:])


DEVICE_RESET_FLAG, DEVICE_PCI_FLAG = 1, 2
"""VFIO_DEVICE_FLAGS_*"""


@record
class DeviceInfo:
    """DEVICE_GET_INFO; a request has zeroes."""

    flags: int = 0
    num_regions: int = 0
    num_irqs: int = 0

    def pack(self) -> bytes:
        return _DEVICE_INFO.pack(_DEVICE_INFO.size, self.flags, self.num_regions, self.num_irqs)

    @classmethod
    def unpack(cls, data: bytes) -> DeviceInfo:
        _check_argsz("DEVICE_GET_INFO", data, _DEVICE_INFO)
        return cls(*_DEVICE_INFO.unpack_from(data)[1:])


@record
class RegionInfoRequest:
    """The request of DEVICE_GET_REGION_INFO; ``argsz`` is the room for the reply's body."""

    index: int
    argsz: int = REGION_INFO_SIZE

    def pack(self) -> bytes:
        return _REGION_INFO.pack(self.argsz, 0, self.index, 0, 0, 0)

    @classmethod
    def unpack(cls, data: bytes) -> RegionInfoRequest:
        _check_argsz("DEVICE_GET_REGION_INFO", data, _REGION_INFO)
        fields = _REGION_INFO.unpack_from(data)
        return cls(fields[2], fields[0])


@record
class RegionInfo:
    """The reply to DEVICE_GET_REGION_INFO."""

    index: int
    flags: int = 0
    """:class:`rcdrv.device.RegionFlag`; CAPS is set by :meth:`pack`."""
    size: int = 0
    offset: int = 0
    """Where the region begins in the file that came with the reply."""
    areas: tuple[Area, ...] | None = None
    """The sparse mmap capability; None if there is none, or no room for it."""
    argsz: int = 0
    """What :meth:`unpack` found: the room that the whole reply needs."""

    def pack(self, room: int) -> bytes:
        """The fields, and the capability chain if ``room`` is enough for it."""
        chain = b""
        if self.areas is not None:
            chain = _CAP_HEADER.pack(CAP_SPARSE_MMAP, 1, 0)
            chain += _SPARSE_MMAP.pack(len(self.areas), 0)
            chain += b"".join(_AREA.pack(area.offset, area.size) for area in self.areas)
        flags, cap_offset, argsz = self.flags, 0, REGION_INFO_SIZE + len(chain)
        if argsz > room:
            chain = b""
        if chain:
            flags |= RegionFlag.CAPS
            cap_offset = REGION_INFO_SIZE
        info = _REGION_INFO.pack(argsz, flags, self.index, cap_offset, self.size, self.offset)
        return info + chain

    @classmethod
    def unpack(cls, data: bytes) -> RegionInfo:
        what = "DEVICE_GET_REGION_INFO"
        _check_argsz(what, data, _REGION_INFO)
        argsz, flags, index, cap_offset, size, offset = _REGION_INFO.unpack_from(data)
        areas = None
        if flags & RegionFlag.CAPS and argsz <= len(data):
            areas = _find_areas(what, data, cap_offset)
        return cls(index, flags, size, offset, areas, argsz)


def _find_areas(what: str, data: bytes, offset: int) -> tuple[Area, ...] | None:
    """Walk VFIO's capability chain (struct vfio_info_cap_header) to the sparse mmap areas."""
    areas = None
    seen = set()
    while offset:
        if offset in seen:
            raise ProtocolError(f"{what}: the capability chain loops at {offset:#x}")
        seen.add(offset)
        if not REGION_INFO_SIZE <= offset <= len(data) - _CAP_HEADER.size:
            raise ProtocolError(f"{what}: a capability at {offset:#x} is outside the reply")
        cap, _version, following = _CAP_HEADER.unpack_from(data, offset)
        if cap == CAP_SPARSE_MMAP:
            start = offset + _CAP_HEADER.size + _SPARSE_MMAP.size
            if start > len(data):
                raise ProtocolError(f"{what}: the sparse mmap capability is cut off")
            count = _SPARSE_MMAP.unpack_from(data, offset + _CAP_HEADER.size)[0]
            if count * _AREA.size > len(data) - start:
                raise ProtocolError(f"{what}: nr_areas is {count}, more than the reply holds")
            end = start + count * _AREA.size
            areas = tuple(Area(*pair) for pair in _AREA.iter_unpack(data[start:end]))
        offset = following
    return areas


class IrqFlag(IntFlag):
    """VFIO_IRQ_INFO_*"""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


@record
class IrqInfo:
    """DEVICE_GET_IRQ_INFO; in a request only ``index`` counts."""

    index: int
    flags: int = 0
    count: int = 0

    def pack(self) -> bytes:
        return _IRQ_INFO.pack(_IRQ_INFO.size, self.flags, self.index, self.count)

    @classmethod
    def unpack(cls, data: bytes) -> IrqInfo:
        _check_argsz("DEVICE_GET_IRQ_INFO", data, _IRQ_INFO)
        _argsz, flags, index, count = _IRQ_INFO.unpack_from(data)
        return cls(index, flags, count)


@record
class IrqSet:
    """DEVICE_SET_IRQS; ``data`` has one boolean byte a vector with DATA_BOOL, else nothing."""

    flags: int
    index: int
    start: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        argsz = _IRQ_SET.size + len(self.data)
        return _IRQ_SET.pack(argsz, self.flags, self.index, self.start, self.count) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> IrqSet:
        _check_argsz("DEVICE_SET_IRQS", data, _IRQ_SET)
        _argsz, flags, index, start, count = _IRQ_SET.unpack_from(data)
        return cls(flags, index, start, count, data[_IRQ_SET.size :])


@record
class RegionAccess:
    """REGION_READ and REGION_WRITE. The request of a write and the reply to a read have data."""

    offset: int
    region: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        return _REGION_ACCESS.pack(self.offset, self.region, self.count) + self.data

    @classmethod
    def unpack(cls, data: bytes, *, with_data: bool) -> RegionAccess:
        if len(data) < _REGION_ACCESS.size:
            raise ProtocolError(f"a region access has only {len(data)} bytes")
        offset, region, count = _REGION_ACCESS.unpack_from(data)
        _check_size("a region access", data, _REGION_ACCESS.size + (count if with_data else 0))
        return cls(offset, region, count, data[_REGION_ACCESS.size :])


@record
class DmaAccess:
    """DMA_READ and DMA_WRITE. The request of a write and the reply to a read have data."""

    address: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        return _DMA_ACCESS.pack(self.address, self.count) + self.data

    @classmethod
    def unpack(cls, data: bytes, *, with_data: bool) -> DmaAccess:
        if len(data) < _DMA_ACCESS.size:
            raise ProtocolError(f"a DMA access has only {len(data)} bytes")
        address, count = _DMA_ACCESS.unpack_from(data)
        _check_size("a DMA access", data, _DMA_ACCESS.size + (count if with_data else 0))
        return cls(address, count, data[_DMA_ACCESS.size :])


MULTI_WRITE_SIZE = _WRITE_ONE.size
"""Bytes that one write takes in REGION_WRITE_MULTI."""


@record
class WriteMulti:
    """REGION_WRITE_MULTI: writes of 1 to 8 bytes each, done in order."""

    writes: tuple[RegionAccess, ...]

    def pack(self) -> bytes:
        return _COUNT.pack(len(self.writes)) + b"".join(
            _WRITE_ONE.pack(write.offset, write.region, write.count, write.data)
            for write in self.writes
        )

    @classmethod
    def unpack(cls, data: bytes) -> WriteMulti:
        what = "REGION_WRITE_MULTI"
        if len(data) < _COUNT.size:
            raise ProtocolError(f"{what} has only {len(data)} bytes")
        count = int(_COUNT.unpack_from(data)[0])
        _check_size(what, data, _COUNT.size + count * _WRITE_ONE.size)
        writes = []
        for offset, region, size, value in _WRITE_ONE.iter_unpack(data[_COUNT.size :]):
            if not 0 < size <= len(value):
                raise ProtocolError(f"{what}: a write of {size} bytes")
            writes.append(RegionAccess(offset, region, size, value[:size]))
        return cls(tuple(writes))


def pack_multi_reply(count: int) -> bytes:
    """The reply to REGION_WRITE_MULTI: how many writes were done."""
    return _COUNT.pack(count)


def unpack_multi_reply(data: bytes) -> int:
    _check_size("REGION_WRITE_MULTI", data, _COUNT.size)
    return int(_COUNT.unpack(data)[0])


# -- the connection -----------------------------------------------------------------------------


class Connection:
    """Whole messages over a connected UNIX stream socket, which it owns.

    Nothing here waits without a :class:`Deadline`. A message is read with exactly its own size,
    never further: the kernel hands file descriptors over with the bytes they were sent with, so
    those that come while a message is read are that message's own.
    """

    def __init__(
        self, sock: socket.socket, max_fds: int = MAX_MSG_FDS, max_size: int = MAX_MESSAGE
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._max_fds = max_fds
        self._max_size = max_size
        self._data = bytearray()
        self._wanted = HEADER.size
        self._fds: list[int] = []
        self._fds_lost = False
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self._sock.fileno()

    def receive(self, deadline: Deadline) -> Message | None:
        """The next message, or None if it is not there in time.

        :raises Disconnected: the other side has gone
        :raises ProtocolError: the header's size is impossible; the stream is of no use any more
        """
        while self._readable.poll(deadline.remaining * 1000):
            message = self.try_receive()
            if message is not None or deadline.expired:
                return message
        return None

    def try_receive(self) -> Message | None:
        """The next message if all of it has arrived; raises as :meth:`receive`."""
        while len(self._data) < self._wanted:
            chunk = self._receive_chunk(self._wanted - len(self._data))
            if chunk is None:
                return None
            self._data += chunk
            if len(self._data) == HEADER.size:
                size = HEADER.unpack(self._data)[2]
                if not HEADER.size <= size <= self._max_size:
                    raise ProtocolError(f"a message of {size} bytes")
                self._wanted = size
        number, command, _size, flags, error = HEADER.unpack_from(self._data)
        body = bytes(memoryview(self._data)[HEADER.size :])
        message = Message(number, command, flags, error, body, self._fds, self._fds_lost)
        self._data, self._wanted = bytearray(), HEADER.size
        self._fds, self._fds_lost = [], False
        return message

    def _receive_chunk(self, size: int) -> bytes | None:
        room = socket.CMSG_SPACE(self._max_fds * _INT.itemsize)
        try:
            chunk, ancillary, flags, _ = self._sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise Disconnected(f"the connection failed: {error.strerror}") from error
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds += fds
        # The kernel closes what does not fit, and what this process may not open any more.
        if flags & socket.MSG_CTRUNC:
            self._fds_lost = True
        while len(self._fds) > self._max_fds:
            os.close(self._fds.pop())
            self._fds_lost = True
        if not chunk:
            raise Disconnected("the other side has closed the connection")
        return chunk

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
        """Send one message; ``number`` is its id. The descriptors stay the caller's.

        :raises Disconnected: the other side has gone
        :raises TimeoutError: it does not read; the stream is of no use any more
        :raises OSError: a descriptor cannot be sent (ETOOMANYREFS: too many are under way);
            nothing was sent then
        """
        data = HEADER.pack(number, command, HEADER.size + len(body), flags, error) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        unsent = memoryview(data)
        while unsent:
            try:
                # One call for header and body: QEMU takes half a header for a broken stream.
                sent = self._sock.sendmsg([unsent], rights, socket.MSG_NOSIGNAL)
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
        """End both directions but keep the descriptor, which stays readable from now on."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and what a half-read message brought. Twice is harmless."""
        while self._fds:
            os.close(self._fds.pop())
        self._sock.close()


_INT = array.array("i")
