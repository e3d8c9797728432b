"""Rules of a layout: derived keys, and combinations that are impossible."""

from __future__ import annotations

from dataclasses import replace

from rcdrv.errors import UsageError
from rcdrv.sim.description import (
    MSIX_ENTRY_SIZE,
    REGISTERS_SIZE,
    SMALLEST_EPF_BAR,
    BarLayout,
    BarType,
    DoorbellBackend,
    G,
    Layout,
    M,
    pba_size,
)
from rcdrv.sim.functions import FUNCTIONS


def resolve(layout: Layout, source: str) -> Layout:
    """Derive missing keys as the kernel does, then check that all keys fit together."""
    function = FUNCTIONS[layout.function]
    layout = function.place(layout, source)
    register_bar = layout.register_bar
    if register_bar < 0:
        first = layout.next_free_bar(0)
        if first is None:
            raise UsageError(
                f"{source}: no BAR for the registers",
                hint="give at least one BAR another type than reserved",
            )
        register_bar = first
    layout = replace(layout, register_bar=register_bar)
    needed = function.windows(layout)
    if needed > layout.inbound_windows:
        raise UsageError(
            f"{source}: inbound_windows: {layout.inbound_windows} are too few for {needed} BARs",
            hint=f"at least {needed}, or fewer BARs",
        )
    bars = [
        bar if bar is None or bar.size else replace(bar, size=_default_size(layout, index, source))
        for index, bar in enumerate(layout.bars)
    ]
    layout = replace(layout, bars=tuple(bars))
    if layout.msix:
        layout = _place_msix(layout)
    for index, bar in enumerate(bars):
        if bar is not None:
            _check_bar(layout, index, bar, f"{source}: bar{index}")
    _check_registers(layout, source)
    _check_doorbell(layout, source)
    return layout


def _default_size(layout: Layout, index: int, source: str) -> int:
    """Return pci_epf_get_required_bar_size() of the endpoint function's request."""
    bar = layout.bar(index)
    if bar.type in (BarType.FIXED, BarType.RESERVED):
        raise UsageError(
            f"{source}: bar{index}.size is missing",
            hint=f"the hardware decides the size of a {bar.type.value} BAR, so it must be given",
        )
    size = FUNCTIONS[layout.function].bar_size(layout, index)
    size = max(size, SMALLEST_EPF_BAR, 1 * M if bar.type is BarType.RESIZABLE else 0)
    return 1 << (size - 1).bit_length()


def _place_msix(layout: Layout) -> Layout:
    bar = layout.register_bar if layout.msix_bar < 0 else layout.msix_bar
    table = layout.msix_table
    if table < 0:
        table = REGISTERS_SIZE if bar == layout.register_bar else 0
    pba = layout.msix_pba
    if pba < 0:
        pba = table + layout.msix * MSIX_ENTRY_SIZE
    return replace(layout, msix_bar=bar, msix_table=table, msix_pba=pba)


def _check_bar(layout: Layout, index: int, bar: BarLayout, path: str) -> None:
    if bar.type is BarType.RESIZABLE and bar.size < 1 * M:
        raise UsageError(f"{path}.size: a resizable BAR has at least 1M, not {bar.size:#x}")
    if not bar.wide and bar.size > 2 * G:
        raise UsageError(
            f"{path}.size: {bar.size:#x} does not fit a 32-bit BAR",
            hint="set wide = true, or make it 2G at most",
        )
    if bar.wide and index == 5:
        raise UsageError(f"{path}.wide: BAR5 has no next BAR for its upper half")
    if bar.wide and layout.bars[index + 1] is not None:
        raise UsageError(
            f"{path}.wide: BAR{index + 1} is its upper half",
            hint=f"remove bar{index + 1} or set bar{index}.wide = false",
        )


def _check_registers(layout: Layout, source: str) -> None:
    bar = layout.bars[layout.register_bar]
    path = f"{source}: register_bar"
    if bar is None or bar.type is BarType.RESERVED:
        state = "absent" if bar is None else "reserved"
        raise UsageError(f"{path}: BAR{layout.register_bar} is {state}")
    needed = FUNCTIONS[layout.function].registers_size(layout)
    if bar.size < needed:
        raise UsageError(
            f"{source}: bar{layout.register_bar}.size: the registers need {needed:#x} bytes"
        )
    if not layout.msix:
        return
    table_bar = layout.bars[layout.msix_bar]
    if table_bar is None:
        raise UsageError(f"{source}: msix_bar: BAR{layout.msix_bar} is absent")
    parts = (
        ("msix_table", layout.msix_table, layout.msix * MSIX_ENTRY_SIZE),
        ("msix_pba", layout.msix_pba, pba_size(layout.msix)),
    )
    for key, start, size in parts:
        if start % 8:
            raise UsageError(f"{source}: {key}: {start:#x} is not a multiple of 8")
        if start + size > table_bar.size:
            raise UsageError(
                f"{source}: msix: {layout.msix} vectors do not fit BAR{layout.msix_bar}: {key} ends"
                f" at {start + size:#x}, the BAR at {table_bar.size:#x}",
                hint=f"make bar{layout.msix_bar}.size larger or msix smaller",
            )
        if layout.msix_bar == layout.register_bar and start < 0x40:
            raise UsageError(f"{source}: {key}: {start:#x} is inside the registers")


def _check_doorbell(layout: Layout, source: str) -> None:
    doorbell = layout.doorbell
    path = f"{source}: doorbell"
    if doorbell.backend is DoorbellBackend.EXPOSED:
        bar = layout.bars[doorbell.bar]
        if bar is None:
            raise UsageError(f"{path}.bar: BAR{doorbell.bar} is absent")
        if doorbell.offset % 4 or doorbell.offset + 4 > bar.size:
            raise UsageError(
                f"{path}.offset: {doorbell.offset:#x} is no 32-bit register of BAR{doorbell.bar}",
                hint=f"a multiple of 4 below {bar.size:#x}",
            )
    elif doorbell.backend is not DoorbellBackend.NONE:
        # pci_epf_alloc_doorbell_embedded() refuses an unaligned register.
        for key, address in (("address", doorbell.address), ("iova", doorbell.iova)):
            if address % 4:
                raise UsageError(f"{path}.{key}: {address:#x} is not a multiple of 4")
