"""ioctl(2) as VFIO uses it: requests, structures and capability chains."""

from __future__ import annotations

import ctypes
import fcntl
import struct
from collections.abc import Iterator

from rcdrv.errors import HostError
from rcdrv.vfio.uapi import Argument, IommufdArgument

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import TypeVar

    Info = TypeVar("Info", bound=Argument)

# struct vfio_info_cap_header: __u16 id, __u16 version, __u32 next.
_CAP_HEADER = struct.Struct("=HHI")

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


def capabilities(answer: bytes, fixed: int, first: int) -> Iterator[tuple[int, bytes]]:
    """Walk the capability chain of an INFO answer.

    :param fixed: size of the structure before the chain
    :param first: its ``cap_offset``; 0 if there is no chain
    :returns: (id, rest of the answer after the capability's header) of each capability
    :raises HostError: the chain loops or leaves the answer
    """
    seen: set[int] = set()
    offset = first
    while offset:
        if not fixed <= offset <= len(answer) - _CAP_HEADER.size or offset in seen:
            raise HostError(f"the kernel's capability chain is broken at {offset:#x}")
        seen.add(offset)
        identity, _version, following = _CAP_HEADER.unpack_from(answer, offset)
        yield identity, answer[offset + _CAP_HEADER.size :]
        offset = following


def pairs(body: bytes) -> list[tuple[int, int]]:
    """Return the pairs of a counted list: ``__u32 count, reserved``, then pairs of __u64.

    Sparse mmap areas and IOVA ranges have this form.

    :raises HostError: the count exceeds the size of the body
    """
    if len(body) < 8:
        raise HostError("the kernel's capability is truncated")
    (count,) = struct.unpack_from("=I", body)
    if count > (len(body) - 8) // 16:
        raise HostError(f"the kernel announces {count} entries in {len(body) - 8} bytes")
    return list(struct.iter_unpack("=QQ", body[8 : 8 + 16 * count]))
