"""List the PCI functions of this host that may be endpoints: a known ID, the class of pci-epf-test
(0xff00) or of pci-epf-vntb (0x0500), or bound to vfio-pci. Bridges are never listed: the root ports
of some parts carry the ID that the part has as an endpoint.

The exit status is 0 also if there is none, as that of lspci; rcdrv doctor judges the host.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rcdrv.cli.common import HOST, show
from rcdrv.host.function import HostFunction, candidates, functions
from rcdrv.results.units import size_text
from rcdrv.sysfs import Paths, name_a_port
from rcdrv.wait import Cancel

COMMON_OPTIONS = HOST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every function that is no bridge")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    del cancel  # there are no waits
    found = [describe(function) for function in (functions() if args.all else candidates())]
    lines = []
    for one in found:
        lines.append(f"{headline(one)}, class {one['class'] >> 8:04x}")
        lines += [f"    {line}" for line in host_lines(one)]
    show(args, {"functions": found}, lines)
    if not found and not args.json:
        print(
            "rcdrv: no endpoint found on this host\n"
            f"hint: {name_a_port(Paths())}; rcdrv list --all shows every function",
            file=sys.stderr,
        )
    return 0


def describe(function: HostFunction) -> dict[str, Any]:
    """Return what the host knows about a function without opening it."""
    link = function.link
    return {
        "address": function.address,
        "vendor_id": function.vendor,
        "device_id": function.device,
        "part": function.part.name,
        "class": function.class_code,
        "driver": function.driver,
        "iommu_group": function.group,
        "group_members": [
            {"address": address, "driver": driver} for address, driver in function.others_in_group
        ],
        "bars": [
            {"bar": bar.index, "size": bar.size, "address": bar.address} for bar in function.bars
        ],
        "link": None if link is None else link.document(),
        "reset_methods": list(function.reset_methods),
        "power_state": function.text("power_state") or None,
    }


def headline(host: dict[str, Any]) -> str:
    return f"{host['address']}  {host['vendor_id']:04x}:{host['device_id']:04x}  {host['part']}"


def host_lines(host: dict[str, Any]) -> list[str]:
    others = ", ".join(
        f"{member['address']} ({member['driver'] or 'no driver'})"
        for member in host["group_members"]
    )
    group = "no IOMMU group"
    if host["iommu_group"] is not None:
        group = f"IOMMU group {host['iommu_group']}" + (f" with {others}" if others else "")
    lines = [f"{'driver ' + host['driver'] if host['driver'] else 'no driver'}, {group}"]
    bars = [
        f"BAR{bar['bar']} {size_text(bar['size'])}" + ("" if bar["address"] else " (not assigned)")
        for bar in host["bars"]
    ]
    lines.append(", ".join(bars) or "no BARs")
    if host["link"]:
        link = host["link"]
        state = f"{link['speed_gts']:g} GT/s x{link['width']}" if link["width"] else "down"
        lines.append(f"link {state} (can do {link['max_speed_gts']:g} GT/s x{link['max_width']})")
    lines.append(f"reset by {', '.join(host['reset_methods']) or 'nothing'}")
    return lines
