"""Show the function: IDs, BARs, capabilities, interrupts, and how each BAR is accessed.

A function of this host that cannot be opened is shown from sysfs, with the reason; the exit status
is then 3.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rcdrv.address import default_address
from rcdrv.cli import list as list_command
from rcdrv.cli import print_error
from rcdrv.cli.common import OPENED, RECORD, error_document, open_function, print_json
from rcdrv.describe import describe
from rcdrv.errors import HostError, UsageError
from rcdrv.host.function import HostFunction
from rcdrv.pci import CLASS_MEMORY_RAM
from rcdrv.results.units import size_text
from rcdrv.sysfs import Paths, canonical_address
from rcdrv.wait import Cancel

COMMON_OPTIONS = (*OPENED, *RECORD)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # there are only common options


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    try:
        with open_function(args, cancel) as function:
            document = {**describe(function), "host": _host(function.address)}
    except HostError as error:
        return _show_closed(args, error)
    if args.json:
        print_json(document)
    else:
        print_text(document)
    return 0


def _host(address: str) -> dict[str, Any] | None:
    """Return sysfs' data of a function of this host; None for any other function."""
    try:
        return list_command.describe(HostFunction(canonical_address(address), Paths()))
    except (UsageError, HostError):
        return None


def _show_closed(args: argparse.Namespace, error: HostError) -> int:
    host = _host(args.device or default_address())
    if host is None:
        raise error
    if args.json:
        print_json({**error_document(host["address"], error), "host": host})
        return error.exit_status
    print(f"{host['address']}  {host['vendor_id']:04x}:{host['device_id']:04x}  {host['part']}")
    print(f"class      {host['class']:#08x}")
    for line in list_command.host_lines(host):
        print(line)
    sys.stdout.flush()
    print_error(error)
    return error.exit_status


def print_text(info: dict[str, Any]) -> None:
    vendor, device = info["vendor_id"], info["device_id"]
    print(f"{info['device']}  {vendor:04x}:{device:04x}  {info['part']}  ({info['backend']})")
    print(f"class      {info['class']:#08x}, revision {info['revision']:#04x}")
    if info["class"] >> 8 == CLASS_MEMORY_RAM:
        print("registers  those of pci-epf-vntb, by its class: rcdrv ntb info shows them")
    else:
        print(f"registers  BAR{info['reg_bar']} by its ID, DMA alignment {info['dma_align']:#x}")
    for bar in info["bars"]:
        line = f"BAR{bar['bar']}       {size_text(bar['size']):>9}  {bar['type']}, {bar['access']}"
        if bar["access"] == "sparse":
            line += " " + ", ".join(f"{at:#x}+{size:#x}" for at, size in bar["mapped"])
        if bar["resizable_to"]:
            sizes = bar["resizable_to"]
            line += f", resizable {size_text(sizes[0])} to {size_text(sizes[-1])}"
        print(line)
    counts = ", ".join(f"{kind} {count}" for kind, count in info["interrupts"].items() if count)
    print(f"interrupts {counts or 'none'}")
    if info["msix_table"]:
        table = info["msix_table"]
        print(
            f"MSI-X      table BAR{table['bar']}+{table['offset']:#x},"
            f" PBA BAR{table['pba_bar']}+{table['pba_offset']:#x}"
        )
    if info["link"]:
        link = info["link"]
        print(
            f"link       {link['speed_gts']:g} GT/s x{link['width']}"
            f" (can do {link['max_speed_gts']:g} GT/s x{link['max_width']})"
        )
    reset = info["reset"]
    how = "FLR" if reset["flr"] else "yes, without FLR" if reset["available"] else "none"
    if info["host"]:
        how += f" (the kernel's way: {' '.join(info['host']['reset_methods']) or 'none'})"
    print(f"reset      {how}")
    if info["host"]:
        print(f"host       {list_command.host_lines(info['host'])[0]}")
    print("IOVA       " + ", ".join(f"{a:#x}-{b:#x}" for a, b in info["iova_ranges"]))
    for cap in info["capabilities"]:
        print(f"[{cap['offset']:03x}]      {cap['name']}")
    for note in info["notes"]:
        print(f"note       {note}")
    if info["recording"]:
        _print_recording(info["recording"])


def _print_recording(recording: dict[str, Any]) -> None:
    command = " ".join(recording["command"])
    print(f"recorded   {command or 'no command'}, by rcdrv {recording['rcdrv']}")
    print(f"           {recording['events']} events in {recording['seconds']:.3f} s")
    causes = {"killed": "the run was killed, or the disk was full", "size": "at its largest size"}
    why = causes.get(recording["cut_off"])
    if why:
        print(f"           cut off: {why}")
    for name, verdict, reason in recording["verdicts"]:
        print(f"           {verdict:5} {name} {reason}".rstrip())
