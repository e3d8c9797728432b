"""A vfio-user client: a device behind a socket, as :class:`rcdrv.device.Device`."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
from collections.abc import Callable, Sequence

from rcdrv.device import Area, IrqKind, RegionFlag, RegionInfo, SetIrqs
from rcdrv.errors import DeviceLost, HostError
from rcdrv.record import record
from rcdrv.vfio_user import wire
from rcdrv.vfio_user.wire import Command, Connection, DmaFlag, Message, ProtocolError, Refused
from rcdrv.wait import Deadline

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import TypeVar

    _T = TypeVar("_T")

_MAX_REGIONS, _MAX_IRQS = 100, 50
"""More than any PCI device has; the limits of QEMU's hw/vfio-user/device.c."""

_MAX_VECTORS = {
    IrqKind.INTX: 1,
    IrqKind.MSI: 32,
    IrqKind.MSIX: 2048,
    IrqKind.ERR: 1,
    IrqKind.REQ: 1,
}

_REGION_INFO_ROOM = (4096, 65536)
"""Bytes offered for a region's capabilities at first, and when that was too little."""

_SERVER_HINT = "is it a vfio-user server? one is started with: rcdrv sim PRESET --socket PATH"


@record
class _Region:
    info: RegionInfo
    fd: int
    offset: int
    """Where the region begins in the file."""


class Client:
    """A connected vfio-user device; see :class:`rcdrv.device.Device` for its methods.

    To be used from one thread. Every method that talks to the server raises
    :class:`DeviceLost` when it does not answer within ``timeout`` or has gone, and from then on
    always; :class:`HostError` when it answers with an error; :class:`ProtocolError` when it
    says of a region or an interrupt what cannot be true.

    :param sock: connected to the server; owned by the client from now on
    :param address: how the user names the device
    :param timeout: seconds to wait for each reply
    """

    backend = "vfio-user"
    dma_by_descriptor = True

    def __init__(self, sock: socket.socket, address: str, timeout: float = 5.0) -> None:
        self.address = address
        self.timeout = timeout
        """Seconds to wait for each reply; may be changed at any time."""
        self._connection = Connection(sock)
        self._next_id = 0
        self._lost: tuple[str, str] | None = None
        self._regions: dict[int, _Region] = {}
        self._irq_counts: dict[IrqKind, int] = {}
        self._memory: dict[int, tuple[mmap.mmap, int]] = {}
        try:
            self._server = self._negotiate()
            self._info = self._get_info()
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float = 5.0) -> Client:
        """Connect to the server that listens at ``path``.

        :raises HostError: nothing there, no permission, nobody listens, not a vfio-user server
            or one of another version
        :raises DeviceLost: it accepts the connection but does not answer
        """
        address = f"vfio-user:{path}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise _connect_error(address, error) from error
        return cls(sock, address, timeout)

    # -- messages -----------------------------------------------------------------------------

    def _fail(self, message: str, hint: str = "") -> DeviceLost:
        """Give the connection up; every later call raises the same."""
        if self._lost is None:
            self._lost = (f"{self.address}: {message}", hint)
            self._connection.shutdown()
        return DeviceLost(self._lost[0], hint=self._lost[1])

    def _check_lost(self) -> None:
        if self._lost is not None:
            raise DeviceLost(self._lost[0], hint=self._lost[1])

    def _call(self, command: Command, body: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Send a command and wait for its reply, whose descriptors the caller then owns.

        :raises Refused: an error reply
        """
        self._check_lost()
        self._next_id = number = (self._next_id + 1) & 0xFFFF
        deadline = Deadline(self.timeout)
        try:
            self._connection.send(command, number, 0, body, deadline, fds=fds)
            while True:
                message = self._connection.receive(deadline)
                if message is None:
                    raise TimeoutError
                if not message.is_command:
                    break
                self._serve(message, deadline)
                if deadline.expired:
                    raise TimeoutError
        except (wire.Disconnected, ProtocolError, TimeoutError) as error:
            raise self._end(error, command) from error
        except OSError as error:
            raise HostError(
                f"{self.address}: cannot send {command.name}: {error.strerror}",
                hint="the limit of open files may be too low: ulimit -n",
            ) from error
        if not message.is_reply or message.id != number or message.command != command:
            message.close()
            raise self._fail(
                f"{command.name} {number} was answered by "
                f"{wire.command_name(message.command)} {message.id}",
                _SERVER_HINT,
            )
        if message.flags & wire.ERROR:
            message.close()
            raise Refused(message.error)
        if message.fds_lost:
            message.close()
            raise HostError(
                f"{self.address}: the descriptors that came with {command.name} did not fit",
                hint="the limit of open files may be too low: ulimit -n",
            )
        return message

    def _ask(self, command: Command, body: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """:meth:`_call` for the commands whose reply brings no descriptors."""
        try:
            with self._call(command, body, fds) as message:
                return message.body
        except Refused as refused:
            raise HostError(f"{self.address}: {command.name} was refused: {refused}") from refused

    def _end(self, error: Exception, command: Command | None = None) -> DeviceLost:
        """The connection ended in the midst of ``command``."""
        doing = f" to {command.name}" if command else ""
        if isinstance(error, TimeoutError):
            return self._fail(
                f"no answer{doing} within {self.timeout:g} s",
                "the endpoint's process hangs, or it serves another client (QEMU?): "
                "a vfio-user server has one at a time",
            )
        if isinstance(error, ProtocolError):
            return self._fail(f"no vfio-user answer{doing}: {error}", _SERVER_HINT)
        return self._fail(
            f"the server has gone{' before its answer' + doing if doing else ''}",
            "the endpoint's process ended: look at its output, start it again",
        )

    def _serve(self, message: Message, deadline: Deadline) -> None:
        """Answer a DMA request of the server; anything else gets an error."""
        with message:
            body, error = b"", 0
            try:
                if message.fds or message.fds_lost:
                    error = errno.EINVAL
                elif message.command == Command.DMA_READ:
                    body = self._serve_read(message.body)
                elif message.command == Command.DMA_WRITE:
                    body = self._serve_write(message.body)
                else:
                    error = errno.ENOTSUP
            except ProtocolError:
                error = errno.EINVAL
            except Refused as refused:
                error = refused.error
            if message.flags & wire.NO_REPLY:
                return
            flags = wire.TYPE_REPLY | (wire.ERROR if error else 0)
            self._connection.send(message.command, message.id, flags, body, deadline, error=error)

    def _serve_read(self, body: bytes) -> bytes:
        access = wire.DmaAccess.unpack(body, with_data=False)
        if access.count > wire.MAX_DATA_XFER_SIZE:
            raise Refused(errno.E2BIG)
        data = b"".join(
            memory[start : start + size]
            for memory, start, size in self._find_memory(access.address, access.count)
        )
        return wire.DmaAccess(access.address, access.count, data).pack()

    def _serve_write(self, body: bytes) -> bytes:
        access = wire.DmaAccess.unpack(body, with_data=True)
        done = 0
        for memory, start, size in self._find_memory(access.address, access.count):
            memory[start : start + size] = access.data[done : done + size]
            done += size
        return wire.DmaAccess(access.address, access.count).pack()

    def _find_memory(self, address: int, size: int) -> list[tuple[mmap.mmap, int, int]]:
        """The stretches of the mapped buffers that make up a range of bus addresses.

        :raises Refused: EFAULT, some byte is not mapped
        """
        stretches = []
        while size:
            for iova, (_, mapped) in self._memory.items():
                if iova <= address < iova + mapped:
                    break
            else:
                raise Refused(errno.EFAULT)
            memory, mapped = self._memory[iova]
            start = address - iova
            step = min(size, mapped - start)
            stretches.append((memory, start, step))
            address, size = address + step, size - step
        return stretches

    # -- opening ------------------------------------------------------------------------------

    def _negotiate(self) -> wire.Capabilities:
        try:
            version = wire.Version.unpack(self._ask(Command.VERSION, wire.Version().pack()))
        except ProtocolError as error:
            raise HostError(f"{self.address}: {error}", hint=_SERVER_HINT) from error
        except DeviceLost as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            raise HostError(error.message, hint=_SERVER_HINT) from error
        if version.major != wire.MAJOR or version.minor > wire.MINOR:
            raise HostError(
                f"{self.address}: the server speaks vfio-user {version.major}.{version.minor}, "
                f"not {wire.MAJOR}.{wire.MINOR}",
                hint="use a server of the same major version",
            )
        # Below 8 bytes a 64-bit register could not be read with one access.
        if version.capabilities.max_data_xfer_size < 8:
            raise HostError(
                f"{self.address}: the server takes only "
                f"{version.capabilities.max_data_xfer_size} bytes in a message",
                hint="max_data_xfer_size has to be 8 or more",
            )
        if not version.capabilities.pgsizes:
            raise HostError(
                f"{self.address}: the server has no page size",
                hint="pgsizes has to have a bit set for each size, 4096 by default",
            )
        return version.capabilities

    def _get_info(self) -> wire.DeviceInfo:
        info = self._unpack(
            wire.DeviceInfo.unpack, self._ask(Command.DEVICE_GET_INFO, wire.DeviceInfo().pack())
        )
        if not info.flags & wire.DEVICE_PCI_FLAG:
            raise HostError(f"{self.address}: not a PCI device", hint=_SERVER_HINT)
        if info.num_regions > _MAX_REGIONS or info.num_irqs > _MAX_IRQS:
            raise self._lie(f"{info.num_regions} regions, {info.num_irqs} interrupt kinds")
        return info

    def _lie(self, what: str) -> ProtocolError:
        return ProtocolError(f"{self.address}: {what}", hint="the server is at fault")

    def _unpack(self, unpack: Callable[[bytes], _T], body: bytes) -> _T:
        try:
            return unpack(body)
        except ProtocolError as error:
            raise self._lie(error.message) from error

    # -- what the device is -------------------------------------------------------------------

    def region(self, index: int) -> RegionInfo:
        return self._region(index).info

    def _region(self, index: int) -> _Region:
        # Asked once: what can be mapped is fixed when a client connects, and a descriptor that
        # comes with each answer would have to be closed again.
        if index not in self._regions:
            self._check_lost()
            self._regions[index] = self._ask_region(index)
        return self._regions[index]

    def _ask_region(self, index: int) -> _Region:
        nothing = _Region(RegionInfo(index, 0, RegionFlag(0)), -1, 0)
        if not 0 <= index < self._info.num_regions:
            return nothing
        for room in _REGION_INFO_ROOM:
            request = wire.RegionInfoRequest(index, room)
            try:
                message = self._call(Command.DEVICE_GET_REGION_INFO, request.pack())
            except Refused:
                return nothing
            with message:
                reply = self._unpack(wire.RegionInfo.unpack, message.body)
                if reply.argsz > room:
                    continue
                # Without capabilities a server may leave argsz as it came, as the kernel does.
                short = reply.flags & RegionFlag.CAPS and reply.argsz > len(message.body)
                if reply.index != index or short:
                    raise self._lie(f"region {index}: index {reply.index}, argsz {reply.argsz}")
                if reply.size + reply.offset > 1 << 64:
                    raise self._lie(f"region {index} has {reply.size:#x} bytes")
                areas = self._check_areas(reply, message.fds)
                fd = message.fds.pop() if areas else -1
            flags = RegionFlag(reply.flags & (RegionFlag.READ | RegionFlag.WRITE | RegionFlag.MMAP))
            return _Region(RegionInfo(index, reply.size, flags, areas), fd, reply.offset)
        raise self._lie(f"region {index}: its capabilities take {reply.argsz} bytes")

    def _check_areas(self, reply: wire.RegionInfo, fds: Sequence[int]) -> tuple[Area, ...]:
        """The areas that can be mapped here; the rest of the region is reached by messages."""
        if not reply.flags & RegionFlag.MMAP or len(fds) != 1:
            return ()
        areas = reply.areas if reply.areas is not None else (Area(0, reply.size),)
        end = 0
        for area in sorted(areas, key=lambda area: area.offset):
            if area.offset < end or area.offset + area.size > reply.size:
                raise self._lie(
                    f"region {reply.index}: its mappable area {area.offset:#x}+{area.size:#x} is "
                    f"outside its {reply.size:#x} bytes or covers another"
                )
            end = area.offset + area.size
        status = os.fstat(fds[0])
        usable = [
            area
            for area in sorted(areas, key=lambda area: area.offset)
            if area.size
            and not (area.size | area.offset | (reply.offset + area.offset)) % mmap.PAGESIZE
        ]
        if usable and stat.S_ISREG(status.st_mode):
            end = reply.offset + usable[-1].offset + usable[-1].size
            if end > status.st_size:  # an access beyond the end of a file is SIGBUS
                raise self._lie(f"region {reply.index}: its file has {status.st_size:#x} bytes")
        return tuple(usable)

    def map(self, region: int, area: Area) -> mmap.mmap:
        held = self._region(region)
        self._check_lost()
        if not any(
            known.offset <= area.offset and area.offset + area.size <= known.offset + known.size
            for known in held.info.areas
        ):
            raise HostError(
                f"{self.address}: {area.size:#x} bytes at {area.offset:#x} of region {region} "
                "cannot be mapped"
            )
        try:
            return mmap.mmap(held.fd, area.size, offset=held.offset + area.offset)
        except (OSError, ValueError, OverflowError) as error:
            raise HostError(f"{self.address}: mapping region {region} failed: {error}") from error

    @property
    def sealed(self) -> bool:
        """Whether no access to what can be mapped of the regions asked for so far can be SIGBUS."""
        return all(_is_sealed(region.fd) for region in self._regions.values() if region.fd >= 0)

    def irq_count(self, kind: IrqKind) -> int:
        if kind not in self._irq_counts:
            self._irq_counts[kind] = self._ask_irq_count(kind)
        return self._irq_counts[kind]

    def _ask_irq_count(self, kind: IrqKind) -> int:
        self._check_lost()
        if kind >= self._info.num_irqs:
            return 0
        try:
            with self._call(Command.DEVICE_GET_IRQ_INFO, wire.IrqInfo(kind).pack()) as message:
                info = self._unpack(wire.IrqInfo.unpack, message.body)
        except Refused:
            return 0
        if info.index != kind or info.count > _MAX_VECTORS[kind]:
            raise self._lie(f"{info.count} {kind.name} vectors")
        return info.count if info.flags & wire.IrqFlag.EVENTFD else 0

    def can_reset(self) -> bool:
        return bool(self._info.flags & wire.DEVICE_RESET_FLAG)

    def reset(self) -> None:
        self._ask(Command.DEVICE_RESET)

    # -- regions ------------------------------------------------------------------------------

    @property
    def _chunk(self) -> int:
        """Bytes in one access message, a multiple of the widest register."""
        return min(self._server.max_data_xfer_size, wire.MAX_DATA_XFER_SIZE) & ~7

    def read(self, region: int, offset: int, size: int) -> bytes:
        chunk = self._chunk
        return b"".join(
            self._read(region, offset + start, min(chunk, size - start))
            for start in range(0, size, chunk)
        )

    def _read(self, region: int, offset: int, size: int) -> bytes:
        access = wire.RegionAccess(offset, region, size)
        body = self._ask(Command.REGION_READ, access.pack())
        return self._check_access(access, body, with_data=True)

    def write(self, region: int, offset: int, data: bytes) -> None:
        chunk = self._chunk
        for start in range(0, len(data), chunk):
            part = data[start : start + chunk]
            access = wire.RegionAccess(offset + start, region, len(part), part)
            body = self._ask(Command.REGION_WRITE, access.pack())
            self._check_access(access, body, with_data=False)

    def _check_access(self, access: wire.RegionAccess, body: bytes, *, with_data: bool) -> bytes:
        """The data of a reply, which must be about the very access that was asked for."""
        try:
            reply = wire.RegionAccess.unpack(body, with_data=with_data)
            if (reply.region, reply.offset, reply.count) != (
                access.region,
                access.offset,
                access.count,
            ):
                raise ProtocolError(f"{reply.count} bytes at {reply.offset:#x} were done")
        except ProtocolError as error:
            raise self._fail(
                f"a wrong answer to an access of {access.count} bytes at {access.offset:#x} of "
                f"region {access.region}: {error.message}",
                "the server is at fault",
            ) from error
        return reply.data

    def write_many(self, writes: Sequence[tuple[int, int, bytes]]) -> None:
        """Several register writes, in order, in as few messages as the server allows.

        :param writes: (region, offset, 1 to 8 bytes) each
        """
        if not self._server.write_multiple or self._chunk < wire.MULTI_WRITE_SIZE:
            for region, offset, data in writes:
                self.write(region, offset, data)
            return
        step = self._chunk // wire.MULTI_WRITE_SIZE
        for start in range(0, len(writes), step):
            accesses = tuple(
                wire.RegionAccess(offset, region, len(data), data)
                for region, offset, data in writes[start : start + step]
            )
            body = self._ask(Command.REGION_WRITE_MULTI, wire.WriteMulti(accesses).pack())
            done = self._unpack(wire.unpack_multi_reply, body)
            if done != len(accesses):
                raise self._fail(f"only {done} of {len(accesses)} writes were done")

    # -- interrupts ---------------------------------------------------------------------------

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        if not flags & SetIrqs.DATA_EVENTFD:
            data = bytes(eventfds) if flags & SetIrqs.DATA_BOOL else b""
            self._set_irqs(wire.IrqSet(flags, kind, start, count, data))
            return 0
        if len(eventfds) != count:
            raise ValueError(f"{len(eventfds)} eventfds for {count} vectors")
        # A message has an eventfd for each of its vectors, or for none of them.
        limit = self._server.max_msg_fds
        if not limit and any(fd >= 0 for fd in eventfds):
            raise HostError(f"{self.address}: the server takes no eventfds (max_msg_fds is 0)")
        done = 0
        while done < count:
            end = done + 1
            armed = eventfds[done] >= 0
            while end < count and (eventfds[end] >= 0) == armed and end - done < limit:
                end += 1
            fds = eventfds[done:end] if armed else ()
            self._set_irqs(wire.IrqSet(flags, kind, start + done, end - done), fds)
            done = end
        return 0

    def _set_irqs(self, request: wire.IrqSet, fds: Sequence[int] = ()) -> None:
        self._ask(Command.DEVICE_SET_IRQS, request.pack(), fds)

    # -- DMA ----------------------------------------------------------------------------------

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        return ((0, (1 << 64) - 1),)

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int) -> None:
        if len(self._memory) >= self._server.max_dma_maps:
            raise HostError(
                f"{self.address}: the server takes only {self._server.max_dma_maps} DMA mappings"
            )
        page = self._server.pgsizes & -self._server.pgsizes
        if (iova | size) % page:
            raise HostError(
                f"{self.address}: the server maps DMA in pages of {page:#x} bytes: not {size:#x} "
                f"bytes at {iova:#x}",
                hint="use a server whose pgsizes has the page size of this host",
            )
        flags = DmaFlag.READ | DmaFlag.WRITE
        request = wire.DmaMap(flags, 0, iova, size)
        # Without a descriptor the server asks for the bytes with DMA_READ and DMA_WRITE.
        fds = (fd,) if fd >= 0 and self._server.max_msg_fds else ()
        self._ask(Command.DMA_MAP, request.pack(), fds)
        self._memory[iova] = memory, size

    def dma_unmap(self, iova: int, size: int) -> None:
        # First, so that the server cannot reach memory that is about to be freed.
        self._memory.pop(iova, None)
        self._ask(Command.DMA_UNMAP, wire.DmaUnmap(0, iova, size).pack())

    # -- the connection -----------------------------------------------------------------------

    def fileno(self) -> int:
        return self._connection.fileno()

    def on_readable(self) -> None:
        self._check_lost()
        try:
            # One message only: the wait that calls this has a bound of its own, and a server may
            # send for ever.
            message = self._connection.try_receive()
            if message is None:
                return
            if not message.is_command:
                message.close()
                raise ProtocolError(
                    f"a reply to {wire.command_name(message.command)} that nobody waits for"
                )
            self._serve(message, Deadline(self.timeout))
        except (wire.Disconnected, ProtocolError, TimeoutError) as error:
            raise self._end(error) from error

    def close(self) -> None:
        if self._lost is None:
            self._lost = (f"{self.address}: closed", "")
        for region in self._regions.values():
            if region.fd >= 0:
                os.close(region.fd)
        self._regions.clear()
        self._memory.clear()
        self._connection.close()


def _is_sealed(fd: int) -> bool:
    """Whether the file is memory that cannot shrink. Huge pages may be missing all the same."""
    import fcntl

    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # not a memfd
        return False
    return bool(seals & fcntl.F_SEAL_SHRINK) and os.fstat(fd).st_blksize == mmap.PAGESIZE


def _connect_error(address: str, error: OSError) -> HostError:
    start = "start the endpoint with: rcdrv sim PRESET --socket PATH"
    if isinstance(error, FileNotFoundError):
        return HostError(f"{address}: there is no such socket", hint=start)
    if isinstance(error, PermissionError):
        return HostError(
            f"{address}: permission denied", hint="the socket belongs to the user who serves it"
        )
    if isinstance(error, ConnectionRefusedError):
        return HostError(f"{address}: nobody listens on this socket", hint=start)
    if isinstance(error, (BlockingIOError, TimeoutError)):
        return HostError(
            f"{address}: the server is busy", hint="it serves one client at a time (QEMU?)"
        )
    return HostError(f"{address}: {error.strerror or error}", hint=start)
