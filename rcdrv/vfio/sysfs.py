"""What sysfs and /dev say of a PCI function before VFIO is asked: is it there, whose is it.

Each check names the cure. They only read; handing a function over is the user's decision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rcdrv.errors import HostError, UsageError

DRIVER = "vfio-pci"


@dataclass(frozen=True)
class Paths:
    """Where the kernel's file systems are mounted. Tests put a made-up host there."""

    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")

    def function(self, bdf: str) -> Path:
        """The sysfs directory of a PCI function."""
        return self.sys / "bus" / "pci" / "devices" / bdf

    def group(self, number: str) -> Path:
        """The sysfs directory of an IOMMU group."""
        return self.sys / "kernel" / "iommu_groups" / number

    def group_node(self, number: str) -> Path:
        """The device node of an IOMMU group."""
        return self.dev / "vfio" / number

    @property
    def container_node(self) -> Path:
        return self.dev / "vfio" / "vfio"


_BDF = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])", re.IGNORECASE)


def canonical_bdf(text: str) -> str:
    """``01:00.0`` as sysfs spells it, ``0000:01:00.0``.

    :raises UsageError: it is not a PCI address
    """
    match = _BDF.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not a PCI address", hint="write [domain:]bus:device.function, as lspci -D"
        )
    domain, bus, device, function = (int(part or "0", 16) for part in match.groups())
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function}"


def driver_of(function: Path) -> str | None:
    """The name of the driver that a function (its sysfs directory) is bound to, or None."""
    try:
        return (function / "driver").readlink().name
    except OSError:
        return None


def iommu_group(paths: Paths, bdf: str) -> str:
    """The number of the IOMMU group of a function that is ready for VFIO.

    ``bdf`` has to be canonical (:func:`canonical_bdf`).

    :raises HostError: it is missing, not behind an IOMMU, or not bound to vfio-pci
    """
    function = paths.function(bdf)
    if not function.exists():
        raise HostError(
            f"{bdf}: no such PCI device",
            hint="is the endpoint started and its link up? Then rescan the bus, as root: "
            "echo 1 > /sys/bus/pci/rescan; lspci shows what is there",
        )
    # First, because without an IOMMU vfio-pci does not take the function at all.
    try:
        group = (function / "iommu_group").readlink().name
    except OSError:
        group = ""
    if not group or _is_noiommu(paths, group):
        raise HostError(
            f"{bdf} is not behind an IOMMU",
            hint="turn the IOMMU on in the firmware and on the kernel command line "
            "(Intel: intel_iommu=on; AMD: on by default, see amd_iommu=; Arm: an SMMU that the "
            "device tree or ACPI places in front of PCIe). The noiommu backend is not supported "
            "yet",
        )
    driver = driver_of(function)
    if driver != DRIVER:
        owner = f"bound to {driver}" if driver else "not bound to a driver"
        raise HostError(f"{bdf} is {owner}, not to {DRIVER}", hint=_handover(paths, bdf, driver))
    return group


def _is_noiommu(paths: Paths, group: str) -> bool:
    # vfio_noiommu_group_alloc() in drivers/vfio/group.c names the groups that it makes up.
    try:
        return (paths.group(group) / "name").read_text().strip() == "vfio-noiommu"
    except OSError:
        return False


def _handover(paths: Paths, bdf: str, driver: str | None) -> str:
    # driver_override and not new_id: new_id would also take every other device with this ID,
    # now and later.
    function = paths.function(bdf)
    steps = [f"echo {DRIVER} > {function}/driver_override"]
    if not (paths.sys / "bus" / "pci" / "drivers" / DRIVER).exists():
        steps.insert(0, f"modprobe {DRIVER}")
    if driver:
        steps.append(f"echo {bdf} > {function}/driver/unbind")
    steps.append(f"echo {bdf} > {paths.sys}/bus/pci/drivers_probe")
    return "hand it over, as root:\n  " + "\n  ".join(steps)


def group_members(paths: Paths, group: str) -> list[tuple[str, str | None]]:
    """(address, driver) of every device in an IOMMU group, in order."""
    try:
        members = sorted((paths.group(group) / "devices").iterdir())
    except OSError:
        return []
    return [(member.name, driver_of(member)) for member in members]


def holders(paths: Paths, node: Path) -> list[str]:
    """The processes that have a device node open, as far as this user may see them."""
    found = []
    for process in paths.proc.glob("[0-9]*"):
        try:
            if any(_leads_to(link, node) for link in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                found.append(f"{name} (pid {process.name})")
        except OSError:
            continue  # it ended, or belongs to another user
    return sorted(found)


def _leads_to(link: Path, node: Path) -> bool:
    try:
        return link.readlink() == node
    except OSError:
        return False  # closed meanwhile
