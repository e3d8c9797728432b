"""A PCI function that is held open: config space, BARs, interrupts, DMA.

:class:`Function` is all that a driver knows of the outside. It is built on a
:class:`~rcdrv.device.Device`, which kernel VFIO or vfio-user provides.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator, Sequence
from functools import partial

from rcdrv import pci
from rcdrv.device import CONFIG_REGION, Device, IrqKind, SetIrqs
from rcdrv.dma import DmaAllocator, DmaBuffer
from rcdrv.errors import DeviceLost, EndpointError, HostError, RcdrvError, UsageError
from rcdrv.interrupts import Interrupts
from rcdrv.mmio import MappedWindow, SplitWindow, TrappedWindow, Window
from rcdrv.verdict import NotPassed, Reason
from rcdrv.wait import MONOTONIC, Cancel, Clock, Deadline


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
    """One open PCI function, given back as it was found.

    Opening turns memory decoding and bus mastering on and INTx off; :meth:`close`, or the end
    of ``with``, takes every mapping, buffer and interrupt back and restores the COMMAND
    register.

    :param device: the device below; closed with the function
    :param cancel: ends every wait when the user asks to stop
    :param clock: what all waits go by
    :raises DeviceLost: config space reads all ones
    :raises EndpointError: config space contradicts itself
    """

    # Keys of the epoll set that are not interrupt vectors.
    _ERR, _REQ, _TRANSPORT, _CANCEL, _HURRY = -1, -2, -3, -4, -5

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
        device.heed(self.cancel)
        self.clock = clock
        self._windows: dict[int, Window] = {}
        self._widened: set[int] = set()
        self._dma = DmaAllocator(device)
        self._interrupts: Interrupts | None = None
        self._watched: dict[int, int] = {}
        self.width = 64
        """Widest words of bulk operations, in bits: 32 or 64."""
        self.resets = 0
        """Resets so far, by :meth:`reset`."""
        try:
            self._epoll = select.epoll()
            self._stack.callback(self._epoll.close)
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        device = self.device
        read, write = partial(device.read, CONFIG_REGION), partial(device.write, CONFIG_REGION)
        window = TrappedWindow(read, write, self._config_size(), "config space")
        self.config = pci.ConfigSpace(window)
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
        self._watch(self.cancel.hurry_fd, self._HURRY)
        # The values read so far mean nothing if the device vanished meanwhile.
        self.check_alive()
        self._stack.callback(self._disarm)
        for kind, key in ((IrqKind.ERR, self._ERR), (IrqKind.REQ, self._REQ)):
            self._arm_notice(kind, key)

    def _config_size(self) -> int:
        # QEMU and the kernel report 256 or 4096; a lying server must not cause an index past it.
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
        """Return the memory of BAR ``index``, mapped as far as the host allows; the same each time.

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
        window = open_window(self.device, index)
        self._windows[index] = window
        self._stack.callback(window.close)
        return window

    def widen(self, index: int, offset: int = 0) -> bool | None:
        """Use words of :attr:`width` in bulk operations on a BAR: see :meth:`Window.widen`, which
        writes 8 bytes at ``offset``.

        :returns: None where there is nothing to find out; else whether 64-bit words are used
        """
        window = self.bar(index)
        if self.width < 64 or index in self._widened or window.size < 8:
            return None
        self._widened.add(index)
        arrive = window.widen(offset)
        if arrive:
            getattr(self.device, "widened", lambda *_: None)(index, window.bulk)
        return arrive

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
        interrupts = Interrupts(self.device, kind, count, self._poll, self._release_interrupts)
        self._interrupts = interrupts
        try:
            if kind is IrqKind.INTX:
                self.config.command &= ~pci.Command.INTX_DISABLE
            interrupts.arm(fewer)
            for vector, fd in enumerate(interrupts.eventfds):
                self._watch(fd, vector)
        except BaseException:
            interrupts.close()
            raise
        return interrupts

    def _disarm(self) -> None:
        if self._interrupts is not None:
            self._interrupts.close()

    def _release_interrupts(self, interrupts: Interrupts) -> None:
        if self._interrupts is not interrupts:
            return
        self._interrupts = None
        eventfds, interrupts.eventfds = interrupts.eventfds, []
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
        """Sleep at most ``seconds``; return the vectors whose eventfd is readable.

        Errors, a request for the device, the transport and the user's wish to stop are handled
        here, so that each ends every wait at once.
        """
        if self.cancel.pending:
            self.cancel.check()
        if self.cancel.is_deferred:
            self.cancel.notice()
        vectors: list[int] = []
        for fd, _ in self.clock.poll(self._epoll, seconds, max(1, len(self._watched))):
            key = self._watched.get(fd, self._CANCEL)
            if key >= 0:
                vectors.append(key)
            elif key == self._TRANSPORT:
                self.device.on_readable()
            elif key == self._HURRY:
                self.cancel.check()
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

    def fileno(self) -> int:
        """Return a descriptor that is readable when a wait would end, for a program that waits for
        others as well. What has happened is then told by a wait of no length."""
        return self._epoll.fileno()

    def check(self) -> None:
        """Raise as a wait would, if there is a reason, without sleeping.

        :raises DeviceLost: the device went, or the host wants it back
        :raises Interrupted: the user asked to stop
        """
        self._poll(0.0)

    def allow(self, timeout: float) -> None:
        """Tell a transport whose answers may be late how long the user waits for the endpoint."""
        getattr(self.device, "allow", lambda _timeout: None)(timeout)

    def deadline(self, seconds: float) -> Deadline:
        """Return the bound of a wait that begins now."""
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
        return self._dma.allocate(size, align, 1 << address_bits)

    def dma_pages(self, size: int, align: int, address_bits: int) -> Iterator[DmaBuffer]:
        """Allocate likewise, page by page as they are asked for: see :meth:`DmaAllocator.pages`."""
        return self._dma.pages(size, align, 1 << address_bits)

    @property
    def dma_buffers(self) -> int:
        """Number of DMA buffers mapped now."""
        return len(self._dma.buffers)

    def random_bytes(self, size: int) -> bytes:
        """Return data for a transfer: random, but of a replayed device the same again."""
        draw = getattr(self.device, "random_bytes", os.urandom)
        return bytes(draw(size))

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
        self.resets += 1
        try:
            self.device.reset()
        except HostError:  # a server may have reset it, and then failed
            self.config.command = command
            raise
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

    def explain(self, bar: int, parameters: Sequence[int], constants: Sequence[int]) -> None:
        """Tell a replayed device what the endpoint does with 32-bit registers.

        :param parameters: it reads them only when another one is written, and changes none
        :param constants: it never changes them
        """
        getattr(self.device, "explain", lambda *_: None)(bar, parameters, constants)

    def mark(self, *words: str) -> None:
        """Tell a device that is recorded where the run is: words without spaces."""
        getattr(self.device, "mark", lambda *_words: None)(*words)

    def close(self) -> None:
        """Release everything. A step that fails does not keep the others from being tried."""
        with self.cancel.deferred():
            for buffer in list(self._dma.buffers.values()):
                self._stack.callback(buffer.close)
            stack, self._stack = self._stack, contextlib.ExitStack()
            stack.close()

    def __enter__(self) -> Function:
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except RcdrvError:
            # The first error is the one to report.
            if exc is None:
                raise


def called_window(device: Device, index: int) -> TrappedWindow:
    """Return the memory of a BAR through the device's calls alone, even where it can be mapped."""
    read, write = partial(device.read, index), partial(device.write, index)
    size = device.region(index).size
    # Of the transports one has answers to writes: vfio_user.Client.
    post = getattr(device, "post", None)
    post = post and partial(post, index)
    return TrappedWindow(read, write, size, f"BAR{index}", messages=device.messages, post=post)


def open_window(device: Device, index: int) -> Window:
    """Return the memory of a BAR, mapped as far as the host allows; the caller closes it."""
    info = device.region(index)
    name = f"BAR{index}"
    trapped = called_window(device, index)
    parts: list[tuple[int, Window]] = []
    try:
        for area in info.areas:
            memory, plain = device.map(index, area), device.in_memory(index)
            parts.append((area.offset, MappedWindow(memory, name=name, plain=plain)))
    except BaseException:
        for _, part in parts:
            part.close()
        raise
    if not parts:
        return trapped
    if len(parts) == 1 and parts[0][0] == 0 and parts[0][1].size >= info.size:
        return parts[0][1]
    return SplitWindow(trapped, parts, name)
