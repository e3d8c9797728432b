"""Bandwidth of a memory window from this side, as ``drivers/ntb/test/ntb_perf.c`` measures it.

Its perf_copy_chunk() copies memory into the window, chunk behind chunk. So does this, in words of
each width and by each way to the window, and out of the window too. No ntb_perf has to run at the
other end, but the window has to lead somewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.transport import MTU, Transport
from rcdrv.epf_vntb.window import compare, pattern
from rcdrv.errors import RcdrvError, UsageError
from rcdrv.function import called_window
from rcdrv.mmio import TrappedWindow, Window

CHUNK = 64 << 10
"""Default of the bytes of a copy."""
_LARGEST_CHUNK = 1 << 20
"""MAX_CHUNK_SIZE."""
_AREA = 256 << 10
"""Bytes at the start of the window that copies go through, unless a copy is longer."""
_LOOK = 0.02
"""Seconds between two looks whether to stop."""


class Rate(NamedTuple):
    """What one way of access moved."""

    mapping: str
    """mapped; calls: a pread() or pwrite() each word of 32 bits, or each chunk; messages of
    vfio-user."""
    width: int | None
    """Bits of a word; None: whoever receives the messages decides."""
    direction: str
    bytes: int
    seconds: float

    @property
    def megabytes(self) -> float:
        """10^6 bytes a second, as ntb_perf has them."""
        return self.bytes / self.seconds / 1e6


def measure(
    vntb: Vntb,
    index: int,
    done: Callable[[Rate], None],
    *,
    chunk: int = CHUNK,
    seconds: float = 0.5,
    translated: bool = False,
) -> None:
    """Copy into a window and out of it, ``seconds`` each way; its contents are put back.

    :param done: called with each result
    :param translated: the endpoint has set the window's translation; else its ntb_transport is
        made to
    :raises UsageError: there is no such window, or ``chunk`` does not fit it
    :raises NotPassed: ``link-down``: how far the hand-shake of ntb_transport got; ``link-lost``;
        ``data-mismatch``: what was written does not come back
    :raises DeviceLost: the device is gone
    :raises Interrupted: the user asked to stop
    """
    window = vntb.window(index)
    most = min(window.size, _LARGEST_CHUNK)
    if chunk % 8 or not 0 < chunk <= most:
        raise UsageError(f"`chunk` {chunk:#x} is no multiple of 8 bytes up to {most:#x}")
    area = min(window.size, max(_AREA, chunk))
    starts = range(0, area - chunk + 1, chunk)
    with contextlib.nullcontext() if translated else _link(vntb):
        before = window.read_block(0, area)
        try:
            for way, mapping, width in _ways(vntb, index):
                bulk, way.bulk = way.bulk, width or way.bulk
                try:
                    for direction, copied in _both(vntb, way, starts, seconds, not translated):
                        done(Rate(mapping, width, direction, *copied))
                finally:
                    way.bulk = bulk
        finally:
            # Without the link this is memory that the endpoint has freed.
            if translated or vntb.link_is_up:
                window.write_block(0, before)


@contextlib.contextmanager
def _link(vntb: Vntb) -> Iterator[None]:
    """Link up with the endpoint's ntb_transport, which sets its windows' translations.

    Its queue pairs stay down, so that nothing but this uses the windows.
    """
    transport = Transport(vntb, mtu=MTU)
    failed = True
    try:
        transport.prepare()
        transport.await_translations()
        yield
        failed = False
    finally:
        try:
            transport.close()
        except RcdrvError:
            # What went wrong first is what the user has to read.
            if not failed:
                raise


def _ways(vntb: Vntb, index: int) -> Iterator[tuple[Window, str, int | None]]:
    window, device = vntb.window(index), vntb.function.device
    vntb.widen(index, 0)
    widths = (32, 64) if window.bulk == 64 else (32,)
    if not isinstance(window, TrappedWindow):
        for width in widths:
            yield window, "mapped", width
    called = called_window(device, vntb.bars.windows[index])
    if device.messages:
        yield called, "messages", None
        return
    for width in widths:
        yield called, "calls", width


def _both(
    vntb: Vntb, window: Window, starts: range, seconds: float, linked: bool
) -> Iterator[tuple[str, tuple[int, float]]]:
    """Copy there, and back; yields direction, bytes and time."""
    data = pattern(0, starts.step)
    there = memoryview(bytearray(starts.step))

    def write(start: int) -> None:
        window.write_block(start, data)

    def read(start: int) -> None:
        window.read_into(start, there)

    now = time.monotonic  # this is a measurement and no wait
    for direction, copy in (("write", write), ("read", read)):
        begun = at = look_at = now()
        number = 0
        while at < begun + seconds or not number:
            if at >= look_at:
                vntb.function.check()
                if linked:
                    vntb.check_link()
                look_at = at + _LOOK
            copy(starts[number % len(starts)])
            number += 1
            at = now()
        window.read32(0)  # writes are posted, and this waits for them
        yield direction, (number * starts.step, now() - begun)
        compare(vntb, window, starts[0], data)
