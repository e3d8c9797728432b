"""Data transfers: the endpoint reads, writes or copies memory of the root complex.

Named from the root complex's view, as in the kselftest: for a READ the root complex sends the
command WRITE.
"""

from __future__ import annotations

import contextlib
import mmap
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from rcdrv.device import PhysicalDma
from rcdrv.dma import DmaBuffer
from rcdrv.epf_test.answer import Answer
from rcdrv.epf_test.bars import Progress, no_progress
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.mismatch import compare
from rcdrv.epf_test.registers import Caps, Command, Flags, Reg, Status
from rcdrv.errors import UsageError
from rcdrv.mmio import barrier, first_difference
from rcdrv.verdict import NotPassed, Reason, skip

SIZES = (1, 1024, 1025, 1024000, 1024001)
"""Bytes; the sizes of the kselftest."""

_PAGE = 4096

ADDRESS_BITS = 48
"""Bus addresses stay below 2^48, as with the DMA mask of the kernel's driver."""

LARGEST = 4 << 20
"""Bytes; above it the endpoint's kernel warns about its allocation, or panics (panic_on_warn)."""

SLOWEST = 1_000_000.0
"""Bytes per second below which a transfer times out."""

_LATEST = 20_000.0  # bytes per second down to which a late answer is awaited, to report its delay


class Buffer(Protocol):
    """Memory of this host that the endpoint reaches, such as a :class:`~rcdrv.dma.DmaBuffer`."""

    iova: int
    size: int
    memory: Any
    """The bytes, by slices."""


class Direction(Enum):
    READ = "READ"
    """Endpoint to root complex."""
    WRITE = "WRITE"
    """Root complex to endpoint."""
    COPY = "COPY"
    """Root complex to root complex, through the endpoint."""


_COMMANDS = {
    Direction.READ: Command.WRITE,
    Direction.WRITE: Command.READ,
    Direction.COPY: Command.COPY,
}
"""Commands are named from the endpoint's side."""


def crc32(data: bytes | memoryview) -> int:
    """Return the kernel's ``crc32_le(~0, data)``, without inversion at the end."""
    return zlib.crc32(data) ^ 0xFFFFFFFF


def need_iommu(driver: EpfTest, without: str) -> None:
    """Skip with this message where bus addresses are those of this host's memory.

    :raises NotPassed: a skip
    """
    if isinstance(driver.function.device, PhysicalDma):
        raise skip(Reason.HOST, without)


def default_align(driver: EpfTest) -> int:
    """Return the alignment of SRC and DST that the endpoint needs, in bytes."""
    return 1 if driver.announces(Caps.UNALIGNED_ACCESS) else driver.part.align


@dataclass(frozen=True)
class Placement:
    """Size and alignment of a transfer."""

    size: int
    """Bytes."""
    shift: int = 0
    """Offset of SRC and DST from a multiple of ``align``, in bytes."""
    align: int = _PAGE
    """Power of two; the endpoint may need more."""


Placements = Callable[[EpfTest], Sequence[Placement]]
"""Return the transfers for an endpoint."""


def of_kselftest(_driver: EpfTest) -> Sequence[Placement]:
    return [Placement(size) for size in SIZES]


def choose_placements(
    sizes: Sequence[int] | None, align: int | None, *, boundaries: bool
) -> Placements:
    """Return the transfers that the user asked for.

    :param sizes: bytes, each 1 to 4 MiB; None or empty: the five of the kselftest
    :param align: place the buffers at odd multiples of this power of two
    :param boundaries: instead, transfers that begin and end around 4 KiB boundaries
    :raises UsageError: an invalid value or combination
    """
    if boundaries:
        if sizes or align:
            raise UsageError(
                "boundaries choose sizes and alignments by themselves: give neither with them"
            )
        return _around_pages
    if align is not None and (align < 1 or align & (align - 1)):
        raise UsageError(f"an alignment of {align} bytes is not a power of two")
    if align is not None and align > 1 << 30:
        raise UsageError(f"an alignment of {align:#x} bytes is above 1 GiB")
    for size in sizes or ():
        check_size(size)
    chosen = [
        Placement(size) if align is None else Placement(size, align, max(2 * align, _PAGE))
        for size in sizes or SIZES
    ]
    return lambda _driver: chosen


def _around_pages(driver: EpfTest) -> Sequence[Placement]:
    """Return placements that begin or end just before, at and just after a 4 KiB boundary."""
    align = default_align(driver)
    edges = range(-4, 5)
    sizes = {1, 2, 3, 4, 7, 8} | {pages * _PAGE + edge for pages in (1, 2) for edge in edges}
    shifts = {edge % _PAGE for edge in edges}
    return [
        Placement(size, shift)
        for size in sorted(sizes)
        for shift in sorted(shifts)
        if shift % align == 0
    ]


def transfer_test(
    direction: Direction,
    dma: bool,
    placements: Placements,
    driver: EpfTest,
    progress: Progress = no_progress,
) -> str:
    """Run one transfer per placement, and verify all bytes in and around the buffer.

    :param dma: let the endpoint use its DMA engine
    :returns: the rate of the largest transfer, as text
    :raises NotPassed: the first failure, with its size
    :raises UsageError: a size that could harm the endpoint, or an unsupported alignment
    """
    chosen = placements(driver)
    largest = max(placement.size for placement in chosen)
    best = 0.0
    with transfers(driver, direction, dma, chosen) as transfer:
        for done, placement in enumerate(chosen):
            answer = transfer(placement)
            if answer.latency_ns and placement.size == largest:
                best = max(best, largest / answer.latency_ns * 1e3)
            progress(done + 1, len(chosen))
    count = f"{len(chosen)} transfers, " if len(chosen) != len(SIZES) else ""
    return f"{count}{largest} bytes at {best:.1f} MB/s"


Allocate = Callable[[EpfTest, int, int], AbstractContextManager[Buffer]]
"""Makes a buffer of so many bytes at a multiple of so many."""


def dma_buffer(driver: EpfTest, size: int, align: int = 1) -> DmaBuffer:
    """Allocate a buffer in one piece, at addresses that the endpoint reaches."""
    align = max(align, default_align(driver))
    return driver.function.dma_buffer(size, align=align, address_bits=ADDRESS_BITS)


@contextlib.contextmanager
def transfers(
    driver: EpfTest,
    direction: Direction,
    dma: bool,
    placements: Sequence[Placement],
    allocate: Allocate = dma_buffer,
) -> Iterator[Callable[[Placement], Answer]]:
    """Provide a callable that runs and verifies one transfer, with buffers for all placements.

    :param allocate: makes the buffers
    :raises UsageError: a size that could harm the endpoint, or an unsupported alignment
    """
    for placement in placements:
        _check_placement(driver, placement)
    # Whole pages, as mapped, so that stray writes after the longest transfer are seen too.
    longest = max(placement.size + placement.shift for placement in placements)
    room = -(-longest // mmap.PAGESIZE) * mmap.PAGESIZE
    align = max(default_align(driver), *(placement.align for placement in placements))
    with contextlib.ExitStack() as stack:
        # Mapping takes longer than a transfer, so all sizes share one mapping.
        source, target = (
            stack.enter_context(allocate(driver, room, align)) if direction in needed_by else None
            for needed_by in (
                (Direction.WRITE, Direction.COPY),
                (Direction.READ, Direction.COPY),
            )
        )
        if target is not None:
            target.memory[:] = bytes(target.size)
        last: Placement | None = None

        def transfer(placement: Placement) -> Answer:
            nonlocal last
            if target is not None and last not in (None, placement):
                # The bytes that this transfer will write were outside of the earlier ones.
                first, end = placement.shift, placement.shift + placement.size
                what = f"{direction.value}, before that of {placement.size} bytes"
                _check_untouched(target, first, end, what)
            last = placement
            return _transfer(driver, direction, placement, dma, source, target)

        yield transfer
        if target is not None:
            _check_untouched(target, 0, target.size, f"the {direction.value}s")


def check_size(size: int) -> None:
    """Check the bytes of a transfer, which the endpoint's kernel allocates at once.

    :raises UsageError: not 1 to :data:`LARGEST`
    """
    if not 0 < size <= LARGEST:
        raise UsageError(
            f"a transfer of {size} bytes is not 1 to {LARGEST}",
            hint="above it the endpoint's kernel warns, or panics with panic_on_warn",
        )


def _check_placement(driver: EpfTest, placement: Placement) -> None:
    check_size(placement.size)
    needed = default_align(driver)
    if placement.shift % needed:
        raise UsageError(
            f"this endpoint needs SRC and DST at multiples of {needed},"
            f" not {placement.shift:#x} behind one"
        )


def _transfer(
    driver: EpfTest,
    direction: Direction,
    placement: Placement,
    dma: bool,
    source: Buffer | None,
    target: Buffer | None,
) -> Answer:
    size, shift = placement.size, placement.shift
    inside = slice(shift, shift + size)
    data = b""
    parameters: dict[Reg, int] = {Reg.SIZE: size, Reg.CHECKSUM: 0}
    if source is not None:
        data = driver.function.random_bytes(size)
        source.memory[inside] = data
        parameters |= address_registers(Reg.SRC_ADDR_LOW, source.iova + shift)
    if target is not None:
        parameters |= address_registers(Reg.DST_ADDR_LOW, target.iova + shift)
    if direction is Direction.WRITE:
        parameters[Reg.CHECKSUM] = crc32(data)
    answer = driver.command(
        _COMMANDS[direction],
        parameters,
        flags=Flags.USE_DMA if dma else Flags(0),
        timeout=driver.timeout + size / SLOWEST,
    )
    what = f"{direction.value} of {size} bytes" + (f" at +{shift:#x}" if shift else "")
    if not answer.answered and not answer.command_left and not answer.status:
        _check_late(driver, direction, what, size)
    barrier()
    _check_answer(driver, direction, answer, what, dma)
    if target is None:
        return answer
    got = bytes(target.memory[inside])
    if direction is Direction.READ and driver.read(Reg.CHECKSUM) != crc32(got):
        raise _mismatch(f"{what}: the data does not have the CHECKSUM that the endpoint gives")
    if direction is Direction.COPY:
        difference = compare(data, got)
        if difference:
            raise _mismatch(f"{what}: {difference}")
    # A wrong length or address hits the neighbouring pages first. The rest is checked at the end.
    _check_untouched(target, shift - _PAGE, shift, what)
    _check_untouched(target, shift + size, shift + size + _PAGE, what)
    target.memory[inside] = bytes(size)
    return answer


def _check_late(driver: EpfTest, direction: Direction, what: str, size: int) -> None:
    """Wait longer, to tell a slow endpoint from a silent one; it takes no other command meanwhile.

    :raises NotPassed: ``silent``: the answer came too late
    """
    late = driver.wait_on(_COMMANDS[direction], size / _LATEST)
    if late.answered and late.latency_ns is not None:
        seconds = late.latency_ns / 1e9
        raise NotPassed(
            Reason.SILENT,
            f"{what}: the answer came after {seconds:.1f} s, too late"
            f" ({size / seconds / 1e3:.0f} KB/s)",
            hint="give it more time, or find out what makes the endpoint slow: its processor copies"
            " through an uncached outbound window, which its DMA engine is faster at",
        )


def _check_untouched(target: Buffer, first: int, end: int, what: str) -> None:
    """Verify that the cleared buffer is still zero from ``first`` to ``end``."""
    around = bytes(target.memory[max(0, first) : end])
    if around != bytes(len(around)):
        at = max(0, first) + first_difference(around, bytes(len(around)))
        raise _mismatch(f"{what}: the endpoint wrote outside of the buffer, at {at:#x}")


def iommu_fault_test(driver: EpfTest, _progress: object = None) -> str:
    """Have the endpoint read and write a bus address that this host's IOMMU refuses.

    On a good endpoint the read fails because of wrong data; the write is posted, so the endpoint
    may report success. Some parts hang or crash, so this runs by name only.

    :raises NotPassed: another outcome, or ordinary transfers fail afterwards
    """
    need_iommu(driver, "no IOMMU is in use here that could refuse")
    data = driver.function.random_bytes(1024)
    with dma_buffer(driver, _PAGE) as buffer:
        unmapped = buffer.iova
        # An access that is not refused finds this data, with the right CHECKSUM.
        buffer.memory[: len(data)] = data
    outcomes = []
    for direction, low, expected in (
        (Direction.WRITE, Reg.SRC_ADDR_LOW, Status.READ_FAIL),
        (Direction.READ, Reg.DST_ADDR_LOW, Status.WRITE_SUCCESS | Status.WRITE_FAIL),
    ):
        parameters = {
            **address_registers(low, unmapped),
            Reg.SIZE: len(data),
            Reg.CHECKSUM: crc32(data),
        }
        answer = driver.command(_COMMANDS[direction], parameters)
        what = f"{direction.value} at the unmapped address {unmapped:#x}"
        if answer.good and not answer.irq_lost and answer.status & expected:
            outcomes.append(f"{direction.value} {(answer.status & expected).name}")
        else:
            _check_answer(driver, direction, answer, what, dma=False)
            raise NotPassed(
                Reason.WRONG_STATUS,
                f"{what} succeeded: nothing refused it",
                hint="is the IOMMU in passthrough mode (iommu=pt), or not in front of this device?",
            )
    for direction in Direction:
        transfer_test(direction, False, lambda _driver: [Placement(1024)], driver)
    return ", ".join(outcomes)


def address_registers(low: Reg, address: int) -> dict[Reg, int]:
    """Return SRC or DST as two registers, as neither is 8-byte aligned."""
    return {low: address & 0xFFFFFFFF, Reg(low + 4): address >> 32}


def _check_answer(
    driver: EpfTest, direction: Direction, answer: Answer, what: str, dma: bool
) -> None:
    command = _COMMANDS[direction]
    success, failed = (Status[f"{command.name}_{word}"] for word in ("SUCCESS", "FAIL"))
    if answer.good and answer.status & success:
        if answer.irq_lost:
            raise explain(driver, answer, what)
        return
    if answer.good and answer.status & (Status.SRC_ADDR_INVALID | Status.DST_ADDR_INVALID):
        side = "SRC" if answer.status & Status.SRC_ADDR_INVALID else "DST"
        raise NotPassed(
            Reason.ADDRESS_INVALID,
            f"{what}: the endpoint could not map {side} ({side}_ADDR_INVALID)",
            hint="its outbound window failed: is one free, and does it reach such addresses?",
        )
    if answer.good and answer.status & failed:
        raise NotPassed(
            Reason.TRANSFER_FAILED,
            f"{what}: the endpoint says {failed.name}",
            hint=_failed_hint(driver, direction, dma),
        )
    failure = explain(driver, answer, what)
    if failure.reason is Reason.SILENT and dma and not answer.command_left:
        failure.hint = (
            "an endpoint without a DMA engine takes such a command and says nothing (its dmesg:"
            ' "Cannot transfer data using DMA")'
        )
    raise failure


def _failed_hint(driver: EpfTest, direction: Direction, dma: bool) -> str:
    from rcdrv.epf_test.causes import Symptom, hint

    symptom = Symptom.TRANSFER_FAILED
    if dma:
        copies = direction is Direction.COPY
        symptom = Symptom.DMA_COPY_FAILED if copies else Symptom.DMA_FAILED
    return hint(symptom, driver.part)


def _mismatch(message: str) -> NotPassed:
    return NotPassed(
        Reason.DATA_MISMATCH,
        message,
        hint="is the endpoint's outbound window right, and does this host's path keep the data?",
    )
