"""Transfers: sizes and alignments around the boundaries of a link, and addresses above 4 GiB.

All are done by the endpoint's processor: an endpoint without a DMA engine never answers a command
with USE_DMA, which the 23 cases show.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

from rcdrv.device import PhysicalDma
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more.case import MoreCase, Progress, case, skip
from rcdrv.epf_test.transfer import Direction, Placement, default_align, transfer_test
from rcdrv.errors import HostError
from rcdrv.verdict import Reason

_BOUNDARIES = (128, 256, 512, 4096, 65536)
"""Bytes: payloads and read requests (MPS, MRRS), pages of a host and of an endpoint."""
_HIGH = 1 << 33


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


def high(driver: EpfTest, progress: Progress) -> str:
    """Transfer at multiples of 8 GiB, which 32-bit addresses do not reach."""
    if isinstance(driver.function.device, PhysicalDma):
        raise skip(Reason.HOST, "without an IOMMU bus addresses cannot be chosen")
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


_AS_23 = "reads or writes this host's buffers, as the 23 cases do"

CASES: tuple[MoreCase, ...] = (
    *(
        case(
            "transfer",
            f"{direction.value}_SIZES",
            partial(sizes, direction),
            f"{direction.value} is right around 128 to 512 bytes, 4 KiB and 64 KiB, and nothing"
            " beside it is written",
            risk=_AS_23,
        )
        for direction in Direction
    ),
    case(
        "transfer",
        "HIGH_ADDRESS",
        high,
        "bus addresses above 4 GiB are reached",
        risk=f"{_AS_23}; an endpoint that cuts addresses off meets the IOMMU",
        needs="an IOMMU",
    ),
)
