"""Protection from SIGBUS, which an access to a lost device may raise and Python cannot survive.

The kernel raises it for a mapped access if the function's memory decoding is off or it sleeps
(vfio_pci_mmap_huge_fault() in drivers/vfio/pci/vfio_pci_core.c), and on arm64 if the bus returns an
error. A vfio-user server may truncate the file of a mapped BAR. So both are driven in a child
process, whose death becomes a :class:`DeviceLost` in the parent. The parent only waits and forwards
signals; output, terminal and exit status are the child's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from rcdrv.address import scheme_of
from rcdrv.errors import DeviceLost
from rcdrv.wait import heeded

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def continue_in_child(address: str) -> None:
    """Fork, and return in the child, which continues.

    In the parent, raise SystemExit with the child's status when the child has ended.

    :raises DeviceLost: the child died of SIGBUS
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # Signals are blocked until the parent knows the child to forward them to.
    forwarded = list(_FORWARDED)
    if callable(signal.getsignal(signal.SIGUSR1)):  # only if the command handles it
        forwarded.append(signal.SIGUSR1)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    child = os.fork()
    if child:
        raise outcome(address, _wait(child, forwarded, mask))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    end_with(parent)


def end_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, for clean-up."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _wait(child: int, forwarded: Sequence[signal.Signals], mask: set[signal.Signals | int]) -> int:
    """Forward signals until the child has ended; return its exit status, negative for a signal.

    :param mask: the signals blocked before the fork
    """

    def forward(signum: int, _frame: FrameType | None) -> None:
        os.kill(child, signum)

    before = {signum: signal.signal(signum, forward) for signum in heeded(forwarded)}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        # The child stays a zombie, keeping its PID, until no handler can signal it.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(address: str, status: int) -> DeviceLost | SystemExit:
    """Translate the end of a child: SystemExit with its status, or the device's loss.

    :param status: negative for a signal
    """
    if status == -signal.SIGBUS:
        if not scheme_of(address).is_vfio:
            return DeviceLost(
                f"{address}: an access to a BAR failed (SIGBUS): the server truncated its file, or "
                "no memory is left for it",
                hint="the server is at fault: it must not change the size of what it handed out; "
                "look at its output, start it again",
            )
        return DeviceLost(
            f"{address}: the device is gone: an access to its memory failed (SIGBUS)",
            hint="it was removed, lost its link, was reset or put to sleep; what was under way on "
            "the endpoint, such as an enabled doorbell, was left as it was",
        )
    return SystemExit(128 - status if status < 0 else status)
