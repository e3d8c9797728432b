"""A vfio-user server: one :class:`~rcdrv.vfio_user.served.ServedDevice`, one client at a time.

Its clients are :class:`rcdrv.vfio_user.client.Client` and QEMU's ``vfio-user-pci``. Everything
runs in the thread that calls :meth:`Server.serve`; only :meth:`Server.stop` may be called from
elsewhere. A client is not trusted: whatever it sends, it gets an error reply, or is dropped when
its stream makes no sense any more, and the next client finds the server as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rcdrv.device import CONFIG_REGION, Area, IrqKind, RegionFlag, SetIrqs
from rcdrv.errors import HostError
from rcdrv.vfio_user import wire
from rcdrv.vfio_user.dma import DmaSpace
from rcdrv.vfio_user.irqs import Vectors, is_eventfd
from rcdrv.vfio_user.served import DmaFault as DmaFault
from rcdrv.vfio_user.served import ServedDevice, ServedRegion
from rcdrv.vfio_user.wire import Command, Connection, DmaFlag, IrqFlag, Message, Refused
from rcdrv.wait import Deadline

_Reply = tuple[bytes, Sequence[int]]
_DONE: _Reply = (b"", ())

_FD_SETSIZE = 1024

_DATA = SetIrqs.DATA_NONE | SetIrqs.DATA_BOOL | SetIrqs.DATA_EVENTFD
_ACTION = SetIrqs.ACTION_MASK | SetIrqs.ACTION_UNMASK | SetIrqs.ACTION_TRIGGER


class _Stop:
    """An eventfd that is readable from :meth:`set` on."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.requested = False
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def wait(self, seconds: float) -> None:
        self._poll.poll(seconds * 1000)

    def set(self) -> None:
        self.requested = True
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class _Session:
    """One client, from its VERSION to its end. It is the served device's ``Peer``."""

    def __init__(
        self, device: ServedDevice, sock: socket.socket, stop: _Stop, timeout: float
    ) -> None:
        self._device = device
        self._stop = stop
        self._timeout = timeout
        self._connection = Connection(sock)
        self._regions: Sequence[ServedRegion] = device.regions()
        self._vectors = Vectors(device.irq_counts())
        self._intx_masked = False
        self._unmask_fd = -1
        self._dma = DmaSpace()
        self._client = wire.Capabilities()
        self.attached = False
        """Whether the client has agreed on a version."""
        self._gone = False
        self._serving = False
        self._next_id = 0
        self._awaited: int | None = None
        self._answer: Message | None = None
        self._epoll = select.epoll()
        self._epoll.register(self._connection, select.EPOLLIN)
        self._epoll.register(stop.fd, select.EPOLLIN)
        self._handlers: dict[int, Callable[[Message], _Reply]] = {
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._get_info,
            Command.DEVICE_GET_REGION_INFO: self._get_region_info,
            Command.DEVICE_GET_IRQ_INFO: self._get_irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_RESET: self._reset,
        }

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the client has gone or the server is stopped."""
        negotiation = Deadline(self._timeout)
        while not self._over:
            if not self.attached:
                if negotiation.expired:
                    return
                self._turn(negotiation.remaining)
                continue
            due = self._device.next_event()
            if due is None:
                self._turn(-1)
                continue
            wait = due - time.monotonic()
            self._turn(max(0.0, wait))
            # The message just served may have brought the event forward, or put it off.
            due = self._device.next_event()
            if due is not None and due <= time.monotonic() and not self._over:
                self._run_device()

    def _run_device(self) -> None:
        try:
            self._device.run()
        except (OSError, MemoryError) as error:
            # Out of descriptors or memory. Most of both that is taken is this client's, and given
            # back with it.
            _complain(error)
            self._gone = True

    @property
    def _over(self) -> bool:
        return self._gone or self._stop.requested

    def _turn(self, seconds: float) -> None:
        """Sleep until something arrives, at most ``seconds`` (-1: no limit), and deal with it."""
        if seconds > 0 and self._epoll.fileno() < _FD_SETSIZE:
            # epoll_wait() rounds up to whole milliseconds, select() to microseconds.
            select.select([self._epoll], [], [], seconds)
            seconds = 0
        for fd, _ in self._epoll.poll(seconds):
            if fd == self._unmask_fd:
                self._mask_intx(False)
            elif fd == self._connection.fileno():
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
                message.close()  # the answer to a request that was given up
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
        if not message.is_command:
            raise Refused(errno.EINVAL)
        if message.fds_lost:
            raise Refused(errno.EMFILE)
        if message.command == Command.VERSION:
            return self._version(message)
        if not self.attached:
            raise Refused(errno.EINVAL)
        handler = self._handlers.get(message.command)
        if handler is None:
            raise Refused(errno.ENOTSUP)
        if message.fds and message.command not in (Command.DMA_MAP, Command.DEVICE_SET_IRQS):
            raise Refused(errno.EINVAL)
        return handler(message)

    def close(self) -> None:
        """Close all that the client left here, then tell the device."""
        self._gone = True
        if self._answer is not None:
            self._answer.close()
        self._vectors.close()
        self._watch_unmask(-1)
        self._dma.clear()
        self._connection.close()
        self._epoll.close()
        if self.attached:
            self._device.detach()

    # -- what the device is -------------------------------------------------------------------

    def _version(self, message: Message) -> _Reply:
        if self.attached or message.fds:
            raise Refused(errno.EINVAL)
        version = wire.Version.unpack(message.body)
        if version.major != wire.MAJOR or version.capabilities.max_data_xfer_size < 1:
            raise Refused(errno.EINVAL)
        self._client = version.capabilities
        self._device.attach(self)
        self.attached = True
        # What a client does not know must not be offered (VFIO_USER_VERSION, rule 3). But these two
        # it has to know: their defaults are beyond what is taken here.
        capabilities = wire.Capabilities(
            max_msg_fds=wire.MAX_MSG_FDS,
            max_data_xfer_size=wire.MAX_DATA_XFER_SIZE,
            write_multiple=self._client.write_multiple,
            unknown=self._client.unknown - {"max_msg_fds", "max_data_xfer_size"},
        )
        return wire.Version(wire.MAJOR, min(version.minor, wire.MINOR), capabilities).pack(), ()

    def _get_info(self, message: Message) -> _Reply:
        wire.DeviceInfo.unpack(message.body)
        flags = wire.DEVICE_PCI_FLAG
        if self._device.can_reset():
            flags |= wire.DEVICE_RESET_FLAG
        return wire.DeviceInfo(flags, len(self._regions), len(IrqKind)).pack(), ()

    def _get_region_info(self, message: Message) -> _Reply:
        request = wire.RegionInfoRequest.unpack(message.body)
        region = self._region(request.index)
        areas = None
        flags = region.flags
        mappable = bool(region.areas) and self._client.max_msg_fds > 0
        if mappable:
            flags |= RegionFlag.MMAP
            if region.areas != (Area(0, region.size),):
                areas = region.areas
        info = wire.RegionInfo(request.index, flags, region.size, 0, areas).pack(request.argsz)
        # A client with too little room asks again, and would have to close a descriptor.
        complete = areas is None or len(info) > wire.REGION_INFO_SIZE
        return info, (region.fd,) if mappable and complete else ()

    def _get_irq_info(self, message: Message) -> _Reply:
        index = wire.IrqInfo.unpack(message.body).index
        if index >= len(IrqKind):
            raise Refused(errno.EINVAL)
        # Vectors may be armed one at a time. With NORESIZE, QEMU would disarm all of MSI-X and arm
        # it again for each one that a guest adds (vfio_msix_vector_do_use in hw/vfio/pci.c).
        flags = IrqFlag.EVENTFD
        if index == IrqKind.INTX:
            flags |= IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
        return wire.IrqInfo(index, flags, self._vectors.count(index)).pack(), ()

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

    def _check_access(self, access: wire.RegionAccess, needed: RegionFlag) -> None:
        region = self._region(access.region)
        if not region.flags & needed or access.count > wire.MAX_DATA_XFER_SIZE:
            raise Refused(errno.EINVAL)
        if access.offset + access.count > region.size:
            raise Refused(errno.EINVAL)

    def _region_read(self, message: Message) -> _Reply:
        access = wire.RegionAccess.unpack(message.body, with_data=False)
        self._check_access(access, RegionFlag.READ)
        data = b""
        if access.count:
            data = self._device.read(access.region, access.offset, access.count)
        return wire.RegionAccess(access.offset, access.region, access.count, data).pack(), ()

    def _region_write(self, message: Message) -> _Reply:
        access = wire.RegionAccess.unpack(message.body, with_data=True)
        self._check_access(access, RegionFlag.WRITE)
        if access.count:
            self._device.write(access.region, access.offset, access.data)
        return wire.RegionAccess(access.offset, access.region, access.count).pack(), ()

    def _region_write_multi(self, message: Message) -> _Reply:
        writes = wire.WriteMulti.unpack(message.body).writes
        for access in writes:
            self._check_access(access, RegionFlag.WRITE)
        for access in writes:
            self._device.write(access.region, access.offset, access.data)
        return wire.pack_multi_reply(len(writes)), ()

    # -- interrupts ---------------------------------------------------------------------------

    def armed(self, kind: IrqKind) -> int:
        return self._vectors.armed(kind)

    def trigger(self, kind: IrqKind, vector: int) -> bool:
        if kind is IrqKind.INTX and self._intx_masked:
            return False
        if not self._vectors.fire(kind, vector):
            return False
        if kind is IrqKind.INTX:
            self._mask_intx(True)
        return True

    def _mask_intx(self, masked: bool) -> None:
        if masked != self._intx_masked:
            self._intx_masked = masked
            self._device.intx_masked(masked)

    def _set_irqs(self, message: Message) -> _Reply:
        """The combinations are those of drivers/vfio/pci/vfio_pci_intrs.c in Linux."""
        request = wire.IrqSet.unpack(message.body)
        data, action = request.flags & _DATA, request.flags & _ACTION
        if request.flags != data | action or not _is_one_bit(data) or not _is_one_bit(action):
            raise Refused(errno.EINVAL)
        if request.index >= len(IrqKind):
            raise Refused(errno.EINVAL)
        kind = IrqKind(request.index)
        count = self._vectors.count(kind)
        if request.start >= count or request.start + request.count > count:
            raise Refused(errno.EINVAL)
        if len(request.data) != (request.count if data == SetIrqs.DATA_BOOL else 0):
            raise Refused(errno.EINVAL)
        if message.fds and (data != SetIrqs.DATA_EVENTFD or len(message.fds) != request.count):
            raise Refused(errno.EINVAL)
        if not all(map(is_eventfd, message.fds)):
            raise Refused(errno.EINVAL)
        if not request.count:
            if request.start or data != SetIrqs.DATA_NONE or action != SetIrqs.ACTION_TRIGGER:
                raise Refused(errno.EINVAL)
            self._disarm(kind)
        elif action != SetIrqs.ACTION_TRIGGER:
            self._set_mask(kind, action == SetIrqs.ACTION_MASK, request, message.fds)
        elif data == SetIrqs.DATA_EVENTFD:
            self._arm(kind, request, message.fds)
        else:
            for vector in _chosen(request):
                self._vectors.fire(kind, vector)
        return _DONE

    def _arm(self, kind: IrqKind, request: wire.IrqSet, fds: list[int]) -> None:
        exclusive = kind in (IrqKind.INTX, IrqKind.MSI, IrqKind.MSIX)
        if fds and exclusive and self._vectors.active() not in (None, kind):
            raise Refused(errno.EINVAL)
        for vector in range(request.start, request.start + request.count):
            self._vectors.arm(kind, vector, fds.pop(0) if fds else -1)
        self._device.irqs_changed(kind)

    def _disarm(self, kind: IrqKind) -> None:
        self._vectors.clear(kind)
        if kind is IrqKind.INTX:
            self._watch_unmask(-1)
            self._mask_intx(False)
        self._device.irqs_changed(kind)

    def _set_mask(self, kind: IrqKind, masked: bool, request: wire.IrqSet, fds: list[int]) -> None:
        if kind is not IrqKind.INTX:
            raise Refused(errno.ENOTSUP)
        if not request.flags & SetIrqs.DATA_EVENTFD:
            if _chosen(request):
                self._mask_intx(masked)
            return
        if masked:
            raise Refused(errno.ENOTSUP)
        self._watch_unmask(fds.pop() if fds else -1)

    def _watch_unmask(self, fd: int) -> None:
        """Unmask INTx whenever the client signals ``fd``, as VFIO does; KVM signals it at the
        guest's end of interrupt. The session owns it; -1 ends that."""
        if self._unmask_fd >= 0:
            # Closing it would not do: the client has the same eventfd open.
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(self._unmask_fd)
            os.close(self._unmask_fd)
        self._unmask_fd = fd
        if fd >= 0:
            # Every write is an edge, so the counter need not be read, which could block.
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    # -- DMA ----------------------------------------------------------------------------------

    def _dma_map(self, message: Message) -> _Reply:
        request = wire.DmaMap.unpack(message.body)
        if len(message.fds) > 1:
            raise Refused(errno.EINVAL)
        self._dma.map(request, message.fds[0] if message.fds else -1)
        return _DONE

    def _dma_unmap(self, message: Message) -> _Reply:
        request = wire.DmaUnmap.unpack(message.body)
        self._dma.unmap(request)
        return request.pack(), ()

    def dma_read(self, address: int, size: int) -> bytes:
        self._dma.check(address, size, DmaFlag.READ)
        parts = []
        done = 0
        while done < size:
            here = address + done
            mapping, length = self._dma.find(here, size - done, DmaFlag.READ)
            if mapping.file is not None:
                parts.append(mapping.file.read(mapping.offset + here - mapping.address, length))
            else:
                length = min(length, self._chunk)
                parts.append(self._ask(Command.DMA_READ, wire.DmaAccess(here, length)))
            done += length
        return b"".join(parts)  # a single part is not copied

    def dma_write(self, address: int, data: bytes) -> None:
        self._dma.check(address, len(data), DmaFlag.WRITE)
        done = 0
        while done < len(data):
            here = address + done
            mapping, length = self._dma.find(here, len(data) - done, DmaFlag.WRITE)
            if mapping.file is not None:
                offset = mapping.offset + here - mapping.address
                mapping.file.write(offset, data[done : done + length])
            else:
                length = min(length, self._chunk)
                chunk = data[done : done + length]
                self._ask(Command.DMA_WRITE, wire.DmaAccess(here, length, chunk))
            done += length

    @property
    def _chunk(self) -> int:
        return min(wire.MAX_DATA_XFER_SIZE, self._client.max_data_xfer_size)

    def _ask(self, command: Command, access: wire.DmaAccess) -> bytes:
        """Send DMA_READ or DMA_WRITE and serve the client's own requests until it answers.

        QEMU may be waiting for the answer to a region access just then, with the lock held that
        its DMA needs; were it not served, both sides would run into their time-outs.
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
                    raise DmaFault("the client has gone, or the server ends")
                if deadline.expired:
                    raise DmaFault(f"{command.name} was not answered in {self._timeout:g} s")
                self._turn(deadline.remaining)
            with self._answer as answer:
                return self._check_answer(command, access, answer)
        except (wire.Disconnected, TimeoutError) as error:
            self._gone = True
            raise DmaFault("the client has gone") from error
        finally:
            self._awaited = self._answer = None

    @staticmethod
    def _check_answer(command: Command, access: wire.DmaAccess, answer: Message) -> bytes:
        where = f"{command.name} at {access.address:#x}"
        if answer.flags & wire.ERROR:
            raise DmaFault(f"{where}: {wire.error_text(answer.error)}")
        if answer.command != command:
            raise DmaFault(f"{where} was answered by {wire.command_name(answer.command)}")
        if command is Command.DMA_WRITE:
            return b""  # QEMU answers with a bare header, libvfio-user with the request's fields
        try:
            data = wire.DmaAccess.unpack(answer.body, with_data=True).data
        except wire.ProtocolError as error:
            raise DmaFault(f"{where}: {error}") from error
        if len(data) != access.count:
            raise DmaFault(f"{where}: {len(data)} bytes instead of {access.count}")
        return data


def _complain(error: OSError | MemoryError) -> None:
    reason = error.strerror if isinstance(error, OSError) else "out of memory"
    print(f"rcdrv: the client is dropped: {reason}", file=sys.stderr)


def _is_one_bit(flags: int) -> bool:
    return flags.bit_count() == 1


def _chosen(request: wire.IrqSet) -> list[int]:
    """The vectors that a request without eventfds acts on."""
    vectors = range(request.start, request.start + request.count)
    if request.flags & SetIrqs.DATA_BOOL:
        return [vector for vector, chosen in zip(vectors, request.data, strict=True) if chosen]
    return list(vectors)


class Server:
    """Serves ``device`` to one client after another.

    :param timeout: seconds that a client may take to agree on a version, to read a reply, or to
        answer a DMA request
    """

    def __init__(self, device: ServedDevice, timeout: float = 5.0) -> None:
        if len(device.regions()) <= CONFIG_REGION or len(device.irq_counts()) != len(IrqKind):
            raise ValueError("a PCI device has at least 8 regions and exactly 5 interrupt kinds")
        self._device = device
        self._timeout = timeout
        self._stop = _Stop()

    def stop(self) -> None:
        """End :meth:`serve` and :meth:`serve_connected` soon, now and in the future. Safe in
        signal handlers and from other threads."""
        self._stop.set()

    def serve(self, listener: socket.socket, *, once: bool = False) -> None:
        """Accept clients on a listening socket (see :func:`listen`) until :meth:`stop`.

        :param once: return when the first client that agreed on a version has gone
        """
        listener.setblocking(False)
        waiting = select.poll()
        waiting.register(listener, select.POLLIN)
        waiting.register(self._stop.fd, select.POLLIN)
        while not self._stop.requested:
            waiting.poll()
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError:
                # Out of descriptors or of memory: the client stays in the queue meanwhile.
                self._stop.wait(0.1)
                continue
            if self.serve_connected(sock) and once:
                return

    def serve_connected(self, sock: socket.socket) -> bool:
        """Serve the client at the other end of ``sock``, which is closed afterwards.

        :returns: whether it agreed on a version
        """
        try:
            session = _Session(self._device, sock, self._stop, self._timeout)
        except OSError as error:  # out of descriptors
            _complain(error)
            sock.close()
            return False
        try:
            session.run()
        finally:
            session.close()
        return session.attached

    def close(self) -> None:
        """Release what the server itself holds, after :meth:`serve` has returned."""
        self._stop.close()


@contextlib.contextmanager
def listen(path: str | Path) -> Iterator[socket.socket]:
    """A listening UNIX socket at ``path``, for its user alone, removed at the end.

    :raises HostError: something else is there, a server is alive there, or it cannot be made
    """
    path = Path(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # bind() gives the file the mode that the socket has (net/unix/af_unix.c), so there is
        # no moment at which others could connect, and no umask to change for the whole process.
        os.fchmod(listener.fileno(), 0o600)
        try:
            _remove_stale(path)
            listener.bind(str(path))
            listener.listen(8)
        except OSError as error:
            raise HostError(
                f"cannot listen on {path}: {error.strerror or error}",
                hint="choose a path of less than 108 bytes in a folder that you may write to",
            ) from error
        made = path.lstat()
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(path.lstat(), made):
                    path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more; refuse everything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(
            f"{path} exists and is not a socket", hint="choose another path, or remove it"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full: alive, and popular
    raise HostError(
        f"a server is listening on {path} already", hint="stop it, or choose another path"
    )
