"""PCI addresses, and the reader of sysfs and /dev: driver, IOMMU group, device nodes.

Checks name the cure and only read: handing a function over is the user's decision.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from rcdrv.errors import HostError, UsageError
from rcdrv.pci import Bar
from rcdrv.record import record

DRIVER = "vfio-pci"
_IPC_LOCK = 14

# include/linux/ioport.h
_IORESOURCE_IO = 0x100
_IORESOURCE_MEM = 0x200
_IORESOURCE_PREFETCH = 0x2000
_IORESOURCE_MEM_64 = 0x100000
_IORESOURCE_UNSET = 0x20000000

_ADDRESS = re.compile(
    r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])", re.IGNORECASE
)


def is_address(text: str) -> bool:
    """Whether ``text`` is a PCI address, with or without a domain and leading zeros."""
    return bool(_ADDRESS.fullmatch(text))


def canonical_address(text: str) -> str:
    """``01:00.0`` as sysfs spells it, ``0000:01:00.0``.

    :raises UsageError: it is not a PCI address
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a PCI address", hint="write [domain:]bus:device.function, as lspci -D"
        )
    domain, bus, device, function = (int(part or "0", 16) for part in match.groups())
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function}"


@record
class Paths:
    """Mount points of the kernel's file systems. Tests put a made-up host there."""

    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")
    run: Path = Path("/run")
    """For notes that a reboot forgets."""

    def function(self, bdf: str) -> Path:
        return self.sys / "bus" / "pci" / "devices" / bdf

    def group(self, number: str) -> Path:
        return self.sys / "kernel" / "iommu_groups" / number

    @property
    def noiommu_parameter(self) -> Path:
        """``Y`` where VFIO offers functions without an IOMMU; missing where it cannot."""
        return self.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode"

    def group_node(self, number: str) -> Path:
        return self.dev / "vfio" / number

    @property
    def container_node(self) -> Path:
        return self.dev / "vfio" / "vfio"

    def device_node(self, name: str) -> Path:
        """The device node of one function, by its name in VFIO (:func:`device_name`)."""
        return self.dev / "vfio" / "devices" / name

    @property
    def iommufd_node(self) -> Path:
        return self.dev / "iommu"


def text_of(path: Path) -> str:
    """Return the contents of a file of the kernel, stripped; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def bars_in(resource: str) -> tuple[Bar, ...]:
    """Return the BARs that a function's ``resource`` file lists, with addresses of this host.

    An address is 0 if the kernel assigned none.
    """
    found = []
    for index, line in enumerate(resource.splitlines()[:6]):
        start, end, flags = (int(word, 16) for word in line.split())
        if not flags & (_IORESOURCE_MEM | _IORESOURCE_IO) or end <= start:
            continue
        found.append(
            Bar(
                index,
                size=end - start + 1,
                is_memory=bool(flags & _IORESOURCE_MEM),
                is_64bit=bool(flags & _IORESOURCE_MEM_64),
                prefetchable=bool(flags & _IORESOURCE_PREFETCH),
                address=0 if flags & _IORESOURCE_UNSET else start,
            )
        )
    return tuple(found)


def driver_of(function: Path) -> str | None:
    """The name of the driver that a function (its sysfs directory) is bound to, or None."""
    try:
        return (function / "driver").readlink().name
    except OSError:
        return None


def iommu_group(paths: Paths, bdf: str) -> str:
    """The number of the IOMMU group of a function that is ready for VFIO.

    ``bdf`` has to be canonical (:func:`canonical_address`).

    :raises HostError: it is missing, not behind an IOMMU, or not bound to vfio-pci
    """
    check_present(paths, bdf)
    # First, because without an IOMMU vfio-pci does not take the function at all.
    group = group_of(paths, bdf)
    if group is None or is_noiommu(paths, group):
        raise HostError(
            f"{bdf} is not behind an IOMMU",
            hint="turn the IOMMU on in the firmware and on the kernel command line "
            "(Intel: intel_iommu=on; AMD: on by default, see amd_iommu=; Arm: an SMMU that the "
            "device tree or ACPI places in front of PCIe). Where there is none, "
            "RCDRV_BACKEND=noiommu goes without, and without its protection",
        )
    check_bound(paths, bdf)
    return group


def check_present(paths: Paths, bdf: str) -> None:
    if not paths.function(bdf).exists():
        raise no_such_device(paths, bdf)


def no_such_device(paths: Paths, bdf: str) -> HostError:
    """Return the error for an address without a function; its fix is one that can work."""
    domain, bus, _ = bdf.split(":")
    if any(behind == (domain, int(bus, 16)) for behind in ports(paths).values()):
        hint = f"is the endpoint started and its link up? Then: rcdrv rescan {bdf}"
    else:
        hint = f"no port leads to bus {bus}; {name_a_port(paths)}"
    return HostError(f"{bdf}: no such PCI device", hint=hint)


def ports(paths: Paths) -> dict[str, tuple[str, int]]:
    """Return the ports of this host, with the domain and the number of the bus behind each."""
    found = {}
    for path in sorted((paths.sys / "bus" / "pci" / "devices").glob("*/secondary_bus_number")):
        with contextlib.suppress(OSError, ValueError):
            address = path.parent.name
            found[address] = (address.partition(":")[0], int(path.read_text()))
    return found


def name_a_port(paths: Paths) -> str:
    """Return the hint for an address that no port leads to."""
    found = ports(paths)
    if not found:
        return "this host has no PCI port that an endpoint could be behind"
    listed = ", ".join(f"{port} (bus {bus:02x})" for port, (_, bus) in found.items())
    return f"if the endpoint is behind one of these ports: rcdrv rescan PORT: {listed}"


def check_bound(paths: Paths, bdf: str) -> None:
    driver = driver_of(paths.function(bdf))
    if driver != DRIVER:
        owner = f"bound to {driver}" if driver else "not bound to a driver"
        steps = ["hand it over, as root:", *handover_steps(paths, bdf)]
        raise HostError(f"{bdf} is {owner}, not to {DRIVER}", hint="\n  ".join(steps))


def group_of(paths: Paths, bdf: str) -> str | None:
    """The number of the IOMMU group of a function, also of one that VFIO made up; None if none."""
    try:
        return (paths.function(bdf) / "iommu_group").readlink().name
    except OSError:
        return None


def device_name(paths: Paths, bdf: str) -> str | None:
    """VFIO's name of a function that is bound to vfio-pci, such as ``vfio0``.

    None where the kernel has no device nodes for single functions (VFIO_DEVICE_CDEV, Linux 6.6).
    """
    try:
        entries = sorted((paths.function(bdf) / "vfio-dev").iterdir())
    except OSError:
        return None
    # Without VFIO_DEVICE_CDEV there is such an entry too, but nothing that it numbers.
    return next((entry.name for entry in entries if (entry / "dev").exists()), None)


def is_noiommu(paths: Paths, group: str) -> bool:
    """Whether VFIO made the group up, for a function without an IOMMU."""
    # vfio_noiommu_group_alloc() in drivers/vfio/group.c names the groups that it makes up.
    return text_of(paths.group(group) / "name") == "vfio-noiommu"


def may_use_iommufd(paths: Paths, bdf: str) -> bool:
    """Whether the kernel has a device node for this function, which this user may open."""
    name = device_name(paths, bdf)
    return name is not None and all(
        os.access(node, os.R_OK | os.W_OK, effective_ids=True)
        for node in (paths.device_node(name), paths.iommufd_node)
    )


def handover_steps(paths: Paths, bdf: str) -> list[str]:
    """The shell commands that bind a function to vfio-pci."""
    # driver_override and not new_id: new_id would also take every other device with this ID,
    # now and later.
    function = paths.function(bdf)
    driver = driver_of(function)
    steps = [f"echo {DRIVER} > {function}/driver_override"]
    if not (paths.sys / "bus" / "pci" / "drivers" / DRIVER).exists():
        steps.insert(0, f"modprobe {DRIVER}")
    if driver:
        steps.append(f"echo {bdf} > {function}/driver/unbind")
    steps.append(f"echo {bdf} > {paths.sys}/bus/pci/drivers_probe")
    return steps


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


def holders_of(paths: Paths, bdf: str) -> list[str]:
    """The processes that have a function open, or its group, by any of their nodes."""
    group = group_of(paths, bdf)
    members = [member for member, _ in group_members(paths, group)] if group else [bdf]
    names = [name for member in members if (name := device_name(paths, member))]
    nodes = [paths.device_node(name) for name in names]
    if group:
        prefix = "noiommu-" if is_noiommu(paths, group) else ""
        nodes.append(paths.group_node(prefix + group))
    return sorted({holder for node in nodes for holder in holders(paths, node)})


def process_status() -> dict[str, str]:
    """Return the fields of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def has_capability(bit: int) -> bool:
    """Whether this process has a capability of include/uapi/linux/capability.h."""
    return bool(int(process_status().get("CapEff", "0"), 16) >> bit & 1)


def lockable_memory() -> int | None:
    """Return how many bytes of memory this process may lock; None without a limit."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if limit == resource.RLIM_INFINITY or has_capability(_IPC_LOCK) else limit


def _leads_to(link: Path, node: Path) -> bool:
    try:
        return link.readlink() == node
    except OSError:
        return False  # closed meanwhile
