"""The rules of a layout: what follows from other keys, and what cannot go together."""

from __future__ import annotations

from dataclasses import replace

from rcdrv.errors import UsageError
from rcdrv.sim.description import (
    DEFAULT_BAR_SIZES,
    EP_PAGE,
    MSIX_ENTRY_SIZE,
    REGISTERS_SIZE,
    SMALLEST_EPF_BAR,
    VNTB_CONTROL_SIZE,
    BarLayout,
    BarType,
    DoorbellBackend,
    G,
    Layout,
    M,
)


def resolve(layout: Layout, source: str) -> Layout:
    """Fill in what the kernel would derive, then check that all of it fits together."""
    if layout.function == "epf_vntb":
        layout = _place_vntb(layout, source)
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
    usable = [bar for bar in layout.bars if bar is not None and bar.type is not BarType.RESERVED]
    # pci_epf_test_set_bar() goes on without a BAR that gets no window, unless it is that of the
    # registers.
    needed = len(usable)
    if layout.function == "epf_test":
        needed = sum(
            bar is not None and bar.type is not BarType.RESERVED
            for bar in layout.bars[: register_bar + 1]
        )
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


def _place_vntb(layout: Layout, source: str) -> Layout:
    """epf_ntb_init_epc_bar(): a BAR for each construct that has none. Then their sizes."""
    vntb = layout.vntb
    names = ["ctrl_bar", "db_bar", *(f"mw{n}_bar" for n in range(1, vntb.num_mws + 1))]
    bars = {name: getattr(vntb, name) for name in names}
    start = 0
    # The kernel's second loop begins with the first window once more, so it never gets to the last.
    for number, name in enumerate([*names[:3], *names[2:-1]]):
        if bars[name] >= 0:
            continue
        free = layout.next_free_bar(start)
        while free is not None and free in bars.values():
            free = layout.next_free_bar(free + 1)
        if free is None and number > 2:
            vntb = replace(vntb, num_mws=number - 2)
            break
        if free is None:
            raise UsageError(f"{source}: vntb.{name}: no BAR is left for it")
        bars[name], start = free, free + 1
    placed = {name: bar for name, bar in bars.items() if bar >= 0}
    for name, bar in placed.items():
        if layout.bars[bar] is None:
            raise UsageError(f"{source}: vntb.{name}: BAR{bar} is absent")
    if len(set(placed.values())) < len(placed):
        raise UsageError(f"{source}: vntb: two of {', '.join(names)} are the same BAR")
    vntb = replace(vntb, **bars)
    for bar, size in zip(vntb.mw_bars, vntb.mw_sizes, strict=True):
        if bar < 0:
            continue
        entry = layout.bar(bar)
        if size < EP_PAGE or size & (size - 1):
            raise UsageError(f"{source}: vntb: a window of {size:#x} bytes", hint="a power of two")
        if entry.size not in (0, size):
            raise UsageError(
                f"{source}: vntb: BAR{bar} has {entry.size:#x} bytes, its window {size:#x}",
                hint=f"leave bar{bar}.size out",
            )
        layout = replace(
            layout,
            bars=tuple(
                replace(entry, size=size) if index == bar else other
                for index, other in enumerate(layout.bars)
            ),
        )
    return replace(layout, vntb=vntb, register_bar=vntb.ctrl_bar)


def _default_size(layout: Layout, index: int, source: str) -> int:
    """pci_epf_get_required_bar_size() of what pci_epf_test_alloc_space() asks for."""
    bar = layout.bar(index)
    if bar.type in (BarType.FIXED, BarType.RESERVED):
        raise UsageError(
            f"{source}: bar{index}.size is missing",
            hint=f"the hardware decides the size of a {bar.type.value} BAR, so it must be given",
        )
    size = DEFAULT_BAR_SIZES[index]
    if layout.function == "epf_vntb":
        # epf_ntb_config_spad_bar_alloc(), epf_ntb_db_bar_init(); a window has its size already.
        control = VNTB_CONTROL_SIZE + 8 * layout.vntb.spad_count
        size = {layout.register_bar: control, layout.vntb.db_bar: 4 * layout.vntb.db_count}.get(
            index, SMALLEST_EPF_BAR
        )
    elif index == layout.register_bar:
        size = REGISTERS_SIZE
        if layout.msix and layout.msix_bar < 0:
            size += layout.msix * MSIX_ENTRY_SIZE + _pba_size(layout.msix)
    size = max(size, SMALLEST_EPF_BAR, 1 * M if bar.type is BarType.RESIZABLE else 0)
    return 1 << (size - 1).bit_length()


def _pba_size(vectors: int) -> int:
    return -(-vectors // 64) * 8


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
    needed = REGISTERS_SIZE
    if layout.function == "epf_vntb":
        needed = VNTB_CONTROL_SIZE + 8 * layout.vntb.spad_count
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
        ("msix_pba", layout.msix_pba, _pba_size(layout.msix)),
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
