"""Recover an endpoint that rebooted: remove the function, rescan the bus, bind it again.

The kernel assigns BAR addresses once, at enumeration. A rebooted endpoint has lost them, and its
driver does not notice, so it must be enumerated again.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable

from rcdrv.errors import HostError, UsageError
from rcdrv.host import kernel
from rcdrv.host.binding import Binder, Say, read_note
from rcdrv.host.function import HostFunction, functions
from rcdrv.sysfs import DRIVER, Paths, name_a_port, ports
from rcdrv.wait import Cancel, Deadline

_LOOK_AGAIN = 0.5
"""Seconds between two scans while the endpoint starts."""


def port_above(address: str, paths: Paths) -> HostFunction:
    """Return the port that a function is or was behind, by its bus number.

    A port's own address gives that port.

    :raises HostError: there is no such port
    """
    with contextlib.suppress(HostError):
        function = HostFunction(address, paths)
        if function.is_bridge:
            return function
        if not function.ports:
            raise UsageError(
                f"{address} is part of the root complex, not behind a port",
                hint="only a function behind a port can be removed and found again",
            )
        return HostFunction(function.ports[0], paths)
    domain, bus, _ = address.split(":")
    for port, behind_it in ports(paths).items():
        if behind_it == (domain, int(bus, 16)):
            return HostFunction(port, paths)
    raise HostError(
        f"{address}: there is no such function, and no port with bus {bus} behind it",
        hint=name_a_port(paths),
    )


def behind(port: HostFunction) -> list[HostFunction]:
    """Return the functions directly behind a port."""
    return [one for one in functions(port.paths) if one.ports[:1] == [port.address]]


def link_is_up(port: HostFunction) -> bool:
    """Return whether the port's link is up; True if the port is not PCI Express."""
    link = port.link
    return link is None or bool(link.speed and link.width)


def rescan(
    port: HostFunction,
    binder: Binder,
    say: Say,
    wanted: str | None,
    *,
    within: float,
    cancel: Cancel,
    force: bool = False,
) -> list[HostFunction]:
    """Remove what is behind one port, then scan there until ``wanted`` (None: any) appears.

    :param binder: binds the functions that were bound to vfio-pci
    :param say: called with each change, one line
    :param within: seconds to wait for link and function
    :param force: also when a driver or a process uses one of the functions
    :returns: the functions behind the port now
    :raises HostError: it is in use, or does not come back in time
    """
    before = behind(port)
    _refuse_used(port, before, force, "end or unbind it, or let `force` remove it")
    bound = {one.address for one in before if one.driver == DRIVER}
    for one in before:
        what = f"cannot remove {one.address}"
        kernel.change_unused(what, one, "remove", "1", "removes it")
        say(f"{one.address}: removed")
    found = _scan(port, wanted, within, cancel)
    for one in found:
        say(f"{one.address}: found, {one.vendor:04x}:{one.device:04x} {one.part.name}")
        # The note of a function that vanished by itself remains: it was bound by rcdrv, too.
        note = read_note(port.paths, one.address)
        if note is not None or one.address in bound:
            binder.bind(one, no_reset=note is not None and note.reset_method is not None)
    return found


def _refuse_used(port: HostFunction, members: list[HostFunction], force: bool, cure: str) -> None:
    """Refuse if a driver of this host, or a process through VFIO, uses one of the functions."""
    used = []
    for one in members:
        if one.driver not in (None, DRIVER):
            used.append(f"{one.address} (driver {one.driver})")
        elif one.holders:
            used.append(f"{one.address} ({', '.join(one.holders)})")
    if used and not force:
        raise HostError(f"behind {port.address} is in use: {', '.join(used)}", hint=cure)


def _scan(
    port: HostFunction, wanted: str | None, within: float, cancel: Cancel
) -> list[HostFunction]:
    # bus_rescan_store() in drivers/pci/pci-sysfs.c scans the bus behind the port; the port's own
    # file "rescan" would scan the bus that the port is on.
    file = next(port.path.glob("pci_bus/*/rescan"), None)
    if file is None:
        raise HostError(f"{port.address} has no bus behind it")
    deadline = Deadline(within)
    while True:
        if link_is_up(port):
            kernel.change(f"cannot scan behind {port.address}", file, "1")
            found = behind(port)
            if any(wanted in (None, one.address) for one in found):
                return found
        if deadline.expired:
            break
        cancel.sleep(min(_LOOK_AGAIN, deadline.remaining + 0.001))
    waited = f"waited {within:g} s for {wanted or 'a function'}: the link of {port.address} is"
    if link_is_up(port):
        raise HostError(
            f"{waited} up, and nothing answers",
            hint="has the endpoint a function bound and started? `within` is how long to wait",
        )
    raise HostError(
        f"{waited} down",
        hint="is the endpoint powered, and its controller started? `within` is how long to wait",
    )


def bus_reset(
    function: HostFunction,
    paths: Paths,
    *,
    show: Callable[[list[HostFunction]], None],
    force: bool = False,
) -> list[HostFunction]:
    """Reset the secondary bus of the port above (hot reset), with everything behind it.

    :param show: called before the reset with the functions that it will reset
    :raises HostError: a function is in use, or the kernel refuses
    """
    port = port_above(function.address, paths)
    members = behind(port)
    show(members)
    _refuse_used(port, members, force, "end or unbind it, or let `force` reset it anyway")
    # reset_subordinate_store() in drivers/pci/pci-sysfs.c: saves and restores config space.
    file = port.path / "reset_subordinate"
    if not file.exists():
        raise HostError(
            f"this kernel cannot reset the bus behind {port.address}",
            hint="Linux 6.13 and later can; rcdrv reset ADDRESS resets the function alone",
        )
    try:
        kernel.write(file, "1")
    except OSError as error:
        if error.errno == errno.ENOTTY:
            # pci_bridge_wait_for_secondary_bus() in drivers/pci/pci.c: one error for a link that
            # stays down and for a bus that cannot be reset.
            raise HostError(
                f"{port.address} cannot reset the bus behind it, or its link did not come back",
                hint=f"dmesg says which; if it is the link: rcdrv rescan {function.address}",
            ) from error
        raise kernel.refused(f"cannot reset the bus behind {port.address}", error) from error
    return members
