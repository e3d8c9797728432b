"""ioctl(2) as VFIO uses it: requests and structures."""

from __future__ import annotations

import ctypes
import fcntl

from rcdrv.errors import HostError
from rcdrv.vfio.uapi import Argument, IommufdArgument

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import TypeVar

    Info = TypeVar("Info", bound=Argument)

# Limit of argsz in bytes, far above any capability chain of the kernel.
_LARGEST_INFO = 1 << 20


def call(fd: int, request: int, argument: int | bytearray | Argument | IommufdArgument = 0) -> int:
    """Make one ioctl, repeated when a signal interrupts it.

    :param argument: a number, or writable memory: with read-only memory :func:`fcntl.ioctl` returns
        that memory instead of the result
    :returns: the kernel's return value, which can be positive
    :raises OSError: the kernel's errno
    """
    while True:
        try:
            return fcntl.ioctl(fd, request, argument)
        except InterruptedError:
            continue


def command(fd: int, request: int, argument: IommufdArgument) -> None:
    """Make one iommufd ioctl. The kernel reads and updates ``argument``.

    :raises OSError: the kernel's errno
    """
    argument.size = ctypes.sizeof(argument)
    call(fd, request, argument)


def query(fd: int, request: int, info: Info) -> tuple[Info, bytes]:
    """Make an INFO request, repeated with the size that the kernel asks for.

    :returns: the structure, and the whole answer: the structure followed by its capability chain
    :raises HostError: the kernel keeps asking for more
    :raises OSError: the kernel's errno
    """
    fixed = info.argsz = ctypes.sizeof(info)
    # The second attempt succeeds, unless the chain has grown meanwhile.
    for _ in range(4):
        answer = bytearray(info) + bytes(info.argsz - fixed)
        call(fd, request, answer)
        result = type(info).from_buffer_copy(answer)
        if result.argsz <= info.argsz:
            return result, bytes(answer)
        if result.argsz > _LARGEST_INFO:
            break
        info.argsz = result.argsz
    raise HostError(f"the kernel wants {result.argsz} bytes for the answer to ioctl {request:#x}")
