"""Advanced Error Reporting (AER): the error counters of a function and its port in sysfs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_FILES = ("aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal")


class ErrorCounters:
    """Error counters of a function and of the port above it.

    Empty without AER, and for an endpoint that is not on this host's bus. The files are
    described in Documentation/ABI/testing/sysfs-bus-pci-devices-aer.
    """

    def __init__(self, address: str, sysfs: str | os.PathLike[str] = "/sys") -> None:
        device = os.path.realpath(os.path.join(sysfs, "bus/pci/devices", address))  # noqa: PTH118
        places = (device, os.path.dirname(device))  # noqa: PTH120
        self._paths = [os.path.join(place, name) for place in places for name in _FILES]  # noqa: PTH118
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

    def _read(self) -> dict[str, bytes]:
        found = {}
        for path in self._paths:
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    found[path] = os.read(fd, 4096)  # sysfs: a page at most
                finally:
                    os.close(fd)
        return found


def _counts(files: dict[str, bytes]) -> Iterator[tuple[str, int]]:
    """Yield (error, count) pairs, such as (``0000:01:00.0 correctable RxErr``, 3)."""
    for path, content in files.items():
        place, name = path.split("/")[-2:]
        for line in content.decode(errors="replace").splitlines():
            error, _, count = line.rpartition(" ")
            if error and not error.startswith("TOTAL") and count.isdecimal():
                yield f"{place} {name.removeprefix('aer_dev_')} {error}", int(count)
