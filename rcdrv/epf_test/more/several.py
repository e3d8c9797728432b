"""Transfers of several endpoints at a time: each one's data stays its own.

Each endpoint is driven by a process of its own (``rcdrv test --more`` with several devices), and
has its buffers at the same bus addresses as the others have theirs. So what an endpoint, a switch
or an IOMMU takes for another function's (the requester ID of an outbound window, say) is in a
buffer of somebody else's.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rcdrv.device import PhysicalDma
from rcdrv.dma import DmaBuffer
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more.case import Progress, case, skip
from rcdrv.epf_test.suite import Case
from rcdrv.epf_test.transfer import (
    ADDRESS_BITS,
    Direction,
    Placement,
    transfer_test,
    transfers,
)
from rcdrv.errors import HostError
from rcdrv.function import Function
from rcdrv.verdict import NotPassed, Reason, Verdict

_LONGEST = 120.0
"""Seconds that an endpoint waits for the slowest of the others."""
_LOOK = 0.01
_AT_A_TIME = 0.3
"""Seconds of transfers in one direction."""
_SIZE = 1 << 16
_PLACE = 1 << 28
_GONE = 255
_MIXED = (
    "where it passes with one endpoint alone: do outbound windows, a switch or the IOMMU mix up"
    " whose a request is (requester ID, function number)?"
)


class Meeting:
    """Where processes of one run wait for each other. Made before they fork.

    :param count: how many there are
    :param absent: those that cannot come
    """

    def __init__(self, count: int, absent: Sequence[int] = ()) -> None:
        # A byte each: the number of the last meeting that it has come to.
        self._seen = mmap.mmap(-1, count)
        for number in absent:
            self.leave(number)

    def leave(self, number: int) -> None:
        """Nobody waits for this one any more."""
        self._seen[number] = _GONE

    def come(self, number: int, which: int, function: Function) -> int:
        """Wait for the others at meeting ``which``, counted from 1.

        :returns: how many others are there
        """
        if self._seen[number] == _GONE:
            return 0
        self._seen[number] = which
        deadline = function.deadline(_LONGEST)
        while min(self._seen[:]) < which and not deadline.expired:
            function.pause(_LOOK)
        there = [seen for seen in self._seen[:] if which <= seen < _GONE]
        return len(there) - 1 if min(self._seen[:]) >= which else 0


def alone(_driver: EpfTest, _progress: Progress) -> str:
    """One endpoint has nobody to disturb."""
    raise skip(Reason.NOT_VERIFIED, "one endpoint is driven, and this needs several")


def several(meeting: Meeting, number: int, driver: EpfTest, progress: Progress) -> str:
    """Transfer while the others do, as fast as it goes; look at all of the buffers afterwards."""
    function, transferred, others = driver.function, 0, 0
    chosen = [Placement(_SIZE)]
    try:
        for done, direction in enumerate(Direction):
            try:
                transfer_test(direction, False, lambda _: chosen, driver)
            except NotPassed as why:
                message = f"transfers fail, which {direction.value}_SIZES_TEST judges"
                raise skip(why.reason, message) from None
            with transfers(driver, direction, False, chosen, _same_place) as transfer:
                others = meeting.come(number, 2 * done + 1, function)
                if not others:
                    raise skip(Reason.NOT_VERIFIED, "no other endpoint came to it in time")
                end = function.deadline(_AT_A_TIME)
                while not end.expired:
                    transfer(chosen[0])
                    transferred += 1
                meeting.come(number, 2 * done + 2, function)  # what they spoil is seen behind this
            progress(done + 1, len(Direction))
    except NotPassed as error:
        if error.verdict is not Verdict.SKIP:
            error.message = f"while {others} more transferred: {error.message}"
            error.hint = _MIXED
        raise
    finally:
        meeting.leave(number)
    return f"{transferred} transfers of {_SIZE} bytes while {others} more transferred"


def _same_place(driver: EpfTest, size: int, align: int) -> DmaBuffer:
    """Where the others have theirs, if this host lets us choose."""
    function = driver.function
    if not isinstance(function.device, PhysicalDma):
        with contextlib.suppress(HostError):
            return function.dma_buffer(size, align=max(align, _PLACE), address_bits=32)
    return function.dma_buffer(size, align=align, address_bits=ADDRESS_BITS)


CASE = case(
    "transfer",
    "SEVERAL",
    alone,
    "transfers of several endpoints at a time stay apart",
    risk="reads or writes this host's buffers, as the 23 cases do",
    needs="several devices in one run, and an IOMMU group each",
)


def meet(chosen: Sequence[Case], meeting: Meeting, number: int) -> tuple[Case, ...]:
    """Return the cases as participant ``number`` of a meeting runs them."""
    body = case("transfer", "SEVERAL", partial(several, meeting, number), "").body
    return tuple(replace(one, body=body) if one.name == CASE.name else one for one in chosen)
