"""The data transfers: the endpoint reads, writes or copies memory of the root complex.

Named as the root complex sees them, as in the kselftest: in READ the root complex reads, so the
endpoint gets the command WRITE.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from rcdrv.epf_test.driver import Answer, EpfTest
from rcdrv.epf_test.mismatch import compare
from rcdrv.epf_test.registers import Caps, Command, Flags, Reg, Status
from rcdrv.errors import UsageError
from rcdrv.function import DmaBuffer
from rcdrv.mmio import barrier
from rcdrv.verdict import NotPassed, Reason

SIZES = (1, 1024, 1025, 1024000, 1024001)
"""Bytes; the sizes of the kselftest."""

ADDRESS_BITS = 48
"""Bus addresses stay below 2^48, as with the DMA mask of the kernel's driver."""

LARGEST = 4 << 20
"""Bytes; above it the endpoint's kernel warns of its allocation, and panics with panic_on_warn."""

_SLOWEST = 1_000_000.0  # bytes a second that a transfer gets at the least


class Direction(Enum):
    """Which way the data goes."""

    READ = "READ"
    """Endpoint to root complex."""
    WRITE = "WRITE"
    """Root complex to endpoint."""
    COPY = "COPY"
    """Root complex to root complex, through the endpoint."""


@dataclass(frozen=True)
class _Kind:
    command: Command
    success: Status
    failure: Status


_KINDS = {
    Direction.READ: _Kind(Command.WRITE, Status.WRITE_SUCCESS, Status.WRITE_FAIL),
    Direction.WRITE: _Kind(Command.READ, Status.READ_SUCCESS, Status.READ_FAIL),
    Direction.COPY: _Kind(Command.COPY, Status.COPY_SUCCESS, Status.COPY_FAIL),
}


def crc32(data: bytes | memoryview) -> int:
    """The kernel's ``crc32_le(~0, data)``: no inversion at the end."""
    return zlib.crc32(data) ^ 0xFFFFFFFF


def default_align(driver: EpfTest) -> int:
    """What SRC and DST have to be a multiple of, in bytes."""
    return 1 if driver.caps & Caps.UNALIGNED_ACCESS else driver.part.align


def transfer_test(
    direction: Direction,
    dma: bool,
    sizes: Sequence[int],
    align: int | None,
    driver: EpfTest,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> str:
    """One transfer of each size; every byte is compared.

    :param dma: let the endpoint use its DMA engine
    :param align: put the buffers at addresses that are a multiple of this and of no larger
        power of two; default: page aligned, or more where the part needs it
    :returns: the rate of the largest transfer
    :raises NotPassed: what went wrong first, with the size it went wrong at
    :raises UsageError: a size that could harm the endpoint, or an alignment that it cannot do
    """
    rate = ""
    for done, size in enumerate(sizes):
        answer = _transfer(driver, direction, size, dma, align)
        if answer.latency_ns and size == max(sizes):
            rate = f"{size} bytes at {size / answer.latency_ns * 1e3:.1f} MB/s"
        progress(done + 1, len(sizes))
    return rate


def _transfer(
    driver: EpfTest, direction: Direction, size: int, dma: bool, align: int | None
) -> Answer:
    if not 0 < size <= LARGEST:
        raise UsageError(
            f"a transfer of {size} bytes is not 1 to {LARGEST}",
            hint="the endpoint allocates that much at once",
        )
    needed = default_align(driver)
    if align is not None and align % needed:
        raise UsageError(f"this endpoint needs buffers aligned to {needed}, not {align}")
    # At an address of just this alignment: as far from the next page as it is wide.
    shift = align % 4096 if align is not None else 0
    function = driver.function
    room = size + shift
    with (
        function.dma_buffer(room, align=max(needed, 4096), address_bits=ADDRESS_BITS) as source,
        function.dma_buffer(room, align=max(needed, 4096), address_bits=ADDRESS_BITS) as target,
    ):
        data = os.urandom(size)
        source.memory[shift : shift + size] = data
        _point(driver, Reg.SRC_ADDR_LOW, source, shift)
        _point(driver, Reg.DST_ADDR_LOW, target, shift)
        driver.write(Reg.SIZE, size)
        driver.write(Reg.CHECKSUM, crc32(data) if direction is Direction.WRITE else 0)
        kind = _KINDS[direction]
        answer = driver.command(
            kind.command,
            flags=Flags.USE_DMA if dma else Flags(0),
            timeout=driver.timeout + size / _SLOWEST,
        )
        barrier()
        what = f"{direction.value} of {size} bytes"
        _check_answer(driver, direction, answer, what, dma)
        got = bytes(target.memory[shift : shift + size])
        outside = bytes(target.memory[:shift]) + bytes(target.memory[shift + size :])
    if direction is Direction.READ and driver.read(Reg.CHECKSUM) != crc32(got):
        raise _mismatch(f"{what}: the data does not have the CHECKSUM that the endpoint gives")
    if direction is Direction.COPY:
        difference = compare(data, got)
        if difference:
            raise _mismatch(f"{what}: {difference}")
    if outside.strip(b"\0"):
        raise _mismatch(f"{what}: the endpoint wrote outside of the buffer")
    return answer


def _point(driver: EpfTest, low: Reg, buffer: DmaBuffer, shift: int) -> None:
    """SRC and DST are not 8-byte aligned, so they are two writes each."""
    address = buffer.iova + shift
    driver.write(low, address & 0xFFFFFFFF)
    driver.write(Reg(low + 4), address >> 32)


def _check_answer(
    driver: EpfTest, direction: Direction, answer: Answer, what: str, dma: bool
) -> None:
    kind = _KINDS[direction]
    if answer.good and answer.status & kind.success:
        if answer.irq_lost:
            raise driver.explain(answer, what)
        return
    if answer.good and answer.status & (Status.SRC_ADDR_INVALID | Status.DST_ADDR_INVALID):
        side = "SRC" if answer.status & Status.SRC_ADDR_INVALID else "DST"
        raise NotPassed(
            Reason.ADDRESS_INVALID,
            f"{what}: the endpoint could not map {side} ({side}_ADDR_INVALID)",
            hint="its outbound window failed: is one free, and does it reach such addresses?",
        )
    if answer.good and answer.status & kind.failure:
        raise NotPassed(
            Reason.TRANSFER_FAILED,
            f"{what}: the endpoint says {kind.failure.name}",
            hint="COPY with DMA needs a memcpy-capable engine, which DesignWare eDMA is not"
            if direction is Direction.COPY and dma
            else "the host's IOMMU may have refused the access: see this host's dmesg",
        )
    failure = driver.explain(answer, what)
    if failure.reason is Reason.SILENT and dma:
        failure.hint = "an endpoint without a DMA engine takes such a command and says nothing"
    raise failure


def _mismatch(message: str) -> NotPassed:
    return NotPassed(
        Reason.DATA_MISMATCH,
        message,
        hint="is the endpoint's outbound window right, and does this host's path keep the data?",
    )
