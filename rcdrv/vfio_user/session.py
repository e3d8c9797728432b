"""Session of a vfio-user server with one client."""

from __future__ import annotations

import errno
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence

from rcdrv.device import Area, DeviceFlag, DmaFlag, IrqFlag, IrqKind, RegionFlag
from rcdrv.vfio_user import wire
from rcdrv.vfio_user.dma import DmaSpace
from rcdrv.vfio_user.irqs import ServedIrqs
from rcdrv.vfio_user.messages import (
    REGION_INFO_SIZE,
    DeviceInfo,
    DmaAccess,
    DmaMap,
    DmaUnmap,
    IrqInfo,
    IrqSet,
    RegionInfoRequest,
    WireRegionInfo,
    WriteMulti,
    pack_multi_reply,
    unpack_access,
)
from rcdrv.vfio_user.served import DmaFault, ServedDevice, ServedRegion
from rcdrv.vfio_user.stop import Stop
from rcdrv.vfio_user.version import MAJOR, MINOR, PAGE_SIZES, Capabilities, Version
from rcdrv.vfio_user.wire import Connection, Message, Refused, WireCommand
from rcdrv.wait import Deadline, Readable

_Reply = tuple[bytes, Sequence[int]]
_DONE: _Reply = (b"", ())
_READ, _WRITE = int(RegionFlag.READ), int(RegionFlag.WRITE)
_WITH_FDS = (WireCommand.VERSION, WireCommand.DMA_MAP, WireCommand.DEVICE_SET_IRQS)
"""Commands that check their descriptors themselves."""


class Session:
    """Session with one client, and the :class:`~rcdrv.vfio_user.served.Peer` of the device."""

    def __init__(
        self, device: ServedDevice, sock: socket.socket, stop: Stop, timeout: float, wake: int
    ) -> None:
        self._device = device
        self._stop = stop
        self._timeout = timeout
        self._connection = Connection(sock)
        self._regions: Sequence[ServedRegion] = device.regions()
        # As numbers: an operation on flags takes longer than all checks of an access.
        self._limits = [(int(region.flags), region.size) for region in self._regions]
        self._dma = DmaSpace()
        self._client = Capabilities()
        self._longest = wire.MAX_DATA_XFER_SIZE
        """Limit of the data of one message of the client, in bytes."""
        self.attached = False
        """Whether the client has agreed on a version."""
        self._gone = False
        self._serving = False
        self._next_id = 0
        self._awaited: int | None = None
        self._answer: Message | None = None
        # Eventfds of which every write is an edge, so that their counters are never read. The
        # socket is not among them: a client that waits is then woken on the same processor.
        self._edges = select.epoll()
        if wake >= 0:
            self._edges.register(wake, select.EPOLLIN | select.EPOLLET)
        self._socket = self._connection.fileno()
        self._readable = Readable(self._socket, stop.fd, self._edges.fileno())
        self._irqs = ServedIrqs(device, self._edges)
        self._handlers: dict[int, Callable[[Message], _Reply]] = {
            WireCommand.VERSION: self._version,
            WireCommand.DMA_MAP: self._dma_map,
            WireCommand.DMA_UNMAP: self._dma_unmap,
            WireCommand.DEVICE_GET_INFO: self._get_info,
            WireCommand.DEVICE_GET_REGION_INFO: self._get_region_info,
            WireCommand.DEVICE_GET_IRQ_INFO: self._get_irq_info,
            WireCommand.DEVICE_SET_IRQS: self._set_irqs,
            WireCommand.REGION_READ: self._region_read,
            WireCommand.REGION_WRITE: self._region_write,
            WireCommand.REGION_WRITE_MULTI: self._region_write_multi,
            WireCommand.DEVICE_RESET: self._reset,
        }

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the client leaves or the server is stopped."""
        negotiation = Deadline(self._timeout)
        while not self._over:
            if not self.attached:
                if negotiation.expired:
                    return
                self._turn(negotiation.remaining)
                continue
            due = self._device.next_event()
            if due is None:
                self._turn(None)
                continue
            wait = due - time.monotonic()
            if wait > 0:
                self._turn(wait)
                continue
            self._run_device()
            if not self._over:
                self._turn(0)

    def _run_device(self) -> None:
        try:
            self._device.run()
        except (OSError, MemoryError) as error:
            # Out of descriptors or memory: closing this session frees most of both.
            complain(error)
            self._gone = True

    @property
    def _over(self) -> bool:
        return self._gone or self._stop.requested

    def _turn(self, seconds: float | None) -> None:
        """Sleep until an event, at most ``seconds`` (None: no limit), and serve it."""
        holds = self._connection.holds_message
        ready = self._readable.wait(0 if holds else seconds)
        if self._edges.fileno() in ready:
            for fd, _ in self._edges.poll(0):
                if fd == self._irqs.unmask_fd:
                    self._irqs.mask_intx(False)
        if holds or self._socket in ready:
            try:
                self._receive()
            except (wire.Disconnected, wire.ProtocolError, TimeoutError):
                self._gone = True

    def _receive(self) -> None:
        message = self._connection.try_receive()
        if message is None:
            return
        if message.is_reply:
            if message.id == self._awaited:
                self._answer, self._awaited = message, None
            else:
                message.close()  # the late reply to an abandoned request
            return
        with message:
            serving, self._serving = self._serving, True
            try:
                self._serve(message)
            finally:
                self._serving = serving

    def _serve(self, message: Message) -> None:
        body: bytes = b""
        fds: Sequence[int] = ()
        error = 0
        try:
            body, fds = self._handle(message)
        except Refused as refused:
            error = refused.error
        except wire.ProtocolError:
            error = errno.EINVAL
        except (OSError, MemoryError) as failed:  # out of descriptors or memory
            error = getattr(failed, "errno", 0) or errno.ENOMEM
        if message.flags & wire.NO_REPLY:
            return
        deadline = Deadline(self._timeout)
        try:
            self._reply(message, body, deadline, fds, error)
        except TimeoutError:
            raise
        except OSError as failed:  # the descriptors cannot be sent
            self._reply(message, b"", deadline, (), failed.errno or errno.EMFILE)

    def _reply(
        self, message: Message, body: bytes, deadline: Deadline, fds: Sequence[int], error: int
    ) -> None:
        flags = wire.TYPE_REPLY | (wire.ERROR if error else 0)
        self._connection.send(
            message.command, message.id, flags, body, deadline, fds=fds, error=error
        )

    def _handle(self, message: Message) -> _Reply:
        command = message.command
        if not message.is_command:
            raise Refused(errno.EINVAL)
        if message.fds_lost:
            raise Refused(errno.EMFILE)
        if not self.attached and command != WireCommand.VERSION:
            raise Refused(errno.EINVAL)
        handler = self._handlers.get(command)
        if handler is None:
            raise Refused(errno.ENOTSUP)
        if message.fds and command not in _WITH_FDS:
            raise Refused(errno.EINVAL)
        return handler(message)

    def close(self) -> None:
        """Release the client's resources, then detach the device."""
        self._gone = True
        if self._answer is not None:
            self._answer.close()
        self._irqs.close()
        self._dma.clear()
        self._connection.close()
        self._edges.close()
        if self.attached:
            self._device.detach()

    # -- what the device is -------------------------------------------------------------------

    def _version(self, message: Message) -> _Reply:
        if self.attached or message.fds:
            raise Refused(errno.EINVAL)
        asked = Version.unpack(message.body)
        wanted = asked.capabilities
        if asked.major != MAJOR or wanted.max_data_xfer_size < 1 or not wanted.pgsizes & PAGE_SIZES:
            raise Refused(errno.EINVAL)
        self._client = asked.capabilities
        self._device.attach(self)
        self.attached = True
        # The reply must not name a capability that the client did not propose (VFIO_USER_VERSION,
        # rule 3): the client then uses the default, which must be accepted.
        if "max_data_xfer_size" in self._client.unknown:
            self._longest = Capabilities().max_data_xfer_size
        capabilities = Capabilities(
            max_msg_fds=wire.MAX_MSG_FDS,
            max_data_xfer_size=wire.MAX_DATA_XFER_SIZE,
            pgsizes=self._client.pgsizes & PAGE_SIZES,
            write_multiple=self._client.write_multiple,
            unknown=self._client.unknown,
        )
        return Version(MAJOR, min(asked.minor, MINOR), capabilities).pack(), ()

    def _get_info(self, message: Message) -> _Reply:
        DeviceInfo.unpack(message.body)
        flags = DeviceFlag.PCI
        if self._device.can_reset():
            flags |= DeviceFlag.RESET
        return DeviceInfo(flags, len(self._regions), len(IrqKind)).pack(), ()

    def _get_region_info(self, message: Message) -> _Reply:
        request = RegionInfoRequest.unpack(message.body)
        region = self._region(request.index)
        areas = None
        flags = region.flags
        mappable = bool(region.areas) and self._client.max_msg_fds > 0
        if mappable:
            flags |= RegionFlag.MMAP
            if region.areas != (Area(0, region.size),):
                areas = region.areas
        start = region.start if mappable else 0
        info = WireRegionInfo(request.index, flags, region.size, start, areas).pack(request.argsz)
        # After an incomplete reply the client asks again; it needs one descriptor only.
        complete = areas is None or len(info) > REGION_INFO_SIZE
        return info, (region.fd,) if mappable and complete else ()

    def _get_irq_info(self, message: Message) -> _Reply:
        index = IrqInfo.unpack(message.body).index
        if index >= len(IrqKind):
            raise Refused(errno.EINVAL)
        # Without NORESIZE, vectors may be armed one at a time. With it, QEMU would rearm all of
        # MSI-X for each vector that a guest adds (vfio_msix_vector_do_use in hw/vfio/pci.c).
        flags = IrqFlag.EVENTFD
        if index == IrqKind.INTX:
            flags |= IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
        return IrqInfo(index, flags, self._irqs.count(index)).pack(), ()

    def _reset(self, message: Message) -> _Reply:
        if message.body or not self._device.can_reset():
            raise Refused(errno.EINVAL)
        self._device.reset()
        return _DONE

    # -- regions ------------------------------------------------------------------------------

    def _region(self, index: int) -> ServedRegion:
        if index >= len(self._regions):
            raise Refused(errno.EINVAL)
        return self._regions[index]

    def _check_access(self, offset: int, region: int, count: int, needed: int) -> None:
        if region >= len(self._limits):
            raise Refused(errno.EINVAL)
        flags, size = self._limits[region]
        if not flags & needed or count > self._longest or offset + count > size:
            raise Refused(errno.EINVAL)

    def _region_read(self, message: Message) -> _Reply:
        body = message.body
        offset, region, count = unpack_access(body, with_data=False)
        self._check_access(offset, region, count, _READ)
        # The reply repeats the request.
        return body + self._device.read(region, offset, count) if count else body, ()

    def _region_write(self, message: Message) -> _Reply:
        body = message.body
        offset, region, count = unpack_access(body, with_data=True)
        self._check_access(offset, region, count, _WRITE)
        if count:
            self._device.write(region, offset, body[-count:])
        return body[: len(body) - count], ()

    def _region_write_multi(self, message: Message) -> _Reply:
        writes = WriteMulti.unpack(message.body).writes
        for access in writes:
            self._check_access(access.offset, access.region, access.count, _WRITE)
        for access in writes:
            self._device.write(access.region, access.offset, access.data)
        return pack_multi_reply(len(writes)), ()

    # -- interrupts ---------------------------------------------------------------------------

    def armed(self, kind: IrqKind) -> int:
        return self._irqs.armed(kind)

    def trigger(self, kind: IrqKind, vector: int) -> bool:
        return self._irqs.trigger(kind, vector)

    def _set_irqs(self, message: Message) -> _Reply:
        self._irqs.set(IrqSet.unpack(message.body), message.fds)
        return _DONE

    # -- DMA ----------------------------------------------------------------------------------

    def _dma_map(self, message: Message) -> _Reply:
        request = DmaMap.unpack(message.body)
        if len(message.fds) > 1:
            raise Refused(errno.EINVAL)
        self._dma.map(request, message.fds[0] if message.fds else -1)
        return _DONE

    def _dma_unmap(self, message: Message) -> _Reply:
        request = DmaUnmap.unpack(message.body)
        self._dma.unmap(request)
        return request.pack(), ()

    def dma_read(self, address: int, size: int) -> bytes:
        self._dma.check(address, size, DmaFlag.READ)
        parts = []
        done = 0
        while done < size:
            here = address + done
            file, offset, length = self._dma.find(here, size - done, DmaFlag.READ)
            if file is not None:
                parts.append(file.read(offset, length))
            else:
                length = min(length, self._chunk)
                parts.append(self._ask(WireCommand.DMA_READ, DmaAccess(here, length)))
            done += length
        return b"".join(parts)  # a single part is not copied

    def dma_file(self, address: int, size: int) -> tuple[int, int] | None:
        file, offset, length = self._dma.find(address, size, DmaFlag.READ)
        return None if file is None or length < size else (file.fd, offset)

    def dma_view(self, address: int, size: int) -> memoryview | None:
        file, offset, length = self._dma.find(address, size, DmaFlag.WRITE)
        return None if file is None or length < size else file.view(offset, size)

    def dma_reach(self, address: int, size: int) -> int:
        return self._dma.find(address, size, DmaFlag.READ)[2]

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        if not data:
            return
        file, offset, length = self._dma.find(address, len(data), DmaFlag.WRITE)
        if length == len(data) and file is not None:
            file.write(offset, data)
            return
        self._dma.check(address, len(data), DmaFlag.WRITE)
        done = 0
        while done < len(data):
            here = address + done
            file, offset, length = self._dma.find(here, len(data) - done, DmaFlag.WRITE)
            if file is not None:
                file.write(offset, data[done : done + length])
            else:
                length = min(length, self._chunk)
                chunk = bytes(data[done : done + length])
                self._ask(WireCommand.DMA_WRITE, DmaAccess(here, length, chunk))
            done += length

    @property
    def _chunk(self) -> int:
        return min(wire.MAX_DATA_XFER_SIZE, self._client.max_data_xfer_size)

    def _ask(self, command: WireCommand, access: DmaAccess) -> bytes:
        """Send DMA_READ or DMA_WRITE, and serve requests of the client until it answers.

        QEMU may be waiting for the reply to a region access while it holds the lock that its DMA
        needs. Without serving that access, both sides would time out.
        """
        if self._serving:
            raise RuntimeError("a device must not do DMA before its register write is answered")
        deadline = Deadline(self._timeout)
        self._next_id = (self._next_id + 1) & 0xFFFF
        self._awaited = self._next_id
        try:
            if not self._over:
                self._connection.send(command, self._next_id, 0, access.pack(), deadline)
            while self._answer is None:
                if self._over:
                    raise DmaFault("the client has left, or the server ends")
                if deadline.expired:
                    raise DmaFault(f"{command.name} was not answered in {self._timeout:g} s")
                self._turn(deadline.remaining)
            with self._answer as answer:
                return self._check_answer(command, access, answer)
        except (wire.Disconnected, TimeoutError) as error:
            self._gone = True
            raise DmaFault("the client has left") from error
        finally:
            self._awaited = self._answer = None

    @staticmethod
    def _check_answer(command: WireCommand, access: DmaAccess, answer: Message) -> bytes:
        where = f"{command.name} at {access.address:#x}"
        if answer.flags & wire.ERROR:
            raise DmaFault(f"{where}: {wire.error_text(answer.error)}")
        if answer.command != command:
            raise DmaFault(f"{where} was answered by {wire.command_name(answer.command)}")
        if command is WireCommand.DMA_WRITE:
            return b""  # QEMU replies with a bare header, libvfio-user with the request's fields
        try:
            data = DmaAccess.unpack(answer.body, with_data=True).data
        except wire.ProtocolError as error:
            raise DmaFault(f"{where}: {error}") from error
        if len(data) != access.count:
            raise DmaFault(f"{where}: {len(data)} bytes instead of {access.count}")
        return data


def complain(error: OSError | MemoryError) -> None:
    """Print on stderr why a client is dropped."""
    reason = error.strerror if isinstance(error, OSError) else "out of memory"
    print(f"rcdrv: the client is dropped: {reason}", file=sys.stderr)
