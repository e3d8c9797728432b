"""Open a function from a descriptor that another program has opened and passed on.

A program without access to ``/dev/vfio`` can thus drive a function that a broker, such as a service
manager, chose for it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from rcdrv.errors import HostError, UsageError
from rcdrv.sysfs import Paths
from rcdrv.vfio.device import VfioDevice
from rcdrv.vfio.iommufd import Ioas, attach
from rcdrv.vfio.refusals import open_node

_NODES = "/dev/vfio/devices/vfio<n>"


def take_descriptor(
    device: int, iommufd: int, paths: Paths, token: str | None = None
) -> VfioDevice:
    """Return the function behind a descriptor: see :func:`rcdrv.vfio.open_descriptor`."""
    found = _sysfs(paths, device, "vfio-dev", _NODES)
    bdf = (found / "device").resolve().name
    if found.name.startswith("noiommu-"):
        raise HostError(
            f"descriptor {device}: {bdf} has no IOMMU, so it cannot be opened by descriptor",
            hint=f"open it by its address, {bdf}, with RCDRV_BACKEND=noiommu",
        )
    with contextlib.ExitStack() as undo:
        if iommufd < 0:
            iommufd = open_node(paths, bdf, paths.iommufd_node, undo)
        else:
            _sysfs(paths, iommufd, "misc", str(paths.iommufd_node))
            os.set_inheritable(iommufd, False)
        os.set_inheritable(device, False)
        node = paths.device_node(found.name)
        ioas = Ioas(iommufd)
        attach(paths, bdf, node, device, ioas, token)
        opened = VfioDevice(bdf, "iommufd", device, ioas)
        undo.pop_all()
    return opened


def function_of(device: int, paths: Paths) -> str:
    """Return the PCI address of the function behind a descriptor, which stays the caller's."""
    return (_sysfs(paths, device, "vfio-dev", _NODES) / "device").resolve().name


def _sysfs(paths: Paths, fd: int, kind: str, wanted: str) -> Path:
    """Return the sysfs folder of the device node behind a descriptor.

    :param kind: required class of the device
    :param wanted: node to name in the error
    """
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise UsageError(
            f"descriptor {fd} is not open",
            hint=f"pass on a descriptor of {wanted}; each can be used once",
        ) from error
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    found = (paths.sys / "dev/char" / number).resolve()
    if not stat.S_ISCHR(status.st_mode) or (found / "subsystem").resolve().name != kind:
        raise UsageError(
            f"descriptor {fd} is not one of {wanted}",
            hint="have a program that may open that node pass it on; or open the function by its"
            " address",
        )
    return found
