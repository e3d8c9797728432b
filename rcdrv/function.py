"""A PCI function that is held open: config space, BARs, interrupts, DMA.

:class:`Function` is all that a driver knows of the outside. It is built on a :class:`Device`,
the VFIO device model as both of its transports offer it: the kernel's ioctls
(:mod:`rcdrv.vfio`) and the vfio-user messages (:mod:`rcdrv.vfio_user`). Constants and semantics
are those of ``include/uapi/linux/vfio.h``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import select
import sys
from collections.abc import Sequence
from types import TracebackType

from rcdrv import pci
from rcdrv.device import (
    CONFIG_REGION,
    Device,
    IrqKind,
    PhysicalDma,
    SetIrqs,
    sealed_memory,
)
from rcdrv.errors import DeviceLost, EndpointError, HostError, RcdrvError, UsageError
from rcdrv.mmio import MappedWindow, SplitWindow, TrappedWindow, Window
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import MONOTONIC, Cancel, Clock, Deadline

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Any

    import numpy as np


def allow_descriptors(count: int) -> None:
    """Raise the soft limit of open files, as far as the hard one allows, for ``count`` more.

    2048 MSI-X vectors are 2048 eventfds, and the usual soft limit is 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256  # what a program has open besides
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


class DmaBuffer:
    """Host memory that the device can reach; give it back with :meth:`close` or ``with``."""

    def __init__(
        self, function: Function, iova: int, memory: mmap.mmap, size: int, mapped: int
    ) -> None:
        self._function = function
        self._mapped = mapped
        self.iova = iova
        """The bus address of the first byte, for the device's address registers."""
        self.size = size
        """The bytes asked for. The mapping behind them is whole pages."""
        self._mapping = memory
        self.memory = memoryview(memory)[:size]
        """The bytes themselves. Call :func:`rcdrv.mmio.barrier` before the device reads them."""

    def array(self, dtype: np.typing.DTypeLike = "u1") -> np.ndarray[Any, np.dtype[Any]]:
        """Return the bytes as an array: a view, not a copy.

        It stays valid memory after :meth:`close`, but the device does not reach it any more.

        :param dtype: a numpy type; what remains of an element at the end is left out
        :raises ImportError: numpy is not installed
        """
        import numpy as np

        kind = np.dtype(dtype)
        return np.frombuffer(self.memory, kind, self.size // kind.itemsize)

    def close(self) -> None:
        """Unmap from the device first, then free. Closing twice is harmless."""
        if self._function._buffers.get(self.iova) is self:
            self._function._free_dma(self)

    def __enter__(self) -> DmaBuffer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _take(eventfd: int) -> int:
    """Read an eventfd's counter.

    Never blocks: a vfio-user server has the same file description, so it may clear O_NONBLOCK and
    read the counter first.

    :raises BlockingIOError: it is 0
    """
    counter = bytearray(8)
    try:
        os.preadv(eventfd, (counter,), -1, os.RWF_NOWAIT)
    except BlockingIOError:
        raise
    except OSError:  # before Linux 5.8 (fs/eventfd.c) it cannot be asked so
        return os.eventfd_read(eventfd)
    return int.from_bytes(counter, sys.byteorder)


class Interrupts:
    """The armed vectors of one kind, one eventfd each. Made by :meth:`Function.interrupts`."""

    def __init__(self, function: Function, kind: IrqKind, count: int) -> None:
        self._function = function
        self.kind = kind
        self.count = count
        """Vectors armed, numbered from 0. The endpoint's IRQ_NUMBER counts from 1."""
        self._eventfds: list[int] = []
        self._masked = False

    def _arm(self, fewer: bool) -> None:
        function = self._function
        allow_descriptors(self.count)
        try:
            for _ in range(self.count):
                self._eventfds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError as error:
            raise HostError(
                f"{self.count} vectors need as many open files: {error.strerror}",
                hint="raise the hard limit of open files: ulimit -Hn",
            ) from error
        flags = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER
        available = function.device.set_irqs(self.kind, flags, 0, self.count, self._eventfds)
        if fewer and 0 < available < self.count:
            # Nothing is armed yet (VFIO_DEVICE_SET_IRQS): ask again for what can be had.
            for fd in self._eventfds[available:]:
                os.close(fd)
            del self._eventfds[available:]
            self.count = available
            available = function.device.set_irqs(self.kind, flags, 0, self.count, self._eventfds)
        if available:
            raise HostError(
                f"{function.address}: only {available} of {self.count} {self.kind.name} vectors"
                " can be had here",
                hint=f"ask for {available} vectors, or check that interrupt remapping is on",
            )
        for vector, fd in enumerate(self._eventfds):
            function._watch(fd, vector)

    def wait(self, deadline: Deadline) -> dict[int, int]:
        """Sleep until a vector fires.

        INTx is a level: VFIO masks it when it fires, and it is unmasked here, in the next call.
        Whoever waits has by then looked at the device, which is what makes it drop the line; one
        that still holds it fires again, so the count of INTx says nothing.

        :returns: {vector: how often}, everything that was pending; empty when the time is up
        :raises DeviceLost: the device went, or the host wants it back
        :raises Interrupted: the user asked to stop
        """
        self._unmask()
        while True:
            fired = self._function._poll(deadline.remaining)
            if fired or deadline.expired:
                return self._collect(fired)

    def take(self) -> dict[int, int]:
        """What has fired since the last look, without sleeping."""
        self._unmask()
        return self._collect(self._function._poll(0.0))

    def _collect(self, vectors: Sequence[int]) -> dict[int, int]:
        counts: dict[int, int] = {}
        for vector in vectors:
            with contextlib.suppress(BlockingIOError):
                counts[vector] = _take(self._eventfds[vector])
        self._masked = bool(counts) and self.kind is IrqKind.INTX
        return counts

    def _unmask(self) -> None:
        if self._masked:
            self._masked = False
            flags = SetIrqs.DATA_NONE | SetIrqs.ACTION_UNMASK
            self._function.device.set_irqs(IrqKind.INTX, flags, 0, 1)

    def close(self) -> None:
        """Disarm. Also safe on a device that is gone; closing twice is harmless."""
        if self._function._interrupts is self:
            eventfds, self._eventfds = self._eventfds, []
            self._function._release_interrupts(self, eventfds)

    def __enter__(self) -> Interrupts:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def lost_by_reset(address: str, what: Sequence[str]) -> NotPassed:
    """Return the verdict for a reset that took more than a reset takes."""
    return NotPassed(
        Reason.LOST_BY_RESET,
        f"{address}: lost by the reset: {', '.join(what)}",
        hint="the endpoint's controller driver has to set up again what a reset of the link clears;"
        " until then restart the endpoint, and rcdrv rescan. On a board, rcdrv bind --no-reset"
        " keeps opening and closing from resetting it",
    )


class Function:
    """One open PCI function, and the way to give it back as it was.

    Opening turns memory decoding and bus mastering on and INTx off; :meth:`close`, or the end
    of ``with``, takes every mapping, buffer and interrupt back and restores the COMMAND
    register.

    :param device: what it stands on; closed with it
    :param cancel: ends every wait when somebody asks to stop
    :param clock: what all waits go by
    :raises DeviceLost: config space reads all ones
    :raises EndpointError: config space contradicts itself
    """

    # Keys of the epoll set that are not interrupt vectors.
    _ERR, _REQ, _TRANSPORT, _CANCEL = -1, -2, -3, -4

    # Low addresses are left alone: 0 is what an endpoint shows for "no address".
    _LOWEST_IOVA = 1 << 20

    def __init__(
        self, device: Device, cancel: Cancel | None = None, clock: Clock = MONOTONIC
    ) -> None:
        self.device = device
        self.address = device.address
        self._stack = contextlib.ExitStack()
        self._stack.callback(device.close)
        self.cancel = cancel if cancel is not None else Cancel()
        if cancel is None:
            self._stack.callback(self.cancel.close)
        self.clock = clock
        self._windows: dict[int, Window] = {}
        self._buffers: dict[int, DmaBuffer] = {}
        self._interrupts: Interrupts | None = None
        self._watched: dict[int, int] = {}
        self._cursor = self._LOWEST_IOVA
        try:
            self._epoll = select.epoll()
            self._stack.callback(self._epoll.close)
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        device = self.device
        config = TrappedWindow(
            _RegionIo(device, CONFIG_REGION), self._config_size(), "config space"
        )
        self.config = pci.ConfigSpace(config)
        if self.config.is_silent:
            raise DeviceLost(
                f"{self.address}: config space reads all ones",
                hint="the endpoint is off, its link is down, or it sleeps in D3: "
                "reboot the endpoint, then rescan the bus",
            )
        command = self.config.command
        self._stack.callback(self._restore_command, command)
        self.config.command = (
            command | pci.Command.MEMORY | pci.Command.BUS_MASTER | pci.Command.INTX_DISABLE
        )
        self.bars = pci.read_bars(self.config, [device.region(index).size for index in range(6)])
        if device.fileno() >= 0:
            self._watch(device.fileno(), self._TRANSPORT)
        self._watch(self.cancel.fd, self._CANCEL)
        # What was read so far means nothing if the device went away meanwhile.
        self.check_alive()
        self._stack.callback(self._disarm)
        for kind, key in ((IrqKind.ERR, self._ERR), (IrqKind.REQ, self._REQ)):
            self._arm_notice(kind, key)

    def _config_size(self) -> int:
        # QEMU and the kernel report 256 or 4096; a lying server must not make us index past it.
        size = self.device.region(CONFIG_REGION).size
        if size < 64:
            raise HostError(f"{self.address}: it has no PCI config space")
        return min(size, 4096)

    def _arm_notice(self, kind: IrqKind, key: int) -> None:
        if not self.device.irq_count(kind):
            return
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stack.callback(os.close, fd)
        flags = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER
        self.device.set_irqs(kind, flags, 0, 1, [fd])
        self._watch(fd, key)

    def _restore_command(self, command: pci.Command) -> None:
        with contextlib.suppress(DeviceLost):
            self.config.command = command

    # -- BARs ---------------------------------------------------------------------------------

    def bar(self, index: int) -> Window:
        """The memory of BAR ``index``, mapped as far as the host allows; made once, then kept.

        :raises UsageError: there is no such BAR, or it is an I/O BAR
        """
        if index in self._windows:
            return self._windows[index]
        bar = self.bars[index] if 0 <= index < 6 else None
        if bar is None:
            present = ", ".join(f"BAR{b.index}" for b in self.bars if b is not None) or "none"
            raise UsageError(f"{self.address} has no BAR{index}", hint=f"its BARs are: {present}")
        if not bar.is_memory:
            raise UsageError(f"{self.address}: BAR{index} is an I/O BAR, which is not supported")
        window = self._open_window(index)
        self._windows[index] = window
        self._stack.callback(window.close)
        return window

    def _open_window(self, index: int) -> Window:
        info = self.device.region(index)
        name = f"BAR{index}"
        trapped = TrappedWindow(_RegionIo(self.device, index), info.size, name)
        parts: list[tuple[int, Window]] = []
        try:
            for area in info.areas:
                parts.append((area.offset, MappedWindow(self.device.map(index, area), name=name)))
        except BaseException:
            for _, part in parts:
                part.close()
            raise
        if not parts:
            return trapped
        if len(parts) == 1 and parts[0][0] == 0 and parts[0][1].size >= info.size:
            return parts[0][1]
        return SplitWindow(trapped, parts, name)

    # -- interrupts ---------------------------------------------------------------------------

    def interrupts(self, kind: IrqKind, count: int = 1, *, fewer: bool = False) -> Interrupts:
        """Arm the first ``count`` vectors of ``kind``, which is one of INTX, MSI, MSIX.

        Only one kind can be armed at a time, as in the hardware.

        :param fewer: make do with fewer vectors where the host has fewer
        :raises UsageError: the function has fewer vectors, or another kind is armed
        :raises HostError: the host cannot give that many
        """
        available = self.device.irq_count(kind)
        if not 0 < count <= available:
            raise UsageError(
                f"{self.address} has {available} {kind.name} vectors, not {count}",
                hint="rcdrv info shows what it has",
            )
        if self._interrupts is not None:
            raise UsageError(f"{self._interrupts.kind.name} is armed already")
        interrupts = Interrupts(self, kind, count)
        self._interrupts = interrupts
        try:
            if kind is IrqKind.INTX:
                self.config.command &= ~pci.Command.INTX_DISABLE
            interrupts._arm(fewer)
        except BaseException:
            interrupts.close()
            raise
        return interrupts

    def _disarm(self) -> None:
        if self._interrupts is not None:
            self._interrupts.close()

    def _release_interrupts(self, interrupts: Interrupts, eventfds: Sequence[int]) -> None:
        self._interrupts = None
        try:
            flags = SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER
            self.device.set_irqs(interrupts.kind, flags, 0, 0)
            if interrupts.kind is IrqKind.INTX:
                self.config.command |= pci.Command.INTX_DISABLE
        except DeviceLost:
            pass
        finally:
            for fd in eventfds:
                self._unwatch(fd)
                os.close(fd)

    # -- waiting ------------------------------------------------------------------------------

    def _watch(self, fd: int, key: int) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = key

    def _unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _poll(self, seconds: float) -> list[int]:
        """Sleep at most ``seconds``; the vectors whose eventfd is readable.

        Whatever else can happen to an open function is dealt with here, so that it ends every
        wait at once.
        """
        if self.cancel.pending:
            self.cancel.check()
        vectors: list[int] = []
        for fd, _ in self.clock.poll(self._epoll, seconds, max(1, len(self._watched))):
            key = self._watched.get(fd, self._CANCEL)
            if key >= 0:
                vectors.append(key)
            elif key == self._TRANSPORT:
                self.device.on_readable()
            elif self.cancel.is_deferred:
                # Clean-up goes on as long as the device answers; do not wake up for this again.
                self._unwatch(fd)
            elif key == self._ERR:
                raise DeviceLost(
                    f"{self.address}: the device reported an uncorrectable PCIe error",
                    hint="dmesg on this host names it (AER)",
                )
            elif key == self._REQ:
                raise DeviceLost(f"{self.address}: the host wants the device back")
            else:
                self.cancel.check()
        return vectors

    def check(self) -> None:
        """Raise as a wait would, if there is a reason, without sleeping.

        :raises DeviceLost: the device went, or the host wants it back
        :raises Interrupted: the user asked to stop
        """
        self._poll(0.0)

    def deadline(self, seconds: float) -> Deadline:
        """The bound of a wait that begins now."""
        return Deadline(seconds, self.clock)

    def pause(self, seconds: float) -> None:
        """Sleep, but wake up and raise as every other wait does."""
        deadline = self.deadline(seconds)
        while not deadline.expired:
            if self._poll(deadline.remaining):
                # An interrupt that nobody waits for stays readable; do not spin on it.
                self.clock.sleep(min(0.001, deadline.remaining))

    def check_alive(self) -> None:
        """Tell a device that is gone from one whose registers read all ones.

        :raises DeviceLost: config space reads all ones too, or the transport ended
        """
        self.check()
        if self.config.is_silent:
            raise DeviceLost(
                f"{self.address}: the device is gone: its config space reads all ones",
                hint="the endpoint rebooted, its link is down, or it was removed",
            )

    # -- DMA ----------------------------------------------------------------------------------

    def dma_buffer(self, size: int, *, align: int = 1, address_bits: int = 64) -> DmaBuffer:
        """Allocate zeroed memory and map it for the device.

        :param size: bytes, at least 1
        :param align: a power of two that the bus address is a multiple of
        :param address_bits: the bus addresses stay below 2 ** address_bits
        :raises HostError: the IOMMU has no room, or memory may not be locked
        """
        if size < 1 or align < 1 or align & (align - 1):
            raise UsageError(f"no DMA buffer of {size} bytes aligned to {align}")
        length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        align = max(align, mmap.PAGESIZE)
        if isinstance(self.device, PhysicalDma):
            iova, memory = self.device.dma_allocate(length, align, 1 << address_bits)
            length = len(memory)
        else:
            iova = self._find_iova(length, align, 1 << address_bits)
            memory = self._map_memory(iova, length)
        buffer = DmaBuffer(self, iova, memory, size, length)
        self._buffers[iova] = buffer
        return buffer

    def _map_memory(self, iova: int, length: int) -> mmap.mmap:
        if not self.device.dma_by_descriptor:
            return self._mapped_memory(_contiguous(length), iova, length, -1)
        fd = sealed_memory("rcdrv-dma", length)
        try:
            return self._mapped_memory(mmap.mmap(fd, length), iova, length, fd)
        finally:
            os.close(fd)

    def _mapped_memory(self, memory: mmap.mmap, iova: int, length: int, fd: int) -> mmap.mmap:
        try:
            self.device.dma_map(iova, memory, length, fd)
        except BaseException:
            memory.close()
            raise
        return memory

    def _find_iova(self, length: int, align: int, limit: int) -> int:
        """The next free addresses behind the last ones that were given out, or any.

        Going on instead of starting over keeps an address unused for long, so that what a slow
        endpoint still writes to a buffer that is gone meets the IOMMU and not another buffer.
        """
        for lowest in (self._cursor, self._LOWEST_IOVA):
            iova = self._fit(length, align, lowest, limit)
            if iova is not None:
                self._cursor = iova + length + mmap.PAGESIZE
                return iova
        raise HostError(
            f"{self.address}: no room for {length:#x} bytes of DMA below {limit:#x}",
            hint="the IOMMU's address ranges are shown by: rcdrv info",
        )

    def _fit(self, length: int, align: int, lowest: int, limit: int) -> int | None:
        # A page between them: what is written beside one meets the IOMMU and not the next.
        gap = mmap.PAGESIZE
        taken = sorted((b.iova - gap, b.iova + b._mapped + gap) for b in self._buffers.values())
        for first, last in self.device.dma_ranges():
            start = max(first, lowest)
            for begin, end in [*taken, (1 << 64, 1 << 64)]:
                start = -(-start // align) * align
                if start + length <= min(begin, last + 1, limit):
                    return start
                start = max(start, end)
        return None

    def _free_dma(self, buffer: DmaBuffer) -> None:
        try:
            self.device.dma_unmap(buffer.iova, buffer._mapped)
        except DeviceLost:
            pass
        finally:
            del self._buffers[buffer.iova]
            # Somebody may still hold a view, for example in a traceback: then the memory goes
            # with the last of them, and the device cannot reach it any more.
            with contextlib.suppress(BufferError):
                buffer.memory.release()
                buffer._mapping.close()

    @property
    def dma_buffers(self) -> int:
        """How many DMA buffers are mapped now."""
        return len(self._buffers)

    # -- the whole function -------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the function; COMMAND is afterwards what it was.

        :raises UsageError: interrupts are armed, which a reset may or may not take away
        :raises HostError: the function has no reset of its own
        :raises NotPassed: ``lost-by-reset``: BARs or capabilities are gone
        """
        if self._interrupts is not None:
            raise UsageError(f"disarm {self._interrupts.kind.name} before a reset")
        if not self.device.can_reset():
            raise HostError(f"{self.address}: the function has no reset")
        command, before = self.config.command, self._inventory()
        self.device.reset()
        self.config.command = command
        self.check_alive()
        after = self._inventory()
        lost = [name for name, value in before.items() if after.get(name) != value]
        if lost:
            raise lost_by_reset(self.address, lost)

    def _inventory(self) -> dict[str, int]:
        """Return what config space has that a reset must not take, by name."""
        found = {
            f"BAR{bar.index}": self.config.bar_mask(bar.index, is_64bit=bar.is_64bit)
            for bar in self.bars
            if bar is not None
        }
        with contextlib.suppress(EndpointError):  # a list that loops: not the reset's doing
            for cap in self.config.capabilities():
                found[f"the {cap.name} capability"] = cap.offset
        return found

    def close(self) -> None:
        """Give everything back. Every step is tried, even after one failed."""
        with self.cancel.deferred():
            for buffer in list(self._buffers.values()):
                self._stack.callback(buffer.close)
            stack, self._stack = self._stack, contextlib.ExitStack()
            stack.close()

    def __enter__(self) -> Function:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except RcdrvError:
            # What went wrong first is what the user has to read.
            if exc is None:
                raise


_HUGE_PAGE = 2 << 20


def _contiguous(length: int) -> mmap.mmap:
    """Zeroed memory of at least this length, in one piece if there is a huge page.

    VFIO then pins it as one, and not page by page: a twentieth of the time.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    large = length > _HUGE_PAGE // 8
    memory = mmap.mmap(-1, -(-length // _HUGE_PAGE) * _HUGE_PAGE if large else length, flags=flags)
    # Before Linux 5.10 a write after fork(2) could move the parent to another page than the
    # one that the device has.
    memory.madvise(mmap.MADV_DONTFORK)
    if large:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class _RegionIo:
    """One region of a device, as a trapped window needs it."""

    def __init__(self, device: Device, region: int) -> None:
        self._device = device
        self._region = region

    def read(self, offset: int, size: int) -> bytes:
        return self._device.read(self._region, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._device.write(self._region, offset, data)
