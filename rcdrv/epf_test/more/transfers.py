"""Transfers: sizes and alignments around the boundaries of a link, and addresses above 4 GiB.

All are done by the endpoint's processor: an endpoint without a DMA engine never answers a command
with USE_DMA, which the 23 cases show.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from functools import partial

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more.case import Progress, case, judged, skip
from rcdrv.epf_test.transfer import (
    ADDRESS_BITS,
    Direction,
    Placement,
    default_align,
    need_iommu,
    transfer_test,
    transfers,
)
from rcdrv.errors import HostError
from rcdrv.verdict import NotPassed, Reason

_BOUNDARIES = (128, 256, 512, 4096, 65536)
"""Bytes: payloads and read requests (MPS, MRRS), pages of a host and of an endpoint."""
_HIGH = 1 << 33
_NO_CHOICE = "without an IOMMU bus addresses cannot be chosen"
_AS_23 = "reads or writes this host's buffers, as the 23 cases do"


def around(driver: EpfTest) -> Sequence[Placement]:
    """Return sizes just below, at and above each boundary, at several offsets in a page."""
    align = default_align(driver)
    shifts = [shift for shift in (0, 4, 2048, 4096 - 60) if shift % align == 0]
    if align > 4096:
        shifts.append(align)
    # Relative to a multiple of 128 KiB, so that no shift ends up aligned by chance.
    return tuple(
        Placement(boundary + edge, shift, 1 << 17)
        for boundary in _BOUNDARIES
        for edge in (-1, 0, 1)
        for shift in shifts
    )


def sizes(direction: Direction, driver: EpfTest, progress: Progress) -> str:
    """Run one transfer of each size; writes outside of the buffer are detected."""
    transfer_test(direction, False, around, driver, progress)
    return f"{len(around(driver))} transfers"


@case(
    "transfer.HIGH_ADDRESS",
    "bus addresses above 4 GiB are reached",
    risk=f"{_AS_23}; an endpoint that cuts addresses off meets the IOMMU",
    needs="an IOMMU",
)
def high(driver: EpfTest, progress: Progress) -> str:
    """Transfer at multiples of 8 GiB."""
    need_iommu(driver, _NO_CHOICE)
    function = driver.function
    try:
        for direction in Direction:
            transfer_test(direction, False, lambda _: [Placement(4096, 0, _HIGH)], driver, progress)
    except HostError as error:
        raise skip(Reason.HOST, f"no addresses above 4 GiB: {error.message}") from None
    finally:
        # Later addresses follow the last ones: return to the range that any endpoint reaches.
        with contextlib.suppress(HostError), function.dma_buffer(1, address_bits=32):
            pass
    return "3 transfers at multiples of 8 GiB"


class _Pages:
    """Pages of their own as one piece of memory."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self._page = len(views[0])

    def _pieces(self, part: slice) -> Iterator[memoryview]:
        at, end, _ = part.indices(self._page * len(self._views))
        while at < end:
            number, first = divmod(at, self._page)
            last = min(self._page, first + end - at)
            yield self._views[number][first:last]
            at += last - first

    def __getitem__(self, part: slice) -> bytes:
        return b"".join(self._pieces(part))

    def __setitem__(self, part: slice, data: bytes) -> None:
        done = 0
        for piece in self._pieces(part):
            piece[:] = data[done : done + len(piece)]
            done += len(piece)


class Scattered:
    """A buffer of pages that adjoin for the endpoint only.

    In this host's memory a page that the endpoint was not given lies between two of them, as far as
    its kernel hands pages out in order: what misses a page hits nobody else's.
    """

    def __init__(self, driver: EpfTest, size: int, align: int) -> None:
        self._guards: list[mmap.mmap] = []
        with contextlib.ExitStack() as stack:
            pages = []
            for page in driver.function.dma_pages(size, align, ADDRESS_BITS):
                pages.append(stack.enter_context(page))
                self._guards.append(mmap.mmap(-1, mmap.PAGESIZE, flags=_OWN))
                self._guards[-1][0] = 0  # so that it is there
            self._stack = stack.pop_all()
        self.iova, self.size = pages[0].iova, size
        self.memory = _Pages([page.memory for page in pages])

    def __enter__(self) -> Scattered:
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        """Give the pages back.

        :raises NotPassed: ``data-mismatch``: one that the endpoint was not given is not as it was
        """
        self._stack.close()
        spoiled = any(guard[:] != bytes(len(guard)) for guard in self._guards)
        if spoiled and exc is None:
            raise NotPassed(
                Reason.DATA_MISMATCH,
                "the endpoint wrote to memory of this host that it was not given",
                hint=_ONE_TRANSLATION,
            )


_OWN = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_ONE_TRANSLATION = (
    "is ATS on, and does the endpoint take the translation of a page for the next page too?"
)


def pass_plainly(driver: EpfTest, direction: Direction, placements: Sequence[Placement]) -> None:
    """Transfer without what the case adds: what fails here too is for other cases to judge.

    :raises NotPassed: a skip
    """
    with judged(f"transfers fail, which {direction.value}_SIZES_TEST judges"):
        transfer_test(direction, False, lambda _: placements, driver)


@case(
    "transfer.SCATTERED",
    "each page of a transfer goes where the IOMMU has that page, and to no other memory",
    risk=_AS_23,
    needs="an IOMMU",
)
def scattered(driver: EpfTest, progress: Progress) -> str:
    """Transfers over pages that this host's IOMMU puts together.

    Buffers in one piece hide a path that translates only the first page of a burst.
    """
    need_iommu(driver, _NO_CHOICE)
    page, align = mmap.PAGESIZE, default_align(driver)
    over = (
        Placement(8, page - 4),
        Placement(page + 1, 0),
        Placement(2 * page, page - 256),
        Placement(16 * page - 4, page - 4),
        Placement(16 * page, 0),
    )
    chosen = [placement for placement in over if placement.shift % align == 0]
    for number, direction in enumerate(Direction):
        pass_plainly(driver, direction, chosen)
        try:
            with transfers(driver, direction, False, chosen, Scattered) as transfer:
                for done, placement in enumerate(chosen, 1):
                    transfer(placement)
                    progress(number * len(chosen) + done, len(Direction) * len(chosen))
        except NotPassed as error:
            error.message = f"over scattered pages: {error.message}"
            if error.reason in (Reason.DATA_MISMATCH, Reason.TRANSFER_FAILED):
                error.hint = _ONE_TRANSLATION
            raise
    return f"{len(Direction) * len(chosen)} transfers over up to 17 pages"


CASES = (
    *(
        case(
            f"transfer.{direction.value}_SIZES",
            f"{direction.value} is right around 128 to 512 bytes, 4 KiB and 64 KiB, and nothing"
            " beside it is written",
            risk=_AS_23,
        )(partial(sizes, direction))
        for direction in Direction
    ),
    scattered,
    high,
)
