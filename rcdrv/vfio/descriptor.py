"""A function whose device node another program has opened, and passed on as a descriptor.

So a program without rights on ``/dev/vfio`` drives a function that a broker chose for it, such as a
service manager.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from rcdrv.errors import HostError, UsageError
from rcdrv.sysfs import Paths
from rcdrv.vfio.device import VfioDevice
from rcdrv.vfio.iommufd import Ioas, use_node
from rcdrv.vfio.refusals import open_node

_NODES = "/dev/vfio/devices/vfio<n>"


def take_descriptor(
    device: int, iommufd: int, paths: Paths, token: str | None = None
) -> VfioDevice:
    """Return the function behind a descriptor, which belongs to it from now on.

    :param device: of ``/dev/vfio/devices/vfio<n>``, open and not bound to an iommufd yet
    :param iommufd: of ``/dev/iommu``, taken over too; -1 opens it here
    :param token: the VF token, where the kernel wants one
    :raises UsageError: they are something else
    :raises HostError: the kernel refuses
    """
    found = _sysfs(paths, device, "vfio-dev", _NODES)
    bdf = (found / "device").resolve().name
    if found.name.startswith("noiommu-"):
        raise HostError(
            f"descriptor {device}: {bdf} has no IOMMU in front, and is not taken by descriptor",
            hint=f"name it: {bdf}, with RCDRV_BACKEND=noiommu",
        )
    with contextlib.ExitStack() as undo:
        if iommufd < 0:
            iommufd = open_node(paths, bdf, paths.iommufd_node, undo)
        else:
            _sysfs(paths, iommufd, "misc", str(paths.iommufd_node))
            os.set_inheritable(iommufd, False)
        os.set_inheritable(device, False)
        node = paths.device_node(found.name)
        opened = use_node(paths, bdf, node, device, Ioas(iommufd), iommufd, token)
        undo.pop_all()
    return opened


def _sysfs(paths: Paths, fd: int, kind: str, wanted: str) -> Path:
    """Return what sysfs has of the device node behind a descriptor, of this class."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise UsageError(
            f"descriptor {fd} is not open",
            hint=f"pass on one of {wanted}; each can be used once",
        ) from error
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    found = (paths.sys / "dev/char" / number).resolve()
    if not stat.S_ISCHR(status.st_mode) or (found / "subsystem").resolve().name != kind:
        raise UsageError(
            f"descriptor {fd} is not one of {wanted}",
            hint="have who may open that node pass it on; or name the function by its address",
        )
    return found
