"""Find the functions behind the guest's root ports, and bind them to vfio-pci."""

from __future__ import annotations

import time
from pathlib import Path

from tools.lab.inside.wire import Function

DEVICES = Path("/sys/bus/pci/devices")
PROBE = Path("/sys/bus/pci/drivers_probe")


def behind(port: str, number: int, *, bind: bool, patience: float = 10.0) -> Function:
    """Return function ``number`` of the device behind root port ``port``.

    Found as a child of the port, which does not depend on the numbering of buses.

    :param bind: bind it to vfio-pci
    """
    address = _child(port, number, patience)
    device = DEVICES / address
    if bind:
        # Never new_id: it would bind every device with that ID, also those of other tests.
        driver = device / "driver"
        if driver.exists():
            (driver / "unbind").write_text(address)
        (device / "driver_override").write_text("vfio-pci")
        PROBE.write_text(address)
    return Function(
        port=port,
        address=address,
        group=_name_of(device / "iommu_group"),
        driver=_name_of(device / "driver"),
    )


def _child(port: str, number: int, patience: float) -> str:
    deadline = time.monotonic() + patience
    while True:
        found = sorted(path.name for path in (DEVICES / port).glob(f"????:??:??.{number}"))
        if found:
            return found[0]
        if time.monotonic() > deadline:
            raise TimeoutError(f"no PCI function appeared behind root port {port}")
        time.sleep(0.05)


def _name_of(link: Path) -> str:
    return link.resolve().name if link.exists() else ""
