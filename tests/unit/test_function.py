"""A function gives back all that it took, whatever fails and whenever."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import signal
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from rcdrv.device import CONFIG_REGION, Area, IrqKind, RegionFlag, RegionInfo, SetIrqs
from rcdrv.errors import DeviceLost, HostError, Interrupted, UsageError
from rcdrv.function import Function
from rcdrv.interrupts import take_count
from rcdrv.mmio import MappedWindow, SplitWindow, TrappedWindow
from rcdrv.wait import Cancel, Deadline

COMMAND_BEFORE = 0x0400  # INTX_DISABLE: neither memory decoding nor bus mastering


class FakeDevice:
    """VFIO's device model in memory, which fails at the ``fail_at``-th call."""

    backend = "fake"
    dma_by_descriptor = False
    messages = False
    address = "fake"

    def __init__(self, fail_at: int = -1, error: BaseException | None = None) -> None:
        self.config = bytearray(256)
        self.config[0:8] = bytes([0x4C, 0x10, 0x00, 0xB5, 0x00, 0x04, 0x00, 0x00])
        self.config[0x3D] = 1
        self.armed: dict[IrqKind, list[int]] = {}
        self.mappings: dict[int, int] = {}
        self.closed = 0
        self.calls = 0
        self.vectors = 8
        self._fail_at = fail_at
        self._error = error or HostError("injected")

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self._fail_at:
            raise self._error

    def region(self, index: int) -> RegionInfo:
        self._call()
        access = RegionFlag.READ | RegionFlag.WRITE
        sizes = {0: 128, 1: 8192, 2: 16384, CONFIG_REGION: 256}
        areas = {1: (Area(0, 8192),), 2: (Area(4096, 4096),)}.get(index, ())
        return RegionInfo(index, sizes.get(index, 0), access, areas)

    def irq_count(self, kind: IrqKind) -> int:
        self._call()
        return {IrqKind.INTX: 1, IrqKind.MSI: 32, IrqKind.ERR: 1, IrqKind.REQ: 1}.get(kind, 0)

    def read(self, region: int, offset: int, size: int) -> bytes:
        self._call()
        return (
            bytes(self.config[offset : offset + size]) if region == CONFIG_REGION else b"\0" * size
        )

    def write(self, region: int, offset: int, data: bytes) -> None:
        self._call()
        if region == CONFIG_REGION:
            self.config[offset : offset + len(data)] = data

    def map(self, region: int, area: Area) -> mmap.mmap:
        self._call()
        return mmap.mmap(-1, area.size)

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        self._call()
        if flags & SetIrqs.ACTION_UNMASK:
            return 0
        if kind is IrqKind.MSI and count > self.vectors:
            return self.vectors
        if count:
            self.armed[kind] = list(eventfds)
        else:
            self.armed.pop(kind, None)
        return 0

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        self._call()
        return [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 48) - 1)]

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int) -> None:
        self._call()
        assert (fd >= 0) is self.dma_by_descriptor
        assert len(memory) >= size
        self.mappings[iova] = size

    def dma_unmap(self, iova: int, size: int) -> None:
        self._call()
        assert self.mappings.pop(iova) == size

    def in_memory(self, region: int) -> bool:
        return False

    def can_reset(self) -> bool:
        return True

    def reset(self) -> None:
        self._call()
        self.config[4:6] = b"\0\0"

    def heed(self, cancel: Cancel) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def on_readable(self) -> None:
        raise AssertionError("nothing to read")

    def close(self) -> None:
        self.closed += 1

    @property
    def command(self) -> int:
        return int.from_bytes(self.config[4:6], "little")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def use_everything(device: FakeDevice) -> None:
    """Every kind of thing that a function hands out, most of it never closed by the user."""
    with Function(device) as function:
        assert isinstance(function.bar(0), TrappedWindow)
        assert isinstance(function.bar(1), MappedWindow)
        assert isinstance(function.bar(2), SplitWindow)
        with function.interrupts(IrqKind.MSI, 4):
            pass
        interrupts = function.interrupts(IrqKind.INTX)
        os.eventfd_write(device.armed[IrqKind.INTX][0], 1)
        assert interrupts.wait(Deadline(30)) == {0: 1}
        assert interrupts.take() == {}
        with function.dma_buffer(5000, align=65536) as buffer:
            assert buffer.iova % 65536 == 0
        function.dma_buffer(1)
        function.dma_buffer(1)


def count_calls() -> int:
    device = FakeDevice()
    device.config[4:6] = COMMAND_BEFORE.to_bytes(2, "little")
    use_everything(device)
    return device.calls


@pytest.mark.parametrize("make", [HostError, DeviceLost, KeyboardInterrupt, MemoryError])
def test_a_failure_at_any_call_leaves_nothing_behind(
    make: Callable[[str], BaseException],
) -> None:
    """One after the other, every single call to the device fails."""
    gc.collect()  # or what earlier tests left would be given back in between
    for fail_at in range(1, count_calls() + 1):
        device = FakeDevice(fail_at, make("injected"))
        before = open_files()
        with contextlib.suppress(HostError, DeviceLost, KeyboardInterrupt, MemoryError):
            use_everything(device)
        assert open_files() == before, fail_at
        assert device.closed == 1, fail_at
        # What fails in giving back cannot be given back; everything else is.
        left = len(device.mappings) + len(device.armed.keys() - {IrqKind.ERR, IrqKind.REQ})
        restored = device.command in (COMMAND_BEFORE, 0x0400)
        assert left + (not restored) <= 1, fail_at


def test_nothing_is_left_when_nothing_fails() -> None:
    device = FakeDevice()
    device.config[4:6] = (0x0003).to_bytes(2, "little")
    before = open_files()
    for _ in range(3):
        use_everything(device)
    assert open_files() == before
    assert device.command == 0x0003
    assert device.mappings == {}
    assert device.armed.keys() <= {IrqKind.ERR, IrqKind.REQ}


def test_opening_turns_decoding_and_mastering_on_and_intx_off() -> None:
    device = FakeDevice()
    device.config[4:6] = b"\0\0"
    with Function(device):
        assert device.command == 0x0406
    assert device.command == 0


class FailsToReset(FakeDevice):
    """Resets the function, then reports an error."""

    def reset(self) -> None:
        super().reset()
        raise HostError("reset failed")


def test_a_reset_that_fails_leaves_command_as_it_was() -> None:
    """pci_reset_function() saves and restores it (drivers/pci/pci.c); a server may not."""
    device = FailsToReset()
    with Function(device) as function:
        with pytest.raises(HostError, match="reset failed"):
            function.reset()
        assert device.command == 0x0406


def test_a_device_that_reads_all_ones_is_lost() -> None:
    device = FakeDevice()
    device.config[:] = b"\xff" * 256
    with pytest.raises(DeviceLost, match="all ones"):
        Function(device)
    assert device.closed == 1


@pytest.mark.parametrize("kind", [IrqKind.ERR, IrqKind.REQ])
def test_a_device_that_is_lost_or_reclaimed_ends_a_wait_at_once(kind: IrqKind) -> None:
    device = FakeDevice()
    with Function(device) as function:
        interrupts = function.interrupts(IrqKind.MSI)
        os.eventfd_write(device.armed[kind][0], 1)
        with pytest.raises(DeviceLost):
            interrupts.wait(Deadline(30))
        with pytest.raises(DeviceLost):
            function.check()
        # But the clean-up goes on as long as the device answers.
        with function.cancel.deferred():
            assert interrupts.wait(Deadline(0.01)) == {}


def test_a_request_to_stop_ends_a_wait_but_not_the_clean_up() -> None:
    device = FakeDevice()
    cancel = Cancel()
    with Function(device, cancel) as function:
        interrupts = function.interrupts(IrqKind.MSI)
        cancel.request(signal.SIGINT)
        with pytest.raises(Interrupted):
            interrupts.wait(Deadline(30))
        with cancel.deferred():
            os.eventfd_write(device.armed[IrqKind.MSI][0], 2)
            assert interrupts.wait(Deadline(30)) == {0: 2}
    cancel.close()


def test_fewer_vectors_are_taken_only_when_that_is_said() -> None:
    device = FakeDevice()
    with Function(device) as function:
        with pytest.raises(HostError, match="only 8 of 16"):
            function.interrupts(IrqKind.MSI, 16)
        with function.interrupts(IrqKind.MSI, 16, fewer=True) as interrupts:
            assert interrupts.count == 8
            assert len(device.armed[IrqKind.MSI]) == 8
        with pytest.raises(UsageError, match="33"):
            function.interrupts(IrqKind.MSI, 33)


def test_an_eventfd_that_the_server_made_blocking() -> None:
    fd = os.eventfd(3, os.EFD_CLOEXEC)
    try:
        assert take_count(fd) == 3
        with pytest.raises(BlockingIOError):
            take_count(fd)
    finally:
        os.close(fd)


def test_one_kind_of_interrupt_at_a_time() -> None:
    with Function(FakeDevice()) as function:
        with function.interrupts(IrqKind.INTX):
            with pytest.raises(UsageError, match="armed"):
                function.interrupts(IrqKind.MSI)
            with pytest.raises(UsageError, match="disarm"):
                function.reset()
        function.interrupts(IrqKind.MSI)


def test_addresses_are_usable_aligned_and_not_reused_at_once() -> None:
    device = FakeDevice()
    with Function(device) as function:
        seen = []
        for index in range(50):
            with function.dma_buffer(1 << 20, align=1 << (12 + index % 10)) as buffer:
                assert buffer.iova % (1 << (12 + index % 10)) == 0
                assert not 0xFEDFFFFF < buffer.iova + (1 << 20) - 1 < 0xFEF00000
                seen.append(buffer.iova)
        assert len(set(seen)) == 50
        low = function.dma_buffer(4096, address_bits=32)
        assert low.iova + 4096 <= 1 << 32
        with pytest.raises(HostError, match="no room"):
            function.dma_buffer(1 << 33, address_bits=32)


@pytest.mark.parametrize("cursor", [None, 1 << 48], ids=["behind-the-last", "anywhere"])
def test_nothing_is_mapped_beside_a_buffer(cursor: int | None) -> None:
    device = FakeDevice()
    with Function(device) as function:
        buffers = [function.dma_buffer(size) for size in (1, 4096, 5000, 1 << 20, 4097)]
        buffers[1].close()
        if cursor is not None:
            function._dma._cursor = cursor
        for _ in range(3):
            function.dma_buffer(4096)
        mapped = sorted(device.mappings.items())
        assert len(mapped) == 7
        for (iova, size), (following, _) in pairwise(mapped):
            assert iova + size + mmap.PAGESIZE <= following


def test_a_view_that_somebody_holds_does_not_keep_the_device_in_it() -> None:
    device = FakeDevice()
    with Function(device) as function:
        buffer = function.dma_buffer(4096)
        view = buffer.memory[1:2]
        buffer.close()
        assert device.mappings == {}
        view.release()


def test_an_array_of_a_buffer_is_a_view() -> None:
    device = FakeDevice()
    with Function(device) as function:
        buffer = function.dma_buffer(4099)
        words = buffer.array("<u4")
        assert words.shape == (1024,)
        words[1] = 0x01020304
        assert bytes(buffer.memory[4:8]) == b"\x04\x03\x02\x01"
        buffer.close()
        assert device.mappings == {}
        assert words[1] == 0x01020304
