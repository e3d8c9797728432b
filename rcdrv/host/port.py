"""The port above a function, through sysfs: it trains their link."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from rcdrv.errors import EndpointError, HostError
from rcdrv.mmio import TrappedWindow
from rcdrv.pci import CapId, ConfigSpace
from rcdrv.sysfs import DRIVER, Paths, driver_of, is_address
from rcdrv.wait import Clock, Deadline

_FLAGS, _LNKCAP, _LNKCTL, _LNKSTA = 0x02, 0x0C, 0x10, 0x12
_LENGTH, _HEADER = 0x14, 64
_DOWNSTREAM = (4, 6)
"""Types of ports with a link below: of a root complex, of a switch."""
_ACTIVE_REPORTING = 1 << 20  # LNKCAP
_RETRAIN = 1 << 5  # LNKCTL
_TRAINING, _ACTIVE, _MANAGED = 1 << 11, 1 << 13, 1 << 14  # LNKSTA: LT, DLLLA, LBMS
_TRAINED = 1.0
"""Seconds that a training may take (PCIE_LINK_RETRAIN_TIMEOUT_MS)."""
_LOOK = 0.001


def _config(path: Path, fd: int) -> ConfigSpace:
    """Return the config space that an open file is."""

    def read(offset: int, size: int) -> bytes:
        try:
            data = os.pread(fd, size, offset)
        except OSError as error:
            raise _refused(path, error) from error
        if len(data) < size:
            # pci_read_config() gives 64 bytes to whoever is not CAP_SYS_ADMIN.
            raise HostError(f"{path}: only root may read all of it")
        return data

    def write(offset: int, data: bytes) -> None:
        try:
            os.pwrite(fd, data, offset)
        except OSError as error:  # EPERM: the kernel is locked down
            raise _refused(path, error) from error

    size = min(os.fstat(fd).st_size, 4096)
    return ConfigSpace(TrappedWindow(read, write, size, path.parent.name))


def _refused(path: Path, error: OSError) -> HostError:
    return HostError(f"{path}: {os.strerror(error.errno or 0)}")


class Port:
    """A port with a link below."""

    def __init__(self, address: str, config: ConfigSpace, at: int) -> None:
        self.address = address
        self._window = config.window
        self._at = at
        self.seen = False
        """The port has shown a training. It need not: a fast one is missed."""

    def settled(self, clock: Clock) -> bool:
        """Return whether the link is up and out of training, within a second.

        A port that does not report the link's state counts as up once it is out of training.
        """
        reports = self._window.read32(self._at + _LNKCAP) & _ACTIVE_REPORTING
        deadline = Deadline(_TRAINED, clock)
        while True:
            status = self._status()
            self.seen = self.seen or bool(status & _TRAINING)
            if not status & _TRAINING and (status & _ACTIVE or not reports):
                return True
            if deadline.expired:
                return False
            clock.sleep(_LOOK)

    def retrain(self, clock: Clock) -> bool:
        """Have the link trained anew, as pcie_retrain_link() of drivers/pci/pci.c does.

        :returns: :meth:`settled`
        """
        control, before = self._at + _LNKCTL, self._status()
        value = self._window.read16(control)
        self._window.write16(control, value | _RETRAIN)
        # Some ports need it cleared again: quirk_enable_clear_retrain_link().
        self._window.write16(control, value & ~_RETRAIN)
        settled = self.settled(clock)
        if self._status() & ~before & _MANAGED:
            # Left set, it has the kernel slow down a link that comes up late the next time
            # (pcie_failed_link_retrain()).
            self._window.write16(self._at + _LNKSTA, _MANAGED)
            self.seen = True
        return settled

    def _status(self) -> int:
        return self._window.read16(self._at + _LNKSTA)


@contextlib.contextmanager
def port_above(address: str, paths: Paths | None = None) -> Iterator[Port]:
    """Open the port above the function at a canonical address.

    :raises HostError: there is none, it may not be written, or others use the link
    """
    folder = (paths or Paths()).function(address).resolve()
    port = folder.parent
    if not is_address(port.name):
        raise HostError(f"{address} is on a root bus, and no port above it trains a link")
    try:
        below = sorted(other for other in port.iterdir() if is_address(other.name))
    except OSError as error:
        raise _refused(port, error) from error
    for other in below:
        driver = driver_of(other)
        if driver not in (None, DRIVER) and other.name != folder.name:
            raise HostError(f"{other.name}, on the same link, is in use by {driver}")
    path = port / "config"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        yield _port(port.name, _config(path, fd))
    finally:
        os.close(fd)


def _port(address: str, config: ConfigSpace) -> Port:
    size = config.window.size
    if size < _HEADER:
        raise HostError(f"{address}: its config space has {size} bytes")
    try:
        found = config.find(CapId.EXP)
    except EndpointError as error:
        raise HostError(f"{address}, the port above it: {error.message}") from error
    if found is None or found.offset + _LENGTH > size:
        raise HostError(f"{address}, the bridge above it, is no PCI Express port")
    if config.window.read16(found.offset + _FLAGS) >> 4 & 0xF not in _DOWNSTREAM:
        raise HostError(f"{address}, above it, is no port with a link below")
    return Port(address, config, found.offset)
