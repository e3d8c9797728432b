"""A PCI function as sysfs shows it, without opening it; and those that may be endpoints.

The files are those of Documentation/ABI/testing/sysfs-bus-pci. A value that is
missing, unreadable or malformed is None, 0 or empty: a function may disappear at any time.
"""

from __future__ import annotations

from pathlib import Path

from rcdrv import parts, pci
from rcdrv.errors import HostError
from rcdrv.mmio import TrappedWindow
from rcdrv.sysfs import (
    DRIVER,
    Paths,
    bars_in,
    driver_of,
    group_members,
    group_of,
    holders,
    is_address,
    no_such_device,
    text_of,
)

# Drivers that leave the DMA of their IOMMU group to user space: VFIO's own, and every other in
# Linux 7.3 with .driver_managed_dma (iommu_device_use_default_domain()).
SHARING_DRIVERS = frozenset({DRIVER, "pci-stub", "pcieport"})


class HostFunction:
    """One PCI function of this host.

    :raises HostError: there is none at this address
    """

    def __init__(self, address: str, paths: Paths) -> None:
        self.address = address
        self.paths = paths
        self.path = paths.function(address)
        try:
            self.vendor, self.device, self.class_code = (
                int((self.path / name).read_text(), 16) for name in ("vendor", "device", "class")
            )
        except (OSError, ValueError):
            raise no_such_device(paths, address) from None

    def text(self, name: str) -> str:
        """Return the contents of one of its files; empty if it cannot be read."""
        return text_of(self.path / name)

    # -- identity ---------------------------------------------------------------------------

    @property
    def part(self) -> parts.Part:
        return parts.part_of(self.vendor, self.device)

    @property
    def is_bridge(self) -> bool:
        return self.class_code >> 16 == pci.BASE_CLASS_BRIDGE

    @property
    def may_be_endpoint(self) -> bool:
        """True for a known ID, a class of pci-epf-test or pci-epf-vntb, or one bound to vfio-pci.

        Never a bridge: root ports of some parts (the TI J721E family) have the endpoint's ID.
        """
        if self.is_bridge:
            return False
        known = (self.vendor, self.device) in parts.KNOWN_PARTS
        classes = (pci.CLASS_NO_MATCHING, pci.CLASS_MEMORY_RAM)
        return known or self.class_code >> 8 in classes or self.driver == DRIVER

    @property
    def bars(self) -> tuple[pci.Bar, ...]:
        """Implemented BARs, with host addresses; 0 if the kernel assigned none."""
        return bars_in(self.text("resource"))

    @property
    def lost_bars(self) -> tuple[int, ...]:
        """BARs with an address in sysfs but none in their register.

        A reset cleared it, and restoring it failed. A virtual function's BARs have no registers.
        """
        if self.config is None or (self.path / "physfn").exists():
            return ()
        registers = self.config.window.read_block(0x10, 24)
        lost = []
        for bar in self.bars:
            at = 4 * bar.index
            value = int.from_bytes(registers[at : at + (8 if bar.is_64bit else 4)], "little")
            if bar.address and bar.is_memory and not value & ~0xF:
                lost.append(bar.index)
        return tuple(lost)

    @property
    def config(self) -> pci.ConfigSpace | None:
        """Read config space: all of it as root, else the first 64 bytes."""
        try:
            data = (self.path / "config").read_bytes()
        except OSError:
            return None
        if len(data) < 64:
            return None

        def read(offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        def write(_offset: int, _data: bytes) -> None:
            raise NotImplementedError("a function is changed through VFIO only")

        return pci.ConfigSpace(TrappedWindow(read, write, len(data), "config space"))

    @property
    def link(self) -> pci.Link | None:
        """Its end of the link; None if the function is not PCI Express."""
        speed, width = self.text("current_link_speed"), self.text("current_link_width")
        if not speed or not width:
            return None
        return pci.Link(
            _gigatransfers(speed),
            _count(width),
            _gigatransfers(self.text("max_link_speed")),
            _count(self.text("max_link_width")),
        )

    @property
    def ports(self) -> list[str]:
        """Bridges above it, nearest first."""
        above = [parent.name for parent in self.path.resolve().parents]
        return [name for name in above if is_address(name)]

    @property
    def reset_methods(self) -> tuple[str, ...]:
        """Reset methods of the kernel in order of preference; may be empty."""
        return tuple(self.text("reset_method").split())

    @property
    def command(self) -> pci.Command | None:
        """COMMAND register; None if it cannot be read."""
        try:
            with (self.path / "config").open("rb") as config:
                head = config.read(6)  # no more: of a lost function each read may time out
        except OSError:
            return None
        return pci.Command(int.from_bytes(head[4:6], "little")) if len(head) == 6 else None

    # -- ownership --------------------------------------------------------------------------

    @property
    def driver(self) -> str | None:
        return driver_of(self.path)

    @property
    def group(self) -> str | None:
        """IOMMU group number; None without an IOMMU."""
        return group_of(self.paths, self.address)

    @property
    def others_in_group(self) -> list[tuple[str, str | None]]:
        """Return (address, driver) of the other members of its IOMMU group."""
        if self.group is None:
            return []
        members = group_members(self.paths, self.group)
        return [member for member in members if member[0] != self.address]

    @property
    def blocking(self) -> list[tuple[str, str]]:
        """Return the group members, with their drivers, that keep VFIO from using the group."""
        return [
            (address, driver)
            for address, driver in self.others_in_group
            if driver is not None and driver not in SHARING_DRIVERS
        ]

    @property
    def nodes(self) -> list[Path]:
        """Existing device nodes of the function and of its group."""
        vfio = self.paths.dev / "vfio"
        group = [] if self.group is None else [vfio / self.group, vfio / f"noiommu-{self.group}"]
        # vfio_init_device() in drivers/vfio/vfio_main.c makes vfio-dev/vfioN.
        own = sorted(path.name for path in self.path.glob("vfio-dev/*"))
        cdevs = [vfio / "devices" / name for name in own]
        return [node for node in (*group, *cdevs) if node.exists()]

    @property
    def ways_in(self) -> list[tuple[Path, ...]]:
        """Sets of device nodes that open the function, the preferred set first.

        The function's own node also needs the node of iommufd.
        """
        own = self.paths.dev / "vfio" / "devices"
        iommufd = self.paths.iommufd_node
        ways = [(node, iommufd) if node.parent == own else (node,) for node in self.nodes]
        return sorted((way for way in ways if way[-1].exists()), key=len, reverse=True)

    @property
    def holders(self) -> list[str]:
        """Return the processes that have it open, as far as this user may see them."""
        return [holder for node in self.nodes for holder in holders(self.paths, node)]

    def __str__(self) -> str:
        driver = f"driver {self.driver}" if self.driver else "no driver"
        return f"{self.address}  {self.vendor:04x}:{self.device:04x}  {self.part.name}, {driver}"


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


def _gigatransfers(text: str) -> float:
    """Convert ``8.0 GT/s PCIe`` to 8.0 and ``Unknown`` to 0.

    See pci_speed_string() in drivers/pci/probe.c.
    """
    try:
        return float(text.split()[0])
    except (IndexError, ValueError):
        return 0.0


def _count(text: str) -> int:
    return int(text) if text.isdecimal() else 0
