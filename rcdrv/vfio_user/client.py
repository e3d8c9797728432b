"""A vfio-user client: a device behind a socket as :class:`rcdrv.device.Device`."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Sequence

from rcdrv.device import (
    Area,
    DeviceFlag,
    DmaFlag,
    IrqFlag,
    IrqKind,
    RegionFlag,
    RegionInfo,
    SetIrqs,
    is_sealed,
)
from rcdrv.errors import DeviceLost, HostError
from rcdrv.record import record
from rcdrv.vfio_user import wire
from rcdrv.vfio_user.caller import SERVER_HINT, Caller
from rcdrv.vfio_user.messages import (
    MAX_VECTORS,
    MULTI_WRITE_SIZE,
    DeviceInfo,
    DmaMap,
    DmaUnmap,
    IrqInfo,
    IrqSet,
    RegionAccess,
    RegionInfoRequest,
    WireRegionInfo,
    WriteMulti,
    pack_access,
    unpack_multi_reply,
)
from rcdrv.vfio_user.version import Capabilities, Version
from rcdrv.vfio_user.wire import ProtocolError, Refused, WireCommand
from rcdrv.wait import Cancel

_MAX_REGIONS, _MAX_IRQS = 100, 50
"""Limits of QEMU's hw/vfio-user/device.c, above those of any PCI device."""

_SCM_MAX_FD = 253
"""Descriptors that one sendmsg(2) carries: Linux's include/net/scm.h."""

_REGION_INFO_ROOM = (4096, 65536)
"""Sizes in bytes offered for a region's capabilities, at the first and at the second attempt."""


@record
class _Region:
    info: RegionInfo
    fd: int
    offset: int
    """Start of the region in the file."""


class Client:
    """A connected vfio-user device. Methods are those of :class:`rcdrv.device.Device`.

    Not thread-safe. A method that sends a message raises :class:`DeviceLost` if the server does not
    answer within ``timeout`` or has ended, and so does every later one; :class:`HostError` if the
    reply is an error; :class:`ProtocolError` if the reply describes an impossible region or
    interrupt.

    :param sock: connection to the server, owned from now on
    :param address: name of the device in messages
    :param timeout: seconds to wait for each reply
    """

    backend = "vfio-user"
    dma_by_descriptor = True
    messages = True

    def __init__(self, sock: socket.socket, address: str, timeout: float = 5.0) -> None:
        self.address = address
        """Address as the user wrote it."""
        self._caller = Caller(sock, address, timeout)
        self._regions: dict[int, _Region] = {}
        self._irq_counts: dict[IrqKind, int] = {}
        try:
            self._server = self._negotiate()
            # Limit of an access message in bytes, a multiple of the widest register.
            self._chunk = min(self._server.max_data_xfer_size, wire.MAX_DATA_XFER_SIZE) & ~7
            self._info = self._get_info()
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float = 5.0) -> Client:
        """Connect to the server that listens at ``path``.

        :raises HostError: no socket, no permission, no server, not a vfio-user server, or one of
            another version
        :raises DeviceLost: the server accepts the connection but does not answer
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

    # -- opening ------------------------------------------------------------------------------

    def _negotiate(self) -> Capabilities:
        try:
            agreed = Version.unpack(self._caller.ask(WireCommand.VERSION, Version().pack()))
        except ProtocolError as error:
            raise HostError(f"{self.address}: {error}", hint=SERVER_HINT) from error
        except DeviceLost as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            raise HostError(error.message, hint=SERVER_HINT) from error
        unusable = agreed.unusable
        if unusable:
            raise HostError(f"{self.address}: {unusable[0]}", hint=unusable[1])
        return agreed.capabilities

    def _get_info(self) -> DeviceInfo:
        info = self._caller.unpack(
            DeviceInfo.unpack,
            self._caller.ask(WireCommand.DEVICE_GET_INFO, DeviceInfo().pack()),
        )
        if not info.flags & DeviceFlag.PCI:
            raise HostError(f"{self.address}: not a PCI device", hint=SERVER_HINT)
        if info.num_regions > _MAX_REGIONS or info.num_irqs > _MAX_IRQS:
            raise self._caller.lie(f"{info.num_regions} regions, {info.num_irqs} interrupt kinds")
        return info

    # -- what the device is -------------------------------------------------------------------

    def region(self, index: int) -> RegionInfo:
        return self._region(index).info

    def _region(self, index: int) -> _Region:
        # Asked once: the mappable areas do not change during a connection, and each reply brings a
        # descriptor.
        if index not in self._regions:
            self._caller.check_lost()
            self._regions[index] = self._ask_region(index)
        return self._regions[index]

    def _ask_region(self, index: int) -> _Region:
        nothing = _Region(RegionInfo(index, 0, RegionFlag(0)), -1, 0)
        if not 0 <= index < self._info.num_regions:
            return nothing
        for room in _REGION_INFO_ROOM:
            request = RegionInfoRequest(index, room)
            try:
                message = self._caller.call(WireCommand.DEVICE_GET_REGION_INFO, request.pack())
            except Refused:
                return nothing
            with message:
                reply = self._caller.unpack(WireRegionInfo.unpack, message.body)
                if reply.argsz > room:
                    continue
                try:
                    reply.check(index, len(message.body))
                    areas = reply.mappable(message.fds)
                except ProtocolError as error:
                    raise self._caller.lie(error.message) from error
                fd = message.fds.pop() if areas else -1
            flags = RegionFlag(reply.flags & (RegionFlag.READ | RegionFlag.WRITE | RegionFlag.MMAP))
            return _Region(RegionInfo(index, reply.size, flags, areas), fd, reply.offset)
        raise self._caller.lie(f"region {index}: its capabilities take {reply.argsz} bytes")

    def map(self, region: int, area: Area) -> mmap.mmap:
        held = self._region(region)
        self._caller.check_lost()
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

    def in_memory(self, region: int) -> bool:
        return is_sealed(self._region(region).fd)

    @property
    def sealed(self) -> bool:
        """Whether accesses to mappings of the regions seen so far cannot raise SIGBUS."""
        return all(is_sealed(region.fd) for region in self._regions.values() if region.fd >= 0)

    def irq_count(self, kind: IrqKind) -> int:
        if kind not in self._irq_counts:
            self._irq_counts[kind] = self._ask_irq_count(kind)
        return self._irq_counts[kind]

    def _ask_irq_count(self, kind: IrqKind) -> int:
        self._caller.check_lost()
        if kind >= self._info.num_irqs:
            return 0
        try:
            with self._caller.call(
                WireCommand.DEVICE_GET_IRQ_INFO, IrqInfo(kind).pack()
            ) as message:
                info = self._caller.unpack(IrqInfo.unpack, message.body)
        except Refused:
            return 0
        if info.index != kind or info.count > MAX_VECTORS[kind]:
            raise self._caller.lie(f"{info.count} {kind.name} vectors")
        return info.count if info.flags & IrqFlag.EVENTFD else 0

    def can_reset(self) -> bool:
        return bool(self._info.flags & DeviceFlag.RESET)

    def reset(self) -> None:
        self._caller.ask(WireCommand.DEVICE_RESET)

    # -- regions ------------------------------------------------------------------------------

    def read(self, region: int, offset: int, size: int) -> bytes:
        chunk = self._chunk
        if 0 < size <= chunk:
            return self._read(region, offset, size)
        return b"".join(
            self._read(region, offset + start, min(chunk, size - start))
            for start in range(0, size, chunk)
        )

    def _read(self, region: int, offset: int, size: int) -> bytes:
        request = pack_access(offset, region, size)
        body = self._caller.ask(WireCommand.REGION_READ, request)
        self._check_access(request, body, size)
        return body[len(request) :]

    def write(self, region: int, offset: int, data: bytes) -> None:
        chunk = self._chunk
        for start in range(0, len(data), chunk):
            part = data[start : start + chunk]
            request = pack_access(offset + start, region, len(part))
            body = self._caller.ask(WireCommand.REGION_WRITE, request + part)
            self._check_access(request, body, 0)

    def post(self, region: int, offset: int, data: bytes) -> None:
        """As :meth:`write`, of 8 bytes at most, without an answer. One that is refused is lost, as
        on a link."""
        request = pack_access(offset, region, len(data)) + data
        self._caller.post(WireCommand.REGION_WRITE, request)

    def _check_access(self, request: bytes, body: bytes, size: int) -> None:
        """Check that a reply has the fields of the request, and ``size`` bytes of data."""
        if body.startswith(request) and len(body) == len(request) + size:
            return
        asked = RegionAccess.unpack(request, with_data=False)
        try:
            reply = RegionAccess.unpack(body, with_data=size > 0)
            what = f"it names {reply.count} bytes at {reply.offset:#x} of region {reply.region}"
        except ProtocolError as error:
            what = error.message
        raise self._caller.fail(
            f"a wrong answer to an access of {asked.count} bytes at {asked.offset:#x} of region "
            f"{asked.region}: {what}",
            "the server is at fault",
        )

    def write_many(self, writes: Sequence[tuple[int, int, bytes]]) -> None:
        """Write several registers in order, in as few messages as the server allows.

        :param writes: (region, offset, data of 1 to 8 bytes) of each
        """
        if not self._server.write_multiple or self._chunk < MULTI_WRITE_SIZE:
            for region, offset, data in writes:
                self.write(region, offset, data)
            return
        step = self._chunk // MULTI_WRITE_SIZE
        for start in range(0, len(writes), step):
            accesses = tuple(
                RegionAccess(offset, region, len(data), data)
                for region, offset, data in writes[start : start + step]
            )
            body = self._caller.ask(WireCommand.REGION_WRITE_MULTI, WriteMulti(accesses).pack())
            done = self._caller.unpack(unpack_multi_reply, body)
            if done != len(accesses):
                raise self._caller.fail(f"only {done} of {len(accesses)} writes were done")

    # -- interrupts ---------------------------------------------------------------------------

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        if not flags & SetIrqs.DATA_EVENTFD:
            data = bytes(eventfds) if flags & SetIrqs.DATA_BOOL else b""
            self._set_irqs(IrqSet(flags, kind, start, count, data))
            return 0
        if len(eventfds) != count:
            raise ValueError(f"{len(eventfds)} eventfds for {count} vectors")
        # A message has eventfds for all of its vectors or for none.
        limit = min(self._server.max_msg_fds, _SCM_MAX_FD)
        if not limit and any(fd >= 0 for fd in eventfds):
            raise HostError(f"{self.address}: the server takes no eventfds (max_msg_fds is 0)")
        done = 0
        while done < count:
            end = done + 1
            armed = eventfds[done] >= 0
            while end < count and (eventfds[end] >= 0) == armed and end - done < limit:
                end += 1
            fds = eventfds[done:end] if armed else ()
            self._set_irqs(IrqSet(flags, kind, start + done, end - done), fds)
            done = end
        return 0

    def _set_irqs(self, request: IrqSet, fds: Sequence[int] = ()) -> None:
        self._caller.ask(WireCommand.DEVICE_SET_IRQS, request.pack(), fds)

    # -- DMA ----------------------------------------------------------------------------------

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        return ((0, (1 << 64) - 1),)

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int) -> None:
        if len(self._caller.memory) >= self._server.max_dma_maps:
            raise HostError(
                f"{self.address}: the server takes only {self._server.max_dma_maps} DMA mappings"
            )
        page = self._server.pgsizes & -self._server.pgsizes
        if (iova | size) % page:
            raise HostError(
                f"{self.address}: the server maps DMA in pages of {page:#x} bytes: not {size:#x} "
                f"bytes at {iova:#x}",
                hint="use a server whose pgsizes includes the page size of this host",
            )
        flags = DmaFlag.READ | DmaFlag.WRITE
        request = DmaMap(flags, 0, iova, size)
        # Without a descriptor the server sends DMA_READ and DMA_WRITE.
        fds = (fd,) if fd >= 0 and self._server.max_msg_fds else ()
        self._caller.ask(WireCommand.DMA_MAP, request.pack(), fds)
        self._caller.memory.add(iova, memory, size)

    def dma_unmap(self, iova: int, size: int) -> None:
        # First: the server must not access memory that is about to be freed.
        self._caller.memory.remove(iova)
        self._caller.ask(WireCommand.DMA_UNMAP, DmaUnmap(0, iova, size).pack())

    # -- the connection -----------------------------------------------------------------------

    @property
    def timeout(self) -> float:
        """Seconds to wait for each reply. Setting it refills the budget."""
        return self._caller.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._caller.timeout = seconds

    def allow(self, timeout: float) -> None:
        self._caller.allow(timeout)

    def heed(self, cancel: Cancel) -> None:
        self._caller.cancel = cancel

    def fileno(self) -> int:
        return self._caller.fileno()

    def on_readable(self) -> None:
        self._caller.on_readable()

    def close(self) -> None:
        self._caller.close()
        for region in self._regions.values():
            if region.fd >= 0:
                os.close(region.fd)
        self._regions.clear()


_START = "start the endpoint with: rcdrv sim PRESET --socket PATH"
_BUSY = ("the server is busy", "it serves one client at a time (QEMU?)")
_CONNECT_ERRORS: dict[type[OSError], tuple[str, str]] = {
    FileNotFoundError: ("there is no such socket", _START),
    PermissionError: ("permission denied", "only the user who serves the socket may connect"),
    ConnectionRefusedError: ("no server listens on this socket", _START),
    BlockingIOError: _BUSY,
    TimeoutError: _BUSY,
}


def _connect_error(address: str, error: OSError) -> HostError:
    unnamed = (str(error.strerror or error), _START)
    message, hint = _CONNECT_ERRORS.get(type(error), unnamed)
    return HostError(f"{address}: {message}", hint=hint)
