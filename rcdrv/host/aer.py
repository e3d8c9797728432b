"""Advanced Error Reporting: the error counters that sysfs keeps of a function and its port."""

from __future__ import annotations

from pathlib import Path

SYSFS = Path("/sys")

_FILES = ("aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal")


def counters(address: str, sysfs: Path = SYSFS) -> dict[str, int]:
    """``{"0000:01:00.0 correctable RxErr": 3, ...}`` of the function and the port above it.

    Empty where there are none: without AER, and for endpoints that are not on this host's bus.
    The files are described in Documentation/ABI/testing/sysfs-bus-pci-devices-aer.
    """
    device = sysfs / "bus/pci/devices" / address
    found: dict[str, int] = {}
    if not device.exists():
        return found
    real = device.resolve()
    for place in (real, real.parent):
        for name in _FILES:
            try:
                lines = (place / name).read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                error, _, count = line.rpartition(" ")
                if error and not error.startswith("TOTAL") and count.isdecimal():
                    found[f"{place.name} {name.removeprefix('aer_dev_')} {error}"] = int(count)
    return found


def risen(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What was counted in between, one line each."""
    return [
        f"AER: {name} rose by {count - before.get(name, 0)}"
        for name, count in after.items()
        if count > before.get(name, 0)
    ]
