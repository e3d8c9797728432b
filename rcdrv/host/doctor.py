"""Diagnose a host: find what keeps rcdrv from driving an endpoint, and name the fix.

Each row of the table is one small function. It reads a :class:`Subject` and changes nothing, so
tests show each outcome with a made-up host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from rcdrv import parts, pci
from rcdrv.describe import missing_bars
from rcdrv.errors import RcdrvError, missing_module
from rcdrv.host.function import HostFunction
from rcdrv.host.subject import Diagnosis, State, Subject, bad, ok, skip
from rcdrv.sysfs import DRIVER, is_noiommu, name_a_port, text_of

USED = """
    __future__ abc argparse array base64 binascii bisect collections concurrent contextlib copy
    ctypes dataclasses datetime difflib enum fcntl fnmatch functools hashlib html importlib io
    ipaddress json logging math mmap multiprocessing operator os pathlib pickle pkgutil platform
    random re resource select selectors shlex shutil signal socket stat statistics struct
    subprocess textwrap threading traceback types typing xml zlib
"""
"""All except those built into every interpreter; a test compares it with the source."""

ENOUGH_LOCKED = 8 << 20
"""Bytes: two buffers of the largest transfer that `rcdrv test` makes."""


# -- the host ------------------------------------------------------------------------------------


def check_python(_subject: Subject) -> Diagnosis:
    """Check the standard library, incomplete in Yocto, Buildroot and Debian's python3-minimal."""
    version = ".".join(map(str, sys.version_info[:3]))
    missing = [name for name in USED.split() if find_spec(name) is None]
    if missing:
        return bad(f"{version} lacks {', '.join(missing)}", missing_module(missing[0]).hint)
    return ok(version)


def check_module(subject: Subject) -> Diagnosis:
    if not (subject.paths.sys / "bus/pci/drivers" / DRIVER).exists():
        return bad(
            f"the driver {DRIVER} is not loaded",
            f"modprobe {DRIVER}; if there is no such module, the kernel needs CONFIG_VFIO_PCI, "
            "or, as root: RCDRV_BACKEND=sysfs goes without VFIO, and without interrupts",
        )
    return ok(f"{DRIVER} is loaded")


def check_lockdown(subject: Subject) -> Diagnosis:
    """Check that a locked-down kernel, which loads signed modules only, has VFIO."""
    modes = text_of(subject.paths.sys / "kernel/security/lockdown").split()
    mode = next((word.strip("[]") for word in modes if word.startswith("[")), "")
    if not mode:
        return skip("the kernel has none, or securityfs is not mounted")
    if mode == "none":
        return ok("none")
    if check_module(subject).state is State.NOT_OK:
        return bad(
            f"{mode}: only signed modules load, and {DRIVER} is not there",
            "install the distribution's own signed modules for this kernel; or turn Secure Boot "
            "off in the firmware",
        )
    return ok(f"{mode}: VFIO works; setpci, resourceN and unsigned modules do not")


def check_iommu(subject: Subject) -> Diagnosis:
    function, paths = subject.function, subject.paths
    units = paths.sys / "class" / "iommu"
    names = sorted(unit.name for unit in units.iterdir()) if units.is_dir() else []
    if function is None:
        if names:
            return ok(", ".join(names))
        return bad("the kernel runs none", _iommu_cure(subject))
    if function.group is None:
        return bad(f"none in front of {function.address}", _iommu_cure(subject))
    if is_noiommu(paths, function.group):
        return ok("none, by this host's own choice (noiommu): the endpoint's DMA is unchecked")
    return ok(f"group {function.group}" + (f", {', '.join(names)}" if names else ""))


def _iommu_cure(subject: Subject) -> str:
    off = [
        word
        for word in subject.command_line
        if word in ("iommu=off", "intel_iommu=off", "amd_iommu=off")
    ]
    if off:
        return f"take {' '.join(off)} off the kernel's command line, and reboot"
    if not subject.is_x86:
        return _arm_cure(subject)
    add = "add intel_iommu=on to the kernel's command line (/etc/default/grub), and reboot"
    if subject.has_table("DMAR"):
        return add
    if subject.has_table("IVRS"):
        return "the AMD IOMMU is on by default and did not start: dmesg | grep AMD-Vi says why"
    if "AuthenticAMD" in text_of(subject.paths.proc / "cpuinfo"):
        return "turn the IOMMU (AMD-Vi) on in the firmware's setup; the kernel then uses it"
    return f"turn VT-d on in the firmware's setup; then {add}"


def _arm_cure(subject: Subject) -> str:
    # An SMMU in front of PCIe is the property iommu-map of the host bridge's node
    # (Documentation/devicetree/bindings/pci/pci-iommu.txt).
    tree = subject.paths.sys / "firmware/devicetree/base"
    described = subject.has_table("IORT") or any(tree.rglob("iommu-map"))
    if described:
        return (
            "the firmware describes an SMMU, which did not start: is its driver there (modprobe "
            "arm_smmu_v3, or CONFIG_ARM_SMMU)? dmesg | grep -i smmu says more"
        )
    return (
        "neither ACPI nor the device tree places an SMMU in front of PCIe. If the board has one, "
        "its host bridge needs iommu-map; if not, there is only noiommu, as root: modprobe vfio "
        "enable_unsafe_noiommu_mode=1, and RCDRV_BACKEND=noiommu"
    )


def check_remapping(subject: Subject) -> Diagnosis:
    """Check interrupt remapping, without which VFIO refuses every device.

    See vfio_iommu_type1_attach_group(): a device could forge interrupts.
    """
    if not subject.is_x86:
        return skip(f"{subject.machine} has no interrupt remapping to turn on")
    if check_iommu(subject).state is State.NOT_OK:
        return skip("it is part of the IOMMU")
    # Both remapping drivers call their interrupt chips "IR-...".
    if " IR-" in text_of(subject.paths.proc / "interrupts"):
        return ok("on")
    modules = subject.paths.sys / "module"
    for module in ("vfio_iommu_type1", "iommufd"):
        parameter = modules / module / "parameters/allow_unsafe_interrupts"
        if text_of(parameter) == "Y":
            return ok(f"off, and accepted ({module}.allow_unsafe_interrupts)")
    off = [word for word in subject.command_line if word in ("intremap=off", "nointremap")]
    how = f"take {' '.join(off)} off the kernel's command line" if off else "turn it on in the"
    how += "" if off else " firmware's setup (with VT-d or AMD-Vi, and x2APIC)"
    return bad(
        "off: VFIO refuses every device",
        f"{how}; or accept that an endpoint could forge interrupts: echo 1 > "
        f"{modules}/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    )


def check_locked_memory(subject: Subject) -> Diagnosis:
    limit = subject.user.locked_memory
    if limit is None:
        return ok("unlimited")
    if limit >= ENOUGH_LOCKED:
        return ok(f"{limit >> 10} KiB")
    return bad(
        f"{subject.user.name} may lock {limit >> 10} KiB for DMA; {ENOUGH_LOCKED >> 10} KiB are "
        "enough for all tests",
        "echo '@rcdrv - memlock 65536' > /etc/security/limits.d/rcdrv.conf, and log in again "
        "(a service: LimitMEMLOCK=64M)",
    )


# -- the function --------------------------------------------------------------------------------


def check_present(subject: Subject) -> Diagnosis:
    if subject.function is None:
        return bad(
            "no function on this host looks like one",
            f"start it (with its link up); {name_a_port(subject.paths)}; "
            "rcdrv list --all shows every function; name one of them",
        )
    return ok(str(subject.function))


def _of_function(
    check: Callable[[Subject, HostFunction], Diagnosis],
) -> Callable[[Subject], Diagnosis]:
    """Return a row that is skipped without a function."""

    def row(subject: Subject) -> Diagnosis:
        if subject.function is None:
            return skip("no endpoint")
        return check(subject, subject.function)

    return row


def check_driver(_subject: Subject, function: HostFunction) -> Diagnosis:
    if function.driver == DRIVER:
        return ok(DRIVER)
    owner = f"bound to {function.driver}" if function.driver else "not bound"
    return bad(owner, f"rcdrv bind {function.address}")


def check_group(_subject: Subject, function: HostFunction) -> Diagnosis:
    if function.group is None:
        return skip("no IOMMU")
    others = [address for address, _ in function.others_in_group]
    if function.blocking:
        listed = ", ".join(f"{address} ({driver})" for address, driver in function.blocking)
        return bad(
            f"group {function.group} also has {listed}",
            f"rcdrv bind {function.address} --group takes them from the host, too; or move the "
            "endpoint to a slot with a group of its own",
        )
    return ok(f"group {function.group}" + (f" with {', '.join(others)}" if others else ", alone"))


def check_node(subject: Subject, function: HostFunction) -> Diagnosis:
    if function.driver != DRIVER:
        return skip(f"not bound to {DRIVER}")
    ways = function.ways_in
    if not ways:
        return bad(
            f"there is none in {subject.paths.dev}/vfio",
            "is udev or devtmpfs running? Into a container, pass /dev/vfio",
        )
    closed = [node for way in ways for node in way if not subject.user.may_open(node)]
    open_ways = [way for way in ways if not any(node in closed for node in way)]
    if open_ways:
        listed = ", or ".join(" with ".join(map(str, way)) for way in open_ways)
        return ok(listed + (f"; not {', '.join(map(str, closed))}" if closed else ""))
    return bad(
        f"{subject.user.name} may not open {closed[0]}",
        f"{_udev_cure(function)}; then, as root: groupadd --system rcdrv; usermod --append "
        f"--groups rcdrv {subject.user.name}; udevadm control --reload; udevadm trigger "
        "--action=add --subsystem-match=vfio --subsystem-match=vfio-dev --subsystem-match=misc; "
        "and log in again",
    )


def _udev_cure(function: HostFunction) -> str:
    if (function.vendor, function.device) in parts.KNOWN_PARTS:
        return "rcdrv setup udev"
    keys = [f'SUBSYSTEM=="vfio", KERNEL=="{function.group}"']
    if any(len(way) > 1 for way in function.ways_in):
        # Matched by address: VFIO numbers functions in the order of binding.
        keys += [
            f'SUBSYSTEM=="vfio-dev", KERNELS=="{function.address}"',
            'SUBSYSTEM=="misc", KERNEL=="iommu"',
        ]
    rules = "; ".join(f'{key}, GROUP="rcdrv", MODE="0660"' for key in keys)
    return f"write to /etc/udev/rules.d/71-endpoint.rules, a line each: {rules}"


def check_holders(_subject: Subject, function: HostFunction) -> Diagnosis:
    if function.driver != DRIVER:
        return skip(f"not bound to {DRIVER}")
    held = function.holders
    if held:
        return bad(f"by {', '.join(held)}", "end it: only one process can have it open")
    return ok("no")


def check_power(_subject: Subject, function: HostFunction) -> Diagnosis:
    state = function.text("power_state")
    if function.command is not None and int(function.command) == 0xFFFF:
        return bad(
            "its config space reads all ones: nothing answers",
            f"the endpoint is off or has rebooted: start it, then: rcdrv rescan {function.address}",
        )
    if state in ("", "unknown"):
        return skip("the kernel does not say")
    if state == "D0":
        return ok("D0")
    if state != "D3cold" and function.driver == DRIVER:
        # vfio_pci_core_enable() resumes a function that vfio-pci suspended while unused.
        return ok(f"{state}, and opening it wakes it up")
    cure = f"echo on > {function.path}/power/control"
    if state == "D3cold":
        cure += f"; if that does not wake it: rcdrv rescan {function.address}"
    return bad(f"{state}: it does not decode its BARs", cure)


def check_link(subject: Subject, function: HostFunction) -> Diagnosis:
    link = function.link
    if link is None:
        return skip("not PCI Express")
    if not link.speed or not link.width:
        return bad("down", f"is the endpoint started? Then: rcdrv rescan {function.address}")
    speed, width = link.max_speed, link.max_width
    for port in function.ports[:1]:
        try:
            above = HostFunction(port, subject.paths).link
        except RcdrvError:
            above = None
        if above is not None:
            speed, width = min(speed, above.max_speed), min(width, above.max_width)
    if link.speed < speed or link.width < width:
        return bad(
            f"{link}, although both ends can do {speed:g} GT/s x{width}",
            "reseat the card or the cable; look for max-link-speed and num-lanes in the device "
            "trees of both ends, and for AER errors in dmesg",
        )
    return ok(str(link))


def check_bars(_subject: Subject, function: HostFunction) -> Diagnosis:
    bars = function.bars
    if not bars:
        return bad(
            "it has none", "configure and start the endpoint function before this host scans it"
        )
    lost = [f"BAR{bar.index} ({bar.size:#x} bytes)" for bar in bars if not bar.address]
    if lost:
        return bad(
            f"no address was found for {', '.join(lost)}",
            f"rcdrv rescan {function.address}; if that is not enough: boot with pci=realloc, or "
            "turn Above 4G Decoding on in the firmware's setup",
        )
    if function.lost_bars:
        gone = ", ".join(f"BAR{index}" for index in function.lost_bars)
        return bad(
            f"{gone} lost by a reset: the address that this host gave is gone",
            f"rcdrv rescan {function.address}; does the endpoint's controller driver set its BARs"
            " up again after a reset of the link?",
        )
    part, seen = function.part, {bar.index: bar for bar in bars}
    missing = missing_bars(function.class_code, part, [*map(seen.get, range(6))])
    if missing:
        listed = " and ".join(map(part.bar_text, missing))
        return bad(
            f"{part.name} has {listed}, this endpoint does not",
            f'look in the endpoint\'s dmesg for "Failed to set BAR{missing[0]}"',
        )
    return ok(", ".join(f"BAR{bar.index}" for bar in bars) + " have addresses")


def check_decoding(subject: Subject, function: HostFunction) -> Diagnosis:
    """Check decoding in the ports above: opening a function enables only its own."""
    needed = pci.Command.MEMORY | pci.Command.BUS_MASTER
    for port in function.ports:
        try:
            command = HostFunction(port, subject.paths).command
        except RcdrvError:
            continue
        if command is not None and needed & ~command:
            off = " and ".join(
                name
                for bit, name in (
                    (pci.Command.MEMORY, "memory decoding"),
                    (pci.Command.BUS_MASTER, "bus mastering"),
                )
                if not command & bit
            )
            return bad(f"{off} off in the port {port}", f"setpci -s {port} COMMAND=6:6")
    return ok("on in the ports above; opening the function turns on its own")


def check_reset(_subject: Subject, function: HostFunction) -> Diagnosis:
    methods = function.reset_methods
    if not methods:
        return ok("none: opening and closing it changes nothing")
    if methods[0] in ("bus", "cxl_bus"):
        return bad(
            f"{methods[0]}: each open and close bounces the endpoint's link, and may undo its "
            "set-up",
            f"rcdrv bind {function.address} --no-reset",
        )
    return ok(methods[0])


def check_ats(_subject: Subject, function: HostFunction) -> Diagnosis:
    config, part = function.config, function.part
    if config is None or config.window.size < 0x100:  # pci_read_config() in drivers/pci/pci-sysfs.c
        return skip("only root may see it")
    if config.window.size == 0x100:
        return ok("not announced: config space has 256 bytes")
    try:
        announced = config.find(pci.ExtCapId.ATS) is not None
    except RcdrvError as error:
        return skip(error.message)
    if not announced:
        return ok("not announced")
    if part.broken_ats:
        return bad(part.ats_note, parts.ATS_CURE)
    return ok("announced: this host's IOMMU may send invalidations to the endpoint")


def check_caps(subject: Subject, function: HostFunction) -> Diagnosis:
    """Check that the function opens. The only row that opens it, so only if it is not in use."""
    if function.driver != DRIVER or function.holders:
        return skip("it cannot be opened now")
    try:
        return ok(subject.read_caps(function.address))
    except RcdrvError as error:
        return bad(error.message, error.hint or "the rows above come first")


ROWS: dict[str, Callable[[Subject], Diagnosis]] = {
    "Python": check_python,
    "VFIO module": check_module,
    "lockdown": check_lockdown,
    "IOMMU": check_iommu,
    "interrupt remapping": check_remapping,
    "locked memory": check_locked_memory,
    "endpoint": check_present,
    "driver": _of_function(check_driver),
    "IOMMU group": _of_function(check_group),
    "device node": _of_function(check_node),
    "in use": _of_function(check_holders),
    "power state": _of_function(check_power),
    "link": _of_function(check_link),
    "BARs": _of_function(check_bars),
    "decoding": _of_function(check_decoding),
    "reset on open": _of_function(check_reset),
    "ATS": _of_function(check_ats),
    "CAPS": _of_function(check_caps),
}
"""All rows; a row may depend on fixes of earlier ones."""


def examine(subject: Subject) -> Iterator[tuple[str, Diagnosis]]:
    """Yield the rows with their diagnoses."""
    for name, check in ROWS.items():
        yield name, check(subject)
