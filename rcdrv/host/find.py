"""Find the PCI functions that may be endpoints under test."""

from __future__ import annotations

from rcdrv.errors import HostError
from rcdrv.host.function import HostFunction
from rcdrv.sysfs import Paths


def functions(paths: Paths | None = None) -> list[HostFunction]:
    """Return the functions of this host except bridges, by address."""
    paths = paths or Paths()
    devices = paths.sys / "bus" / "pci" / "devices"
    found = []
    for path in sorted(devices.iterdir()) if devices.is_dir() else []:
        try:
            function = HostFunction(path.name, paths)
        except HostError:
            continue  # it has just disappeared
        if not function.is_bridge:
            found.append(function)
    return found


def candidates(paths: Paths | None = None) -> list[HostFunction]:
    """Return the functions that may be endpoints, by address."""
    return [function for function in functions(paths) if function.may_be_endpoint]
