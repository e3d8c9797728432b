"""Record the accesses to a device, for :mod:`rcdrv.replay.player`."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rcdrv import __version__
from rcdrv.device import CONFIG_REGION, Area, Device, IrqKind, PhysicalDma, RegionInfo, SetIrqs
from rcdrv.errors import DeviceLost, RcdrvError
from rcdrv.function import open_window
from rcdrv.interrupts import allow_descriptors, take_count
from rcdrv.mmio import Window, first_difference
from rcdrv.replay.buffers import Buffer, Buffers
from rcdrv.replay.contents import Written, cut, digest, pack
from rcdrv.replay.file import BLOCK_TIME, RecordingFile
from rcdrv.replay.recording import MOST_EVENTS, Recording, error_word
from rcdrv.wait import MONOTONIC, Cancel, Clock

T = TypeVar("T")

_BARS = range(0x10, 0x28)


def record_device(device: Device, path: str | os.PathLike[str]) -> Device:
    """Return a device that records accesses to ``device``, and writes the file meanwhile.

    :raises HostError: the file cannot be written, or the device cannot be queried
    """
    kind = PhysicalRecorder if isinstance(device, PhysicalDma) else Recorder
    try:
        return kind(device, Path(path))
    except BaseException:
        device.close()
        raise


class Recorder:
    """A :class:`Device` that records another one.

    Its BARs cannot be mapped, so it sees every access. It accesses the recorded device through
    mappings where these exist, so the endpoint sees the same accesses as without a recorder.
    """

    def __init__(self, device: Device, path: Path) -> None:
        self._device = device
        self.address = device.address
        self.backend = device.backend
        self.dma_by_descriptor = device.dma_by_descriptor
        self.messages = True
        self._time: Clock = getattr(device, "clock", MONOTONIC)
        self.clock = Clock()
        self.clock.now, self.clock.now_ns = self._time.now, self._time.now_ns
        self.clock.sleep, self.clock.poll = self._time.sleep, self.wait
        self._lines = 0
        self._full = False
        self._last_read = ""
        self._empty_wait = False
        self._then = int(self.clock.now() * 1e6)
        self._windows: dict[int, Window] = {}
        self._written = Written()
        self._irqs: dict[int, tuple[IrqKind, int, int]] = {}
        regions = [device.region(index) for index in range(CONFIG_REGION + 1)]
        size = min(regions[CONFIG_REGION].size, 4096) & ~3
        config = device.read(CONFIG_REGION, 0, size) if size >= 64 else bytes(64)
        self._bars = {at: config[at : at + 4] for at in _BARS[::4]}
        self._shown = _made_up(self._bars)
        self._config = bytearray(config)
        for at, shown in self._shown.items():
            self._config[at : at + 4] = shown
        recording = Recording(
            version=__version__,
            backend=device.backend,
            can_reset=device.can_reset(),
            irqs=tuple(device.irq_count(kind) for kind in IrqKind),
            regions=tuple((region.size, int(region.flags) & 3) for region in regions),
            config=bytes(self._config),
            seed=os.urandom(8),
        )
        self._buffers = Buffers(recording.seed)
        # Fails, if at all, before the first access.
        self._file = RecordingFile(path, recording.head())
        self._outer = select.epoll()
        self._inner = -1

    # -- the lines ------------------------------------------------------------------------------

    def _note(self, op: str, *fields: object, error: RcdrvError | None = None) -> None:
        if self._full:
            return
        now = int(self.clock.now() * 1e6)
        words = [op, *(f"{one:x}" if isinstance(one, int) else str(one) for one in fields)]
        if error is not None:
            words.append(f"!{error_word(error)}")
        text = " ".join(words)
        if op in "nld" and self._empty_wait:
            self._empty_wait = False
            self._note("p")
        self._empty_wait = False
        if op == "r" and text == self._last_read:
            return  # a poll without a change
        self._last_read = text if op == "r" else ""
        self._lines += 1
        if self._lines > MOST_EVENTS or self._file.is_full:
            self._full, text = True, "x"
        self._file.add(f"{max(0, now - self._then)} {text}\n")
        self._then = max(now, self._then)

    def mark(self, *words: str) -> None:
        """Add a note: the start of a case, or its verdict."""
        self._note("t", *words)

    @contextlib.contextmanager
    def _failing(self, op: str, *fields: object) -> Iterator[None]:
        try:
            yield
        except RcdrvError as error:
            self._note(op, *fields, error=error)
            raise

    # -- regions --------------------------------------------------------------------------------

    def region(self, index: int) -> RegionInfo:
        info = self._device.region(index)
        return RegionInfo(index, info.size, info.flags)

    def irq_count(self, kind: IrqKind) -> int:
        return self._device.irq_count(kind)

    def _window(self, region: int) -> Window:
        if region not in self._windows:
            self._windows[region] = open_window(self._device, region)
        return self._windows[region]

    def read(self, region: int, offset: int, size: int) -> bytes:
        if region == CONFIG_REGION:
            return self._read_config(offset, size)
        single = size in (1, 2, 4, 8) and offset % size == 0
        with self._failing("r" if single else "R", region, offset, size):
            if single:
                value = self._window(region).read(8 * size, offset)
                data = value.to_bytes(size, "little")
            else:
                data = self._window(region).read_block(offset, size)
        self._look_at_memory()
        if single:
            self._note("r", region, offset, size, value)
            return data
        for first, piece in cut(offset, data):
            place = region, first, len(piece)
            self._note("R", *place, pack(piece, self._written.known(place), exact=True))
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        size, value = len(data), int.from_bytes(data, "little")
        where = region, offset, size
        if region == CONFIG_REGION:
            shown = int.from_bytes(self._hide(offset, data), "little")
            self._call(lambda: self._device.write(region, offset, data), "w", *where, shown)
            return
        self._show_memory()
        if size in (1, 2, 4, 8) and offset % size == 0:
            word = self._buffers.spell(*where, value)
            self._call(
                lambda: self._window(region).write(8 * size, offset, value), "w", *where, word
            )
            return
        parts = [((region, first, len(piece)), piece) for first, piece in cut(offset, data)]
        with self._failing("W", *parts[0][0], digest(parts[0][1])):
            self._window(region).write_block(offset, data)
        for place, piece in parts:
            self._note("W", *place, digest(piece))
            self._written.keep(place, piece)

    def widened(self, region: int, width: int) -> None:
        """Move blocks of a BAR in words of this width: the driver has found that they arrive."""
        self._window(region).bulk = width
        self._note("b", region, width)

    def _call(self, call: Callable[[], T], op: str, *fields: object) -> T:
        with self._failing(op, *fields):
            found = call()
        self._note(op, *fields)
        return found

    def _read_config(self, offset: int, size: int) -> bytes:
        with self._failing("r", CONFIG_REGION, offset, size):
            data = self._device.read(CONFIG_REGION, offset, size)
        shown = self._hide(offset, data)
        half_hidden = offset < _BARS.stop and offset + size > _BARS.start and size != 4
        if self._config[offset : offset + size] != shown and not half_hidden:
            self._config[offset : offset + size] = shown
            if size in (1, 2, 4, 8):
                self._note("r", CONFIG_REGION, offset, size, int.from_bytes(shown, "little"))
        return data

    def _hide(self, offset: int, data: bytes) -> bytes:
        """Replace a BAR's address, which is private to this host."""
        return self._shown[offset] if self._bars.get(offset) == data else data

    def map(self, region: int, area: Area) -> mmap.mmap:
        return self._device.map(region, area)

    def in_memory(self, region: int) -> bool:
        return False

    # -- interrupts -----------------------------------------------------------------------------

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        """Arm eventfds of the recorder; :meth:`wait` counts interrupts and forwards them."""
        fields = (int(kind), int(flags), start, count)
        ours: list[int] = []
        if eventfds:
            allow_descriptors(2 * count)
        with self._failing("i", *fields), contextlib.ExitStack() as stack:
            for fd in eventfds:
                ours.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if fd >= 0 else -1)
                if fd >= 0:
                    stack.callback(os.close, ours[-1])
            result = self._device.set_irqs(kind, flags, start, count, ours)
            if not result:
                stack.pop_all()
        self._note("i", *fields, result)
        if not result and (eventfds or not count):
            last = start + count if count else 1 << 32
            self._forget_irqs(kind, range(start, last))
            for vector, (one, theirs) in enumerate(zip(ours, eventfds, strict=True), start):
                if one >= 0:
                    self._irqs[one] = kind, vector, theirs
                    self._outer.register(one, select.EPOLLIN)
        return result

    def _forget_irqs(self, kind: IrqKind, vectors: range) -> None:
        for fd, (of, vector, _) in list(self._irqs.items()):
            if of is kind and vector in vectors:
                del self._irqs[fd]
                self._outer.unregister(fd)
                os.close(fd)

    def wait(self, epoll: select.epoll, seconds: float, most: int) -> list[tuple[int, int]]:
        """Sleep as ``epoll.poll()`` does; record the interrupts that end the wait."""
        if self._inner != epoll.fileno():
            self._inner = epoll.fileno()
            self._outer.register(self._inner, select.EPOLLIN)
        most_ready = len(self._irqs) + 1
        short = min(seconds, BLOCK_TIME)
        ready = self._time.poll(self._outer, short, most_ready)
        if not ready and seconds > short:
            self._file.flush()
            ready = self._time.poll(self._outer, seconds - short, most_ready)
        self._look_at_memory()
        for fd, _ in ready:
            if fd in self._irqs:
                kind, vector, theirs = self._irqs[fd]
                with contextlib.suppress(BlockingIOError):  # a server may have read it
                    count = take_count(fd)
                    self._note("n", int(kind), vector, count)
                    os.eventfd_write(theirs, count)
        found = epoll.poll(0, most)
        self._empty_wait = self._empty_wait or not found
        return found

    # -- DMA ------------------------------------------------------------------------------------

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        return self._device.dma_ranges()

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int) -> None:
        with self._failing("m", self._buffers.count, size):
            self._device.dma_map(iova, memory, size, fd)
        self._mapped(iova, memory, size)

    def _mapped(self, iova: int, memory: mmap.mmap, size: int) -> None:
        self._note("m", self._buffers.count, size)
        self._buffers.add(Buffer(iova, memory, size, memory[:size]))

    def dma_unmap(self, iova: int, size: int) -> None:
        number = self._buffers.remove(iova)
        self._call(lambda: self._device.dma_unmap(iova, size), "u", number)

    def random_bytes(self, size: int) -> bytes:
        """Return data for a transfer, which a replay reproduces."""
        return self._buffers.random_bytes(size)

    def _look_at_memory(self) -> None:
        """Record what the device wrote to DMA buffers since the last call."""
        for number, before, now in self._changed_buffers():
            first = first_difference(now, before)
            content = now[first : len(now) - first_difference(now[::-1], before[::-1])]
            known = self._buffers.known(number, first, len(content))
            # Data of the driver, if it reads a register after it has filled a buffer.
            at = self._buffers.random.find(content)
            if at >= 0:
                known[f"s{at:x}"] = content
            self._note("d", number, first, len(content), pack(content, known, exact=False))

    def _show_memory(self) -> None:
        """Record what the driver wrote to DMA buffers since the last call."""
        for number, _, now in self._changed_buffers():
            self._note("h", number, digest(now))

    def _changed_buffers(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield number, previous and present contents of the buffers written meanwhile."""
        for number, buffer in self._buffers.mapped.items():
            before, now = buffer.seen, buffer.contents
            if now != before:
                buffer.seen = now
                yield number, before, now

    # -- the whole device -----------------------------------------------------------------------

    def can_reset(self) -> bool:
        return self._device.can_reset()

    def reset(self) -> None:
        self._call(self._device.reset, "z")

    def heed(self, cancel: Cancel) -> None:
        self._device.heed(cancel)

    def fileno(self) -> int:
        return self._device.fileno()

    def on_readable(self) -> None:
        try:
            self._device.on_readable()
        except DeviceLost:
            self._note("l")
            raise

    @property
    def sealed(self) -> bool:
        """See :attr:`rcdrv.vfio_user.client.Client.sealed`; True for other devices."""
        return bool(getattr(self._device, "sealed", True))

    def allow(self, timeout: float) -> None:
        """See :meth:`rcdrv.function.Function.allow`."""
        getattr(self._device, "allow", lambda _timeout: None)(timeout)

    def close(self) -> None:
        """Close the device, then end the file."""
        if self._outer.closed:
            return
        for window in self._windows.values():
            window.close()
        try:
            self._device.close()
        finally:
            for fd in self._irqs:
                os.close(fd)
            self._outer.close()
            self._file.close()


class PhysicalRecorder(Recorder, PhysicalDma):
    """A recorder of a device without an IOMMU."""

    def dma_allocate(self, size: int, align: int, limit: int) -> tuple[int, mmap.mmap]:
        assert isinstance(self._device, PhysicalDma)
        with self._failing("m", self._buffers.count, size):
            iova, memory = self._device.dma_allocate(size, align, limit)
        self._mapped(iova, memory, size)
        return iova, memory


def _made_up(bars: dict[int, bytes]) -> dict[int, bytes]:
    """Return BAR registers with addresses that reveal nothing of the host."""
    found, upper = {}, False
    for number, (at, data) in enumerate(bars.items()):
        value = int.from_bytes(data, "little")
        if upper:
            found[at], upper = bytes(4), False
            continue
        is_io = value & 1
        upper = not is_io and value >> 1 & 3 == 2
        high = int.from_bytes(bars.get(at + 4, b""), "little") if upper else 0
        flags = value & (3 if is_io else 15)
        address = (number + 1) << (12 if is_io else 28) if value != flags or high else 0
        found[at] = (address | flags).to_bytes(4, "little")
    return found
