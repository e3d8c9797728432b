"""Errors for refusals of the kernel, each with its fix, shared by all backends."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from rcdrv.errors import HostError, UsageError
from rcdrv.sysfs import (
    DRIVER,
    Paths,
    driver_of,
    group_members,
    holders_of,
    lockable_memory,
    process_status,
)


def open_node(paths: Paths, bdf: str, node: Path, undo: contextlib.ExitStack) -> int:
    """Open the VFIO or iommufd node of function ``bdf``; ``undo`` closes it."""
    try:
        fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise cannot_open(paths, bdf, node, error) from error
    undo.callback(os.close, fd)
    return fd


def cannot_open(paths: Paths, bdf: str, node: Path, error: OSError) -> HostError:
    """Return the error for a failed open(2) of a VFIO or iommufd node."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return HostError(
            f"{node}: you may not open it",
            hint="rcdrv setup udev, as root, and join the group rcdrv; or run this as root",
        )
    if error.errno == errno.EBUSY:
        return in_use(paths, bdf, node)
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        modules = "iommufd" if node == paths.iommufd_node else f"{DRIVER} vfio_iommu_type1"
        return HostError(
            f"{node}: there is no such device",
            hint=f"modprobe {modules}; in a container, pass {node} in",
        )
    return refused(f"cannot open {node}", error)


def in_use(paths: Paths, bdf: str, node: Path) -> HostError:
    """Return the error for a function, or its group, that is open elsewhere."""
    hidden = f"this process, or one that you may not see (as root: fuser -v {node})"
    who = ", ".join(rivals(paths, bdf)) or hidden
    return HostError(f"{node} is in use by {who}", hint="end it: only one process can have it open")


def rivals(paths: Paths, bdf: str) -> list[str]:
    """Return the other processes that have a node of the function or of its group open."""
    return [who for who in holders_of(paths, bdf) if not who.endswith(f"(pid {os.getpid()})")]


def not_viable(paths: Paths, bdf: str, number: str) -> HostError:
    """Return the error for an IOMMU group with members that other drivers use."""
    others = [
        f"{member} ({driver or 'no driver'})"
        for member, driver in group_members(paths, number)
        if member != bdf
    ]
    return HostError(
        f"{bdf} shares IOMMU group {number} with {', '.join(others) or 'nothing that sysfs shows'}",
        hint=f"every member has to be bound to {DRIVER}, or to no driver: hand the "
        "others over too, or move the endpoint to a slot with a group of its own",
    )


def not_given(paths: Paths, bdf: str, error: OSError, token: str | None = None) -> HostError:
    """Return the error for a function that the kernel does not open."""
    if error.errno == errno.ENODEV:
        return HostError(f"{bdf} has just lost its driver {DRIVER}")
    if error.errno == errno.EAGAIN:
        # vfio_pci_core_enable(): another user holds the device lock, perhaps for a reset.
        return HostError(f"{bdf}: the kernel is busy with the device", hint="try again")
    # vfio_pci_core_match_token_uuid() in drivers/vfio/pci/vfio_pci_core.c
    physical = (paths.function(bdf) / "physfn").resolve()
    if error.errno == errno.EACCES and physical.exists() and driver_of(physical) == DRIVER:
        wants = (
            f"{bdf} is a virtual function of {physical.name}, which is bound to {DRIVER} too: "
            f"the kernel requires {physical.name}'s token"
        )
        if token:
            return HostError(
                f"{wants}, which differs from the given one",
                hint=f"`vf_token` must be the token of the last open of {physical.name}; ask the"
                " user of that function",
            )
        return HostError(
            wants,
            hint=f"open {physical.name} with a `vf_token` of your choice, keep it open, and give"
            f" the same here; or bind {physical.name} to its own driver or to pci-pf-stub, and"
            " write the number of virtual functions to its sriov_numvfs",
        )
    if error.errno == errno.EACCES:
        return HostError(
            f"{bdf}: its virtual functions are in use: the kernel requires their token, "
            + ("which differs from the given one" if token else "and none was given"),
            hint="give the `vf_token` that they were opened with; or end the processes that use"
            " them",
        )
    if error.errno == errno.EINVAL and token:
        return HostError(
            f"{bdf}: the kernel accepts no VF token for it",
            hint=f"a token is for a function with SR-IOV on {DRIVER}, and for a virtual function"
            " whose physical function is bound there too; older kernels accept it only with"
            " RCDRV_BACKEND=group. Otherwise leave `vf_token` out",
        )
    return refused(f"{bdf} cannot be opened", error)


def no_isolation(paths: Paths, bdf: str, module: str) -> HostError:
    """Return the error for a host without interrupt remapping, where devices can forge interrupts.

    :param module: module with the parameter that permits it
    """
    return HostError(
        f"{bdf}: the kernel does not isolate its interrupts, so VFIO refuses it",
        hint="turn interrupt remapping on (firmware: VT-d or AMD-Vi; QEMU: intremap=on), or accept "
        "that the endpoint could forge interrupts, as root:\n"
        f"  echo 1 > {paths.sys}/module/{module}/parameters/allow_unsafe_interrupts",
    )


def cannot_map(
    what: str, size: int, error: OSError, *, counter: str, room: str = ""
) -> HostError | UsageError:
    """Return the error for a failed DMA mapping.

    :param counter: line of /proc/<pid>/status that counts mapped memory
    :param room: hint for too many mappings
    """
    if error.errno == errno.ENOMEM:
        return _locked_memory(what, size, counter, error)
    if error.errno == errno.ENOSPC and room:
        return HostError(f"{what}: there are too many DMA mappings", hint=room)
    if error.errno == errno.EEXIST:
        return UsageError(f"{what}: the range overlaps a mapping")
    if error.errno in (errno.EINVAL, errno.EOVERFLOW):
        return UsageError(f"{what}: partial pages, or outside the usable addresses")
    return refused(what, error)


def _locked_memory(what: str, size: int, counter: str, error: OSError) -> HostError:
    # Memory mapped for a device is pinned, and counts as locked.
    limit = lockable_memory()
    needed = (int(process_status()[counter].split()[0]) << 10) + size
    if limit is None:
        return refused(what, error)
    others = ""
    if needed <= limit:
        if counter == "VmLck":
            return refused(what, error)
        others = " in all of your processes"  # iommufd counts by user
    return HostError(
        f"{what}: {needed >> 10} KiB would be locked, and you may lock {limit >> 10} KiB{others}",
        hint=f"ulimit -l {needed >> 10}, after raising memlock in /etc/security/limits.conf "
        "(LimitMEMLOCK= for a service); or run as root"
        if not others
        else "end other ones, or raise memlock in /etc/security/limits.conf (LimitMEMLOCK= for a "
        "service); or run as root",
    )


def refused(what: str, error: OSError) -> HostError:
    """Return the error for any other refusal: the kernel's own words."""
    return HostError(
        f"{what}: {os.strerror(error.errno or 0)}", hint="the kernel's log (dmesg) may say why"
    )
