"""Description of a function: IDs, BARs, capabilities, interrupts, access."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcdrv import parts, pci
from rcdrv.device import Area, IrqKind, RegionFlag
from rcdrv.function import Function


def describe(function: Function) -> dict[str, Any]:
    """Return everything that is known without touching a BAR."""
    config, device = function.config, function.device
    express, msix = config.express(), config.msix()
    resizable = {entry.bar: list(entry.sizes) for entry in config.resizable_bars()}
    vendor, device_id = config.vendor_id, config.device_id
    part = parts.part_of(vendor, device_id)
    bars = []
    for bar in function.bars:
        if bar is None:
            continue
        region = device.region(bar.index)
        bars.append(
            {
                "bar": bar.index,
                "size": bar.size,
                "type": bar.describe(),
                "address": bar.address,
                "access": _access(region.flags, region.areas, bar.size),
                "mapped": [[area.offset, area.size] for area in region.areas],
                "resizable_to": resizable.get(bar.index, []),
            }
        )
    return {
        "device": function.address,
        "backend": device.backend,
        "vendor_id": vendor,
        "device_id": device_id,
        "part": part.name,
        "revision": config.revision,
        "class": config.class_code,
        "subsystem": list(config.subsystem),
        "reg_bar": part.reg_bar,
        "dma_align": part.align,
        "bars": bars,
        "interrupts": {kind.name.lower(): device.irq_count(kind) for kind in IrqKind},
        "interrupt_pin": config.interrupt_pin,
        "msix_table": None
        if msix is None
        else {
            "bar": msix.table_bar,
            "offset": msix.table_offset,
            "pba_bar": msix.pba_bar,
            "pba_offset": msix.pba_offset,
        },
        "link": None if express is None else express.document(),
        "reset": {
            "available": device.can_reset(),
            "flr": express is not None and express.has_flr,
        },
        "capabilities": [
            {"id": cap.id, "extended": cap.extended, "offset": cap.offset, "name": cap.name}
            for cap in config.capabilities()
        ],
        "iova_ranges": [list(pair) for pair in device.dma_ranges()],
        "missing_bars": list(missing_bars(config.class_code, part, function.bars)),
        "notes": _notes(function, part),
        "recording": getattr(device, "summary", None),
    }


def missing_bars(
    class_code: int, part: parts.Part, bars: Sequence[parts.SeenBar | None]
) -> tuple[int, ...]:
    """Return the BARs that a pci-epf-test on this part has and the function lacks.

    Other endpoint functions use as few BARs as they need.
    """
    return part.missing(bars) if class_code >> 16 == pci.BASE_CLASS_OTHERS else ()


def _notes(function: Function, part: parts.Part) -> list[str]:
    """Return what differs from what is known of the part, a sentence each."""
    config = function.config
    missing = missing_bars(config.class_code, part, function.bars)
    found = [f"{part.name} has {part.bar_text(bar)}, this endpoint does not" for bar in missing]
    if part.broken_ats and config.find(pci.ExtCapId.ATS):
        found.append(f"{part.ats_note}; {parts.ATS_CURE}")
    return found


def _access(flags: RegionFlag, areas: tuple[Area, ...], size: int) -> str:
    """``mapped``, ``sparse`` (mapped in parts) or ``trapped`` (every access is a request)."""
    if not flags & RegionFlag.MMAP or not areas:
        return "trapped"
    return "mapped" if sum(area.size for area in areas) >= size else "sparse"
