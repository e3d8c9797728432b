"""Transfers of several endpoints at a time: each one's data stays its own.

A process of its own drives each endpoint. The buffers of all have the same bus addresses. If an
endpoint, a switch or an IOMMU mistakes one function for another (by the requester ID of an outbound
window, say), the data arrives in the buffer of the other process.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from functools import partial

from rcdrv.device import PhysicalDma
from rcdrv.dma import DmaBuffer
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more.case import Progress, case, skip
from rcdrv.epf_test.more.transfers import pass_plainly
from rcdrv.epf_test.suite import Case
from rcdrv.epf_test.transfer import Direction, Placement, dma_buffer, transfers
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
_LEFT = 0x80
_MIXED = (
    "where it passes with one endpoint alone: do outbound windows, a switch or the IOMMU mix up"
    " whose a request is (requester ID, function number)?"
)


class Meeting:
    """Meeting points of the processes of one run. Created before they fork.

    :param count: number of processes
    :param absent: processes that do not take part
    """

    def __init__(self, count: int, absent: Sequence[int] = ()) -> None:
        # A byte for each process: the last meeting that it reached, and whether it has left.
        self._seen = mmap.mmap(-1, count)
        for number in absent:
            self.leave(number)

    def leave(self, number: int) -> None:
        """Take process ``number`` out: the others no longer wait for it."""
        self._seen[number] |= _LEFT

    def come(self, number: int, which: int, function: Function) -> int:
        """Wait for the other processes at meeting ``which``, counted from 1.

        :returns: number of others that reached it, also if they have left since; 0 if one that has
            not left did not in time
        """
        if self._seen[number] & _LEFT:
            return 0
        self._seen[number] = which
        deadline = function.deadline(_LONGEST)
        while True:
            late = deadline.expired
            seen = self._seen[:]
            there = [(one & ~_LEFT) >= which for one in seen]
            if all(here or one & _LEFT for here, one in zip(there, seen, strict=True)):
                return sum(there) - 1
            if late:
                return 0
            function.pause(_LOOK)

    def absence(self, number: int) -> str:
        """Return why no other process was at the meeting of process ``number``."""
        seen = self._seen[:]
        if seen[number] & _LEFT:
            return "it takes turns with another device of this run (one IOMMU group, or one bus)"
        if all(one & _LEFT for at, one in enumerate(seen) if at != number):
            return "no other endpoint is left to transfer at the same time"
        return "no other endpoint was ready in time"


_several = case(
    "transfer.SEVERAL",
    "transfers of several endpoints at a time stay apart",
    risk="reads or writes this host's buffers, as the 23 cases do",
    needs="several devices in one run, and an IOMMU group each",
)


@_several
def alone(_driver: EpfTest, _progress: Progress) -> str:
    raise skip(Reason.NOT_VERIFIED, "one endpoint is driven, and this needs several")


def several(meeting: Meeting, number: int, driver: EpfTest, progress: Progress) -> str:
    """Transfer at the same time as the others, and verify the buffers after all have ended."""
    function, transferred, others = driver.function, 0, 0
    chosen = [Placement(_SIZE)]
    try:
        for done, direction in enumerate(Direction):
            pass_plainly(driver, direction, chosen)
            with transfers(driver, direction, False, chosen, _same_place) as transfer:
                others = meeting.come(number, 2 * done + 1, function)
                if not others:
                    raise skip(Reason.NOT_VERIFIED, meeting.absence(number))
                end = function.deadline(_AT_A_TIME)
                while not end.expired:
                    transfer(chosen[0])
                    transferred += 1
                until_the_end = meeting.come(number, 2 * done + 2, function)
            # The buffer is verified: others that ended in the middle may have spoiled it.
            if not until_the_end:
                raise skip(Reason.NOT_VERIFIED, meeting.absence(number))
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
    """Allocate a buffer at the bus address that the others use, if the host allows it."""
    function = driver.function
    if not isinstance(function.device, PhysicalDma):
        with contextlib.suppress(HostError):
            return function.dma_buffer(size, align=max(align, _PLACE), address_bits=32)
    return dma_buffer(driver, size, align)


def meet(chosen: Sequence[Case], meeting: Meeting, number: int) -> tuple[Case, ...]:
    """Return the cases as participant ``number`` of a meeting runs them."""
    together = _several(partial(several, meeting, number))
    return tuple(together if one.name == together.name else one for one in chosen)
