"""PCI functions through the kernel's VFIO. A library of its own, independent of endpoints.

:func:`open` returns a :class:`Function`: BARs, interrupts, DMA, config space. :func:`open_device`
returns the :class:`Device` below it, which is VFIO's own model. The names in ``__all__`` are
stable. docs/vfio.md has an example.
"""

from __future__ import annotations

from importlib import import_module

from rcdrv.device import CONFIG_REGION, Area, Device, IrqKind, RegionFlag, RegionInfo, SetIrqs
from rcdrv.dma import DmaBuffer
from rcdrv.errors import AccessError, DeviceLost, HostError, RcdrvError, UsageError
from rcdrv.function import Function
from rcdrv.interrupts import Interrupts
from rcdrv.mmio import Window, barrier
from rcdrv.sysfs import Paths, canonical_address, may_use_iommufd
from rcdrv.wait import Cancel, Deadline

__all__ = [
    "BACKENDS",
    "CONFIG_REGION",
    "AccessError",
    "Area",
    "Cancel",
    "Deadline",
    "Device",
    "DeviceLost",
    "DmaBuffer",
    "Function",
    "HostError",
    "Interrupts",
    "IrqKind",
    "RcdrvError",
    "RegionFlag",
    "RegionInfo",
    "SetIrqs",
    "UsageError",
    "Window",
    "barrier",
    "open",
    "open_descriptor",
    "open_device",
]

BACKENDS = ("group", "iommufd", "noiommu", "sysfs")
"""Each is a module with ``open_NAME()``, which takes a canonical address, the paths and the checked
VF token or None; it raises as :func:`open_device` does."""
_HEX = frozenset("0123456789abcdefABCDEF")


def open(
    bdf: str,
    backend: str | None = None,
    *,
    vf_token: str | None = None,
    cancel: Cancel | None = None,
) -> Function:
    """Open the PCI function ``bdf`` for a driver; the caller closes it, best with ``with``.

    Memory decoding and bus mastering are on until then.

    :param backend: see :func:`open_device`
    :param vf_token: see :func:`open_device`, also for the other errors
    :param cancel: ends every wait on the function
    :raises DeviceLost: the function does not answer
    """
    return Function(open_device(bdf, backend, vf_token=vf_token), cancel)


def open_device(
    bdf: str,
    backend: str | None = None,
    *,
    vf_token: str | None = None,
    paths: Paths | None = None,
) -> Device:
    """Open a PCI function. The kernel resets it now, and again when it is closed.

    :param bdf: PCI address, such as ``0000:01:00.0`` or ``01:00.0``
    :param backend: ``group``, ``iommufd``, ``noiommu`` or ``sysfs``. By default iommufd if the
        kernel offers it for this function and the user may open it, else group. noiommu and sysfs
        (which is not VFIO) are never chosen by default
    :param vf_token: UUID that the users of a physical function and of its virtual functions share.
        Opening the physical function sets it while no virtual function is in use
    :param paths: locations of sysfs, /dev and /proc
    :raises UsageError: not a PCI address, a backend or a UUID
    :raises HostError: the host is not ready; the hint names the fix
    """
    address = canonical_address(bdf)
    where = paths or Paths()
    name = backend or default_backend(address, where)
    if name not in BACKENDS:
        raise UsageError(
            f"the VFIO backend {name!r} is unknown", hint=f"it can be: {', '.join(BACKENDS)}"
        )
    # Only the backend in use is imported, to keep the start short.
    opener = getattr(import_module(f"rcdrv.vfio.{name}"), f"open_{name}")
    device: Device = opener(address, where, checked_token(vf_token))
    return device


def open_descriptor(
    fd: int, iommufd: int = -1, *, vf_token: str | None = None, paths: Paths | None = None
) -> Device:
    """Open a function from a descriptor that another program has opened and passed on.

    :param fd: descriptor of ``/dev/vfio/devices/vfio<n>``; the device owns it from now on
    :param iommufd: descriptor of ``/dev/iommu``, owned likewise; -1 opens that node here
    :param vf_token: see :func:`open_device`
    :raises UsageError: a descriptor of something else, or not a UUID
    :raises HostError: the kernel refuses; the hint names the fix
    """
    from rcdrv.vfio.descriptor import take_descriptor

    return take_descriptor(fd, iommufd, paths or Paths(), checked_token(vf_token))


def checked_token(text: str | None) -> str | None:
    """Return a VF token, if there is one, after checking that it is a UUID in the kernel's syntax.

    :raises UsageError: it is not
    """
    if text is None:
        return None
    digits = text.split("-")
    if [len(part) for part in digits] != [8, 4, 4, 4, 12] or set("".join(digits)) - _HEX:
        raise UsageError(
            f"the VF token {text!r} is not a UUID", hint="uuidgen makes one; `vf_token` takes it"
        )
    return text


def default_backend(bdf: str, paths: Paths) -> str:
    """Return the default backend of a function, given its canonical address."""
    return "iommufd" if may_use_iommufd(paths, bdf) else "group"
