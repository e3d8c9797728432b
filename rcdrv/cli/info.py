"""Show the function: IDs, BARs, capabilities, interrupts, and how each BAR is accessed.

A function of this host that cannot be opened is shown from sysfs, with the reason; the exit status
is then 3.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from rcdrv.address import default_address
from rcdrv.cli import list as list_command
from rcdrv.cli import print_error
from rcdrv.cli.common import OPENED, RECORD, error_document, open_function, show
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
    return show(args, document, _lines(document))


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
    lines = [list_command.headline(host), f"class      {host['class']:#08x}"]
    lines += list_command.host_lines(host)
    show(args, {**error_document(host["address"], error), "host": host}, lines)
    if not args.json:
        sys.stdout.flush()
        print_error(error)
    return error.exit_status


def _lines(info: dict[str, Any]) -> Iterator[str]:
    vendor, device = info["vendor_id"], info["device_id"]
    yield f"{info['device']}  {vendor:04x}:{device:04x}  {info['part']}  ({info['backend']})"
    yield f"class      {info['class']:#08x}, revision {info['revision']:#04x}"
    if info["class"] >> 8 == CLASS_MEMORY_RAM:
        yield "registers  those of pci-epf-vntb, by its class: rcdrv ntb info shows them"
    else:
        yield f"registers  BAR{info['reg_bar']} by its ID, DMA alignment {info['dma_align']:#x}"
    for bar in info["bars"]:
        line = f"BAR{bar['bar']}       {size_text(bar['size']):>9}  {bar['type']}, {bar['access']}"
        if bar["access"] == "sparse":
            line += " " + ", ".join(f"{at:#x}+{size:#x}" for at, size in bar["mapped"])
        if bar["resizable_to"]:
            sizes = bar["resizable_to"]
            line += f", resizable {size_text(sizes[0])} to {size_text(sizes[-1])}"
        yield line
    counts = ", ".join(f"{kind} {count}" for kind, count in info["interrupts"].items() if count)
    yield f"interrupts {counts or 'none'}"
    if info["msix_table"]:
        table = info["msix_table"]
        yield (
            f"MSI-X      table BAR{table['bar']}+{table['offset']:#x},"
            f" PBA BAR{table['pba_bar']}+{table['pba_offset']:#x}"
        )
    if info["link"]:
        link = info["link"]
        yield (
            f"link       {link['speed_gts']:g} GT/s x{link['width']}"
            f" (can do {link['max_speed_gts']:g} GT/s x{link['max_width']})"
        )
    reset = info["reset"]
    how = "FLR" if reset["flr"] else "yes, without FLR" if reset["available"] else "none"
    if info["host"]:
        how += f" (the kernel's way: {' '.join(info['host']['reset_methods']) or 'none'})"
    yield f"reset      {how}"
    if info["host"]:
        yield f"host       {list_command.host_lines(info['host'])[0]}"
    yield "IOVA       " + ", ".join(f"{a:#x}-{b:#x}" for a, b in info["iova_ranges"])
    for cap in info["capabilities"]:
        yield f"[{cap['offset']:03x}]      {cap['name']}"
    for note in info["notes"]:
        yield f"note       {note}"
    if info["recording"]:
        yield from _recording_lines(info["recording"])


def _recording_lines(recording: dict[str, Any]) -> Iterator[str]:
    command = " ".join(recording["command"])
    yield f"recorded   {command or 'no command'}, by rcdrv {recording['rcdrv']}"
    yield f"           {recording['events']} events in {recording['seconds']:.3f} s"
    causes = {"killed": "the run was killed, or the disk was full", "size": "at its largest size"}
    why = causes.get(recording["cut_off"])
    if why:
        yield f"           cut off: {why}"
    for name, verdict, reason in recording["verdicts"]:
        yield f"           {verdict:5} {name} {reason}".rstrip()
