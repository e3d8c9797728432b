"""vfio-user: the VFIO device model as messages over a UNIX socket, client and server.

A library of its own, independent of endpoints. :func:`open` connects to a device and returns a
:class:`Function`. A device is a class that implements :class:`ServedDevice`; :class:`Server` serves
it to rcdrv and to QEMU. The names in ``__all__`` are stable. docs/vfio-user.md has an example.

Names are imported at first use: client and server do not need each other.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    import os

    from rcdrv.device import CONFIG_REGION as CONFIG_REGION
    from rcdrv.device import Area as Area
    from rcdrv.device import IrqKind as IrqKind
    from rcdrv.device import RegionFlag as RegionFlag
    from rcdrv.device import sealed_memory as sealed_memory
    from rcdrv.errors import DeviceLost as DeviceLost
    from rcdrv.errors import HostError as HostError
    from rcdrv.errors import RcdrvError as RcdrvError
    from rcdrv.function import Function as Function
    from rcdrv.vfio_user.client import Client as Client
    from rcdrv.vfio_user.listen import listen as listen
    from rcdrv.vfio_user.served import DmaFault as DmaFault
    from rcdrv.vfio_user.served import Peer as Peer
    from rcdrv.vfio_user.served import ServedDevice as ServedDevice
    from rcdrv.vfio_user.served import ServedRegion as ServedRegion
    from rcdrv.vfio_user.server import Server as Server
    from rcdrv.vfio_user.wire import ProtocolError as ProtocolError
    from rcdrv.wait import Cancel as Cancel
    from rcdrv.wait import Deadline as Deadline

_HOMES = {
    **dict.fromkeys(("CONFIG_REGION", "Area", "IrqKind", "RegionFlag", "sealed_memory"), "device"),
    **dict.fromkeys(("DeviceLost", "HostError", "RcdrvError"), "errors"),
    "Function": "function",
    **dict.fromkeys(("Cancel", "Deadline"), "wait"),
    "Client": "vfio_user.client",
    "listen": "vfio_user.listen",
    **dict.fromkeys(("DmaFault", "Peer", "ServedDevice", "ServedRegion"), "vfio_user.served"),
    "Server": "vfio_user.server",
    "ProtocolError": "vfio_user.wire",
}
"""Module of each public name that is defined elsewhere."""

__all__ = [*_HOMES, "open"]


def open(
    path: str | os.PathLike[str], timeout: float = 5.0, *, cancel: Cancel | None = None
) -> Function:
    """Connect to the device served at ``path``; the caller closes it, best with ``with``.

    :param timeout: seconds to wait for each reply of the server
    :param cancel: ends every wait on the function
    :raises HostError: no server there, or not of a PCI device
    :raises DeviceLost: the server does not answer
    """
    from rcdrv.function import Function
    from rcdrv.vfio_user.client import Client

    return Function(Client.connect(path, timeout), cancel)


if not TYPE_CHECKING:  # a type checker would accept every misspelt name

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'rcdrv.vfio_user' has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"rcdrv.{home}"), name)
        return value
