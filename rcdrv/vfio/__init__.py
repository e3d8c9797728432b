"""PCI functions through the kernel's VFIO. Useful on its own: it knows nothing of endpoints.

:func:`open_device` opens one; :class:`~rcdrv.vfio.device.VfioDevice` is what it returns.
"""

from __future__ import annotations

from rcdrv.errors import UsageError
from rcdrv.function import Device
from rcdrv.vfio.group import open_group
from rcdrv.vfio.sysfs import Paths, canonical_bdf

_BACKENDS = {"group": open_group}
_PLANNED = ("iommufd", "noiommu")


def open_device(bdf: str, backend: str | None = None, *, paths: Paths | None = None) -> Device:
    """Open the PCI function ``bdf``, as ``0000:01:00.0`` or ``01:00.0``.

    The kernel resets the function now and again when it is closed.

    :param backend: ``group``; None chooses
    :param paths: where sysfs, /dev and /proc are, when not at their usual places
    :raises UsageError: not a PCI address, or no such backend
    :raises HostError: the host is not ready; the hint is the cure
    """
    address = canonical_bdf(bdf)
    name = backend or "group"
    if name not in _BACKENDS:
        state = "not supported yet" if name in _PLANNED else "unknown"
        raise UsageError(
            f"the VFIO backend {name!r} is {state}", hint=f"it can be: {', '.join(_BACKENDS)}"
        )
    return _BACKENDS[name](address, paths or Paths())
