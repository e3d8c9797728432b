"""Find the PCI functions that may be endpoints under test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rcdrv import pci

SYSFS = Path("/sys")


@dataclass(frozen=True)
class Candidate:
    """One PCI function, as sysfs shows it."""

    address: str
    """``0000:01:00.0``."""
    vendor: int
    device: int
    class_code: int
    """24 bits: base class, subclass, programming interface."""
    driver: str | None

    @property
    def is_known(self) -> bool:
        return (self.vendor, self.device) in pci.KNOWN_PARTS

    @property
    def may_be_endpoint(self) -> bool:
        """A known ID, a class that pci-epf-test or pci-epf-vntb has, or given to vfio-pci.

        Never a bridge: the root ports of some parts (TI J721E and its family) carry the very ID
        that the part has as an endpoint.
        """
        classes = (pci.CLASS_NO_MATCHING, pci.CLASS_MEMORY_RAM)
        if self.class_code >> 16 == pci.BASE_CLASS_BRIDGE:
            return False
        return self.is_known or self.class_code >> 8 in classes or self.driver == "vfio-pci"

    def __str__(self) -> str:
        part = pci.part_of(self.vendor, self.device).name
        driver = f"driver {self.driver}" if self.driver else "no driver"
        return f"{self.address}  {self.vendor:04x}:{self.device:04x}  {part}, {driver}"


def candidates(sysfs: Path = SYSFS) -> list[Candidate]:
    """All functions that may be endpoints, by address."""
    found = []
    devices = sysfs / "bus/pci/devices"
    for path in sorted(devices.iterdir()) if devices.is_dir() else []:
        try:
            vendor, device, class_code = (
                int((path / name).read_text(), 16) for name in ("vendor", "device", "class")
            )
        except (OSError, ValueError):
            continue  # it went away while we looked
        driver = path / "driver"
        name = driver.resolve().name if driver.is_symlink() else None
        candidate = Candidate(path.name, vendor, device, class_code, name)
        if candidate.may_be_endpoint:
            found.append(candidate)
    return found
