"""Bind functions to vfio-pci, and give them back to their previous driver.

Uses driver_override, never new_id: new_id would also claim every other function with this ID, now
and later. The previous state is noted under /run/rcdrv, which other processes see and a reboot
clears.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rcdrv.errors import HostError, UsageError
from rcdrv.files import parse_json, read_text, replace_file
from rcdrv.host import kernel
from rcdrv.host.function import HostFunction
from rcdrv.sysfs import DRIVER, Paths, text_of

Say = Callable[[str], None]

# Classes that a running system may depend on.
_PRECIOUS = {0x01: "storage", 0x02: "network"}


@dataclass
class Note:
    """State of a function before rcdrv bound it."""

    driver: str | None
    override: str
    """Previous driver_override; may be empty."""
    reset_method: str | None = None
    """Previous reset_method, if resets are off now."""


def note_path(paths: Paths, address: str) -> Path:
    return paths.run / "rcdrv" / address


def read_note(paths: Paths, address: str) -> Note | None:
    """Return the note of an earlier bind, if any."""
    try:
        note = Note(**parse_json(read_text(note_path(paths, address))))
    except (UsageError, ValueError, TypeError):
        return None
    driver, rest = note.driver, (note.override, note.reset_method or "")
    if not (driver is None or _is_name(driver)) or not all(isinstance(one, str) for one in rest):
        return None
    return note


def _is_name(driver: object) -> bool:
    """Return whether a name is a plain file name, which cannot leave sysfs's drivers folder."""
    return isinstance(driver, str) and "/" not in driver and driver not in ("", ".", "..")


def _write_note(paths: Paths, address: str, note: Note) -> None:
    path = note_path(paths, address)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.stat().st_uid == os.geteuid():
            path.parent.chmod(0o755)  # whatever the umask: readable by all, writable by us
        replace_file(path, f"{json.dumps(asdict(note))}\n".encode(), mode=0o644)
    except (OSError, HostError, UsageError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        assert isinstance(cause, OSError)
        raise kernel.refused(f"cannot note the driver of {address} in {path.parent}", cause) from (
            cause
        )


class Binder:
    """Bind and unbind functions.

    :param say: called with each change, one line
    """

    def __init__(self, paths: Paths, say: Say) -> None:
        self._paths = paths
        self._say = say
        self._drivers = paths.sys / "bus/pci/drivers"
        self._probe = paths.sys / "bus/pci/drivers_probe"

    # -- to vfio-pci --------------------------------------------------------------------------

    def bind(
        self,
        function: HostFunction,
        *,
        whole_group: bool = False,
        no_reset: bool = False,
        force: bool = False,
    ) -> list[HostFunction]:
        """Bind a function, or its whole IOMMU group, to vfio-pci: all of them or none.

        :param no_reset: disable resets of the function; VFIO resets at every open and close
        :param force: take storage and network devices from their drivers
        :returns: the functions that are bound now
        :raises HostError: impossible or unsafe; nothing has changed
        """
        taken = [function, *(self._others(function) if whole_group else [])]
        self._check(function, taken, force)
        if not (self._drivers / DRIVER).exists():
            kernel.modprobe(DRIVER)
            if not (self._drivers / DRIVER).exists():
                raise HostError(
                    f"the kernel has no {DRIVER} driver, and modprobe does not load it",
                    hint=f"as root: modprobe {DRIVER}; if that finds no module, the kernel needs "
                    "CONFIG_VFIO_PCI (Debian and Ubuntu have it in their standard kernels)",
                )
            self._say(f"loaded {DRIVER}")
        with contextlib.ExitStack() as undo:
            for one in taken:
                self._take(one, no_reset, undo)
            undo.pop_all()
        return taken

    def _others(self, function: HostFunction) -> list[HostFunction]:
        others = (HostFunction(one, self._paths) for one, _ in function.others_in_group)
        return [one for one in others if not one.is_bridge]

    def _check(self, function: HostFunction, taken: Sequence[HostFunction], force: bool) -> None:
        address = function.address
        if function.is_bridge:
            raise UsageError(f"{address} is a bridge; an endpoint is behind one")
        if function.group is None and text_of(self._paths.noiommu_parameter) != "Y":
            raise HostError(
                f"{address} is not behind an IOMMU, so {DRIVER} does not take it",
                hint=f"rcdrv doctor {address} says how to turn it on",
            )
        addresses = {one.address for one in taken}
        blocking = [member for member in function.blocking if member[0] not in addresses]
        if blocking:
            listed = ", ".join(f"{one} ({driver})" for one, driver in blocking)
            raise HostError(
                f"{address} shares IOMMU group {function.group} with {listed}",
                hint="VFIO needs the whole group: `whole_group` binds them all, if this host does "
                "not need them; or move the endpoint to a slot with a group of its own",
            )
        for one in taken:
            kind = _PRECIOUS.get(one.class_code >> 16)
            if kind and one.driver not in (None, DRIVER) and not force:
                raise HostError(
                    f"{one.address} is a {kind} device in use by {one.driver}",
                    hint="this host may need it; if it does not, `force` takes it",
                )

    def _take(self, function: HostFunction, no_reset: bool, undo: contextlib.ExitStack) -> None:
        address, before = function.address, function.driver
        if before == DRIVER:
            self._say(f"{address}: bound to {DRIVER} already")
            self._switch_reset(function, off=no_reset)
            return
        override = function.text("driver_override")
        # After a rescan its driver may not have probed it yet, but is noted.
        earlier = read_note(self._paths, address) or Note(None, "")
        note = Note(before or earlier.driver, "" if override in ("(null)", DRIVER) else override)
        _write_note(self._paths, address, note)
        undo.callback(self._undo, function)
        self._switch_reset(function, off=no_reset)
        self._set(function, "driver_override", DRIVER)
        if before:
            self._release(function, before)
            self._say(f"{address}: taken from {before}")
        kernel.change(f"{DRIVER} does not take {address}", self._probe, address)
        # The kernel does not report a failed probe here.
        if function.driver != DRIVER:
            raise HostError(
                f"{DRIVER} does not take {address}", hint="the kernel's log (dmesg) says why"
            )
        group = f" (IOMMU group {function.group})" if function.group else ""
        self._say(f"{address}: bound to {DRIVER}{group}")

    def _undo(self, function: HostFunction) -> None:
        with contextlib.suppress(HostError):
            self._give_back(function, read_note(self._paths, function.address))

    # -- and back -----------------------------------------------------------------------------

    def unbind(
        self, function: HostFunction, *, whole_group: bool = False, force: bool = False
    ) -> list[HostFunction]:
        """Give a function, or its whole IOMMU group, back to the previous drivers.

        :param force: ask a process that has one of them open to close it
        :returns: the functions that were given back
        :raises HostError: it is in use, or not bound to vfio-pci
        """
        given = [function, *(self._others(function) if whole_group else [])]
        given = [one for one in given if one is function or one.driver == DRIVER]
        if function.driver != DRIVER:
            owner = f"bound to {function.driver}" if function.driver else "not bound to a driver"
            raise HostError(
                f"{function.address} is {owner}, not to {DRIVER}", hint="there is nothing to undo"
            )
        for one in given:
            if one.holders and not force:
                raise HostError(
                    f"{one.address} is in use by {', '.join(one.holders)}",
                    hint="end it, or let `force` ask it to close the function",
                )
        for one in given:
            self._give_back(one, read_note(self._paths, one.address))
        return given

    def _give_back(self, function: HostFunction, note: Note | None) -> None:
        address = function.address
        if note and note.reset_method is not None:
            self._set(function, "reset_method", note.reset_method)
            self._say(f"{address}: resets are on again ({note.reset_method})")
        self._set(function, "driver_override", (note.override if note else "") or "\n")
        if function.driver == DRIVER:
            self._release(function, DRIVER)
        note_path(self._paths, address).unlink(missing_ok=True)
        if note is None:
            # Bound by something else, perhaps a udev rule: any driver that matches may probe it.
            kernel.change(f"cannot probe {address}", self._probe, address)
        elif note.driver:
            self._return_to(function, note.driver)
        self._say(f"{address}: {'back to ' + function.driver if function.driver else 'no driver'}")

    def _release(self, function: HostFunction, driver: str) -> None:
        address = function.address
        what, later = f"cannot take {address} from {driver}", f"takes it from {driver}"
        kernel.change_unused(what, function, "driver/unbind", address, later)

    def _return_to(self, function: HostFunction, driver: str) -> None:
        folder = self._drivers / driver
        if function.driver == driver:
            return
        if not folder.exists():
            self._say(f"{function.address}: its driver {driver} is no longer loaded")
            return
        what = f"{driver} does not take {function.address} back"
        kernel.change(what, folder / "bind", function.address)

    # -- resets -------------------------------------------------------------------------------

    def _switch_reset(self, function: HostFunction, *, off: bool) -> None:
        """Disable the resets of a function, or enable them again if rcdrv disabled them.

        With an empty reset_method (reset_method_store() in drivers/pci/pci.c) VFIO resets nothing
        when it opens and closes the function.
        """
        address, now = function.address, function.text("reset_method")
        note = read_note(self._paths, address) or Note(None, "")
        if off and now:
            note.reset_method = now
            _write_note(self._paths, address, note)
            self._set(function, "reset_method", "\n")
            self._say(f"{address}: resets are off (were: {now})")
        elif off and note.reset_method is None:
            self._say(f"{address}: the kernel has no reset for it anyway")
        elif not off and note.reset_method is not None:
            self._set(function, "reset_method", note.reset_method)
            self._say(f"{address}: resets are on again ({note.reset_method})")
            note.reset_method = None
            _write_note(self._paths, address, note)

    @staticmethod
    def _set(function: HostFunction, name: str, text: str) -> None:
        kernel.change(f"cannot set {name} of {function.address}", function.path / name, text)
