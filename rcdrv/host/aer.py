"""Advanced Error Reporting (AER): the error counters of a function and its port in sysfs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_FILES = ("aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal")


class ErrorCounters:
    """Error counters of a function and of the port above it.

    Empty without AER, and for an endpoint that is not on this host's bus. The files are
    described in Documentation/ABI/testing/sysfs-bus-pci-devices-aer.
    """

    def __init__(self, address: str, sysfs: Path = Path("/sys")) -> None:
        device = (sysfs / "bus/pci/devices" / address).resolve()
        self._paths = [place / name for place in (device, device.parent) for name in _FILES]
        self._seen = self._read()

    def risen(self) -> list[str]:
        """Return the errors counted since the last call, one line each."""
        before, self._seen = self._seen, self._read()
        if before == self._seen:  # the usual result; called before every case
            return []
        old = dict(_counts(before))
        return [
            f"AER: {name} rose by {count - old.get(name, 0)}"
            for name, count in _counts(self._seen)
            if count > old.get(name, 0)
        ]

    def _read(self) -> dict[Path, bytes]:
        found = {}
        for path in self._paths:
            with contextlib.suppress(OSError):
                found[path] = path.read_bytes()
        return found


def _counts(files: dict[Path, bytes]) -> Iterator[tuple[str, int]]:
    """Yield (error, count) pairs, such as (``0000:01:00.0 correctable RxErr``, 3)."""
    for path, content in files.items():
        for line in content.decode(errors="replace").splitlines():
            error, _, count = line.rpartition(" ")
            if error and not error.startswith("TOTAL") and count.isdecimal():
                yield f"{path.parent.name} {path.name.removeprefix('aer_dev_')} {error}", int(count)
