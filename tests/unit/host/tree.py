"""A made-up host: sysfs, /dev, /proc and /run of plain files, with a kernel that obeys a little."""

from __future__ import annotations

import shutil
from pathlib import Path

from rcdrv.host.function import HostFunction
from rcdrv.sysfs import Paths

ENDPOINT = "0000:01:00.0"
PORT = "0000:00:1c.0"
ROOT = "pci0000:00"

IO, MEM, MEM_64, UNSET = 0x100, 0x200, 0x100000, 0x20000000


class Tree:
    """Functions are added by hand; :meth:`write` does what the kernel does with each file."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root / "sys", root / "dev", root / "proc", root / "run")
        for folder in ("sys/bus/pci/devices", "dev/vfio/devices", "proc", "run"):
            (root / folder).mkdir(parents=True)
        self.writes: list[tuple[str, str]] = []
        self.refused: dict[str, OSError] = {}
        """What writing to a file (by the end of its path) fails with."""
        self.matching: dict[str, str] = {}
        """The driver that takes a function of its own accord."""
        self.add(PORT, ids=(0x8086, 0x1234), class_code=0x060400, driver="pcieport", parent=None)

    def add(
        self,
        address: str = ENDPOINT,
        *,
        ids: tuple[int, int] = (0x1D87, 0x3588),
        class_code: int = 0xFF0000,
        driver: str | None = None,
        group: str | None = "7",
        parent: str | None = PORT,
        bars: tuple[tuple[int, int, int], ...] = ((0xFE000000, 0x100000, MEM),),
        command: int = 0x6,
        **files: str,
    ) -> HostFunction:
        """A function; ``bars`` are (address, size, flags)."""
        above = self.paths.sys / "devices" / ROOT
        real = (above / parent if parent else above) / address
        real.mkdir(parents=True)
        link = self.paths.function(address)
        if not link.is_symlink():
            link.symlink_to(real)
        lines = [
            f"{start:#018x} {start + size - 1:#018x} {flags:#018x}" for start, size, flags in bars
        ]
        lines += [f"{0:#018x} {0:#018x} {0:#018x}"] * (6 - len(lines))
        config = bytearray(4096)
        config[4:6] = command.to_bytes(2, "little")
        for index, (start, _, flags) in enumerate(bars):
            config[0x10 + 4 * index : 0x14 + 4 * index] = (start & 0xFFFFFFFF).to_bytes(4, "little")
            if flags & MEM_64:
                config[0x14 + 4 * index : 0x18 + 4 * index] = (start >> 32).to_bytes(4, "little")
        (real / "config").write_bytes(config)
        defaults = {
            "vendor": f"{ids[0]:#06x}",
            "device": f"{ids[1]:#06x}",
            "class": f"{class_code:#08x}",
            "resource": "\n".join(lines),
            "driver_override": "(null)",
            "reset_method": "flr bus",
            "power_state": "D0",
            "current_link_speed": "8.0 GT/s PCIe",
            "current_link_width": "4",
            "max_link_speed": "8.0 GT/s PCIe",
            "max_link_width": "4",
        }
        for name, text in {**defaults, **files}.items():
            (real / name).parent.mkdir(parents=True, exist_ok=True)
            (real / name).write_text(text + "\n")
        if group is not None:
            members = self.paths.group(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(real)
            (real / "iommu_group").symlink_to(self.paths.group(group))
        if driver is not None:
            self.driver(driver)
            self.bind(address, driver)
        return HostFunction(address, self.paths)

    def remove(self, address: str) -> None:
        """What the kernel does with a function that is removed."""
        function = self.paths.function(address)
        for members in self.paths.group("*").parent.glob(f"*/devices/{address}"):
            members.unlink()
        shutil.rmtree(function.resolve())
        function.unlink()

    def driver(self, name: str) -> None:
        """Load a driver."""
        (self.paths.sys / "bus/pci/drivers" / name).mkdir(parents=True, exist_ok=True)

    def bind(self, address: str, driver: str) -> None:
        link = self.paths.function(address) / "driver"
        link.unlink(missing_ok=True)
        link.symlink_to(self.paths.sys / "bus/pci/drivers" / driver)
        group = HostFunction(address, self.paths).group
        if driver == "vfio-pci" and group is not None:
            self.paths.group_node(group).touch()

    def process(self, pid: int, name: str, *opened: Path) -> None:
        """A process that has files open."""
        folder = self.paths.proc / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder.parent / "comm").write_text(name + "\n")
        for number, target in enumerate(opened):
            (folder / str(number)).symlink_to(target)

    def put(self, name: str, text: str) -> None:
        """A file anywhere in the tree: ``proc/cpuinfo``, ``sys/kernel/security/lockdown``."""
        path = self.paths.sys.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    # -- the kernel ---------------------------------------------------------------------------

    def write(self, path: Path, text: str) -> None:
        """What stands behind each file of sysfs that rcdrv writes to."""
        for end, error in self.refused.items():
            if str(path).endswith(end):
                raise error
        self.writes.append((str(path.relative_to(self.paths.sys)), text))
        if path.name == "drivers_probe":
            self._probe(text)
        elif path.name == "unbind":
            (self.paths.function(text) / "driver").unlink()
        elif path.name == "bind":
            self._probe(text, only=path.parent.name)
        elif path.name == "driver_override":
            path.write_text((text.strip() or "(null)") + "\n")
        else:
            path.write_text(text)

    def _probe(self, address: str, only: str | None = None) -> None:
        """driver_match_device(): an override decides alone."""
        function = HostFunction(address, self.paths)
        override = function.text("driver_override")
        chosen = self.matching.get(address, only) if override == "(null)" else override
        drivers = self.paths.sys / "bus/pci/drivers"
        if function.driver or chosen is None or not (drivers / chosen).exists():
            return
        if only is not None and chosen != only:
            raise OSError(19, "No such device")
        self.bind(address, chosen)
