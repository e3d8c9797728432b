"""A TAP interface of this host: Ethernet frames by read and write (``drivers/net/tun.c``)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface

from rcdrv.errors import HostError, UsageError

DEVICE = "/dev/net/tun"
ETHERNET = 14
"""Bytes of an Ethernet header: the least that a frame has (ETH_HLEN)."""
LARGEST_MTU = 65535 - ETHERNET
"""MAX_MTU of tun.c for a TAP."""
LEAST_MTU = 68
"""ETH_MIN_MTU: min_mtu of tun.c."""

_TUNSETIFF, _TUNSETQUEUE, _TUNSETCARRIER = 0x400454CA, 0x400454D9, 0x400454E2
_TUNGETIFF = 0x800454D2
_IFF_TAP, _IFF_NO_PI, _IFF_UP = 0x0002, 0x1000, 0x1
_IFF_MULTI_QUEUE, _IFF_ATTACH_QUEUE, _IFF_DETACH_QUEUE = 0x0100, 0x0200, 0x0400
_IFF_PERSIST, _IFF_TUN_EXCL = 0x0800, 0x8000
_GET_INDEX, _GET_FLAGS, _SET_FLAGS, _GET_MTU, _SET_MTU = 0x8933, 0x8913, 0x8914, 0x8921, 0x8922
_GET_ADDRESS, _SET_ADDRESS, _GET_MASK, _SET_MASK = 0x8915, 0x8916, 0x891B, 0x891C
_NAME = struct.Struct("16s24x")  # struct ifreq
_SHORT, _INT = struct.Struct("16sH22x"), struct.Struct("16si20x")
_IPV4 = struct.Struct("16sHH4s16x")

# What a write to the interface says of a frame that it does not take: it is down, short of memory,
# or the frame is none.
_NOT_TAKEN = (errno.EIO, errno.EINVAL, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)


class TapQueue:
    """A queue of a :class:`Tap`, which opens and closes it.

    :param single: the interface has no other
    """

    def __init__(self, name: str, *, single: bool) -> None:
        self._name, self._single = name, single
        self._attached = True
        self.fd = _open_driver()

    def read_into(self, buffer: memoryview) -> int:
        """Read the next frame that the host sends; return its length, 0 where there is none.

        :raises HostError: the interface was deleted
        """
        try:
            return os.readv(self.fd, [buffer])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _deleted(self._name) from error

    def write(self, frame: bytes | memoryview) -> bool:
        """Hand a frame to the host; return whether it was taken.

        :raises HostError: the interface was deleted
        """
        try:
            os.write(self.fd, frame)
        except OSError as error:
            if error.errno in _NOT_TAKEN:
                return False
            raise _deleted(self._name) from error
        return True

    def attach(self) -> None:
        """Have the host send by this queue too, as it does after the interface was opened.

        :raises HostError: the interface was deleted
        """
        self._use(True)

    def detach(self) -> None:
        """Have the host send by the other queues alone; frames that wait in this one are dropped.

        A single queue stays. Without a carrier the host sends nothing.
        """
        with contextlib.suppress(HostError):  # it was deleted
            self._use(False)

    def _use(self, attached: bool) -> None:
        if self._single or attached == self._attached:
            return
        flag = _IFF_ATTACH_QUEUE if attached else _IFF_DETACH_QUEUE
        try:
            fcntl.ioctl(self.fd, _TUNSETQUEUE, _SHORT.pack(b"", flag))
        except OSError as error:
            raise _deleted(self._name) from error
        self._attached = attached


class Tap:
    """A TAP interface, made or, where it exists, attached to. :meth:`close` removes what was made.

    Attaching to one of the user's own (``ip tuntap add mode tap user``, for several queues with
    ``multi_queue``) needs no privilege. Another program on one with ``multi_queue`` is not noticed.

    :param queues: number of queues
    :raises UsageError: the name cannot be one, or belongs to an interface of another kind
    :raises HostError: no TUN driver, no permission, or another program has it
    """

    def __init__(self, name: str, queues: int = 1) -> None:
        self.name = check_name(name)
        self._encoded = name.encode()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.existed = self._exists()
        """It was there before: its settings are its owner's."""
        self.queues: list[TapQueue] = []
        try:
            for _ in range(queues):
                self.queues.append(TapQueue(name, single=queues == 1))
                self._attach(self.queues[-1].fd, queues)
            if self.existed and not self._persists():
                raise self._in_use()  # several queues, to which the kernel lets another attach
        except BaseException:
            self.close()
            raise

    def _exists(self) -> bool:
        try:
            self._ask(_GET_INDEX, _NAME.pack(self._encoded))
        except OSError:
            return False
        return True

    def _persists(self) -> bool:
        """Return whether it stays without a program that is attached."""
        found = fcntl.ioctl(self.queues[0].fd, _TUNGETIFF, _SHORT.pack(b"", 0))
        return bool(_SHORT.unpack(found)[1] & _IFF_PERSIST)

    def _in_use(self) -> HostError:
        return HostError(
            f"{self.name} is in use by another program",
            hint="end that program, or choose another name",
        )

    def _attach(self, fd: int, queues: int) -> None:
        # An interface made with IFF_MULTI_QUEUE is attached to with it, and else without.
        multi_queue = _IFF_MULTI_QUEUE if queues > 1 else 0
        flags = _IFF_TAP | _IFF_NO_PI | multi_queue
        if not self.existed and len(self.queues) == 1:
            flags |= _IFF_TUN_EXCL
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _SHORT.pack(self._encoded, flags))
        except OSError as error:
            name = self.name
            make = f"ip tuntap add {name} mode tap{' multi_queue' if multi_queue else ''}"
            if error.errno == errno.EBUSY:
                raise self._in_use() from None
            if error.errno == errno.EPERM:
                owner = "is another user's" if self.existed else "cannot be made: no CAP_NET_ADMIN"
                raise HostError(
                    f"the interface {name} {owner}",
                    hint=f"as root, once: {make} user $USER; or run as root",
                ) from None
            if error.errno == errno.EINVAL and self.existed:
                kind = "several queues" if multi_queue else "one queue"
                raise UsageError(
                    f"the name {name} is taken by an interface that is no TAP of {kind}",
                    hint=f"choose another name; one of your own is made, as root, by {make} user"
                    " $USER",
                ) from None
            raise HostError(f"cannot make the interface {name}: {error.strerror}") from None

    # -- settings -----------------------------------------------------------------------------

    @property
    def mtu(self) -> int:
        try:
            found: int = _INT.unpack(self._ask(_GET_MTU, _NAME.pack(self._encoded)))[1]
        except OSError as error:
            raise _deleted(self.name) from error
        return found

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU, unless it is so already."""
        if self.mtu != mtu:
            with self._permission(f"ip link set {self.name} mtu {mtu}"):
                self._ask(_SET_MTU, _INT.pack(self._encoded, mtu))

    def set_address(self, address: IPv4Interface) -> None:
        """Give it this IPv4 address with its mask, unless it has both."""
        wanted = address.ip.packed, address.netmask.packed
        if (self._ipv4(_GET_ADDRESS), self._ipv4(_GET_MASK)) == wanted:
            return
        with self._permission(f"ip addr add {address} dev {self.name}"):
            for request, value in zip((_SET_ADDRESS, _SET_MASK), wanted, strict=True):
                self._ask(request, _IPV4.pack(self._encoded, socket.AF_INET, 0, value))

    def _ipv4(self, request: int) -> bytes:
        try:
            found: bytes = _IPV4.unpack(self._ask(request, _NAME.pack(self._encoded)))[3]
        except OSError:  # it has none
            return b""
        return found

    def up(self) -> None:
        """Set it up, unless it is."""
        try:
            flags: int = _SHORT.unpack(self._ask(_GET_FLAGS, _NAME.pack(self._encoded)))[1]
        except OSError as error:
            raise _deleted(self.name) from error
        if not flags & _IFF_UP:
            with self._permission(f"ip link set {self.name} up"):
                self._ask(_SET_FLAGS, _SHORT.pack(self._encoded, flags | _IFF_UP))

    def carrier(self, on: bool) -> None:
        """Show that the link is up, or down; without a carrier the host sends nothing."""
        for queue in self.queues[:1]:
            with contextlib.suppress(OSError):  # before Linux 5.0, and after it was deleted
                fcntl.ioctl(queue.fd, _TUNSETCARRIER, struct.pack("i", on))

    def check(self) -> None:
        """Check that the interface is still there, which a read or write would tell as well.

        :raises HostError: it was deleted
        """
        for queue in self.queues[:1]:
            try:
                fcntl.ioctl(queue.fd, _TUNGETIFF, _NAME.pack(b""))
            except OSError as error:
                raise _deleted(self.name) from error

    @contextlib.contextmanager
    def _permission(self, command: str) -> Iterator[None]:
        try:
            yield
        except PermissionError:
            raise HostError(
                f"{self.name} cannot be set up without CAP_NET_ADMIN", hint=f"as root: {command}"
            ) from None
        except OSError as error:
            raise HostError(f"{command}: {error.strerror}") from None

    def _ask(self, request: int, argument: bytes) -> bytes:
        return fcntl.ioctl(self._socket, request, argument)

    def close(self) -> None:
        """Detach; an interface that was made here goes with it. Closing twice is harmless."""
        queues, self.queues = self.queues, []
        for queue in queues:
            os.close(queue.fd)
        self._socket.close()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _deleted(name: str) -> HostError:
    return HostError(f"the interface {name} was deleted", hint="start the command again")


def check_name(name: str) -> str:
    """Return ``name`` if an interface can have it (dev_valid_name() in net/core/dev.c).

    :raises UsageError: it cannot
    """
    # The kernel fills in a number for %d.
    bad = any(letter in "/:%" or not letter.isprintable() or letter.isspace() for letter in name)
    if bad or not 0 < len(name.encode(errors="replace")) < 16 or name in (".", ".."):
        raise UsageError(
            f"{name!r} cannot be the name of an interface",
            hint="1 to 15 bytes without spaces, '/', ':' and '%'",
        )
    return name


def _open_driver() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise HostError(
            f"{DEVICE}: permission denied",
            hint=f"as root: chmod 666 {DEVICE}, which is its usual mode",
        ) from None
    except OSError as error:
        raise HostError(
            f"{DEVICE}: {error.strerror}",
            hint="modprobe tun (CONFIG_TUN); a container has to be given the device",
        ) from None
