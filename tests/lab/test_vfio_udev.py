"""udev/70-rcdrv.rules under a real systemd-udevd."""

from __future__ import annotations

from pathlib import Path

from tests.lab.test_vfio_device import booted
from tests.lab.udev import RULES, must, start, trigger, udev_files
from tools.lab.guest import Guest

# The rules know no ID of QEMU's own devices, so three lines are given one: edu, igb and the root
# port that each of them is behind.
IDS = {
    "v0000104Cd0000B500": "v00001234d000011E8",
    "v0000104Cd0000B501": "v00008086d000010C9",
    "v0000104Cd0000B00C": "v00001B36d0000000C",
}


def driver(guest: Guest, address: str) -> str:
    link = f"/sys/bus/pci/devices/{address}/driver"
    return must(guest, f"basename $(readlink {link} || echo none)")


def override(guest: Guest, address: str) -> str:
    return must(guest, f"cat /sys/bus/pci/devices/{address}/driver_override")


def rights(guest: Guest, group: str) -> str:
    return must(guest, f"stat -c '%U %G %a' /dev/vfio/{group}")


def test_endpoints_are_handed_over_and_nothing_else(tmp_path: Path) -> None:
    rules = RULES.read_text()
    for known, here in IDS.items():
        assert known in rules
        rules = rules.replace(known, here)
    (tmp_path / "rules").write_text(rules)
    files = udev_files(tmp_path / "rules")
    with booted("edu", "igb", "igb", "qemu-xhci", bind=False, files=files) as guest:
        edu, owned, free, other = guest.devices
        port = "0000:00:12.0"  # of the third
        assert driver(guest, port) == "pcieport"
        must(guest, "modprobe igb")
        must(guest, f"echo {free.address} >/sys/bus/pci/drivers/igb/unbind")
        must(guest, f"echo {port} >/sys/bus/pci/drivers/pcieport/unbind")

        start(guest)
        # Somebody else's use of VFIO.
        must(guest, f"echo vfio-pci >/sys/bus/pci/devices/{other.address}/driver_override")
        must(guest, f"echo {other.address} >/sys/bus/pci/drivers_probe")
        trigger(guest)
        assert driver(guest, other.address) == "vfio-pci"
        assert rights(guest, other.group) == "root root 600"

        for one in (edu, free):
            assert driver(guest, one.address) == "vfio-pci"
            assert rights(guest, one.group) == "root rcdrv 660"
        # A driver keeps its function, and a bridge is no endpoint whatever its ID.
        assert driver(guest, owned.address) == "igb"
        assert override(guest, owned.address) == "(null)"
        assert driver(guest, port) == "none"
        assert override(guest, port) == "(null)"
