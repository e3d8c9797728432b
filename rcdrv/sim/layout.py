"""Layout of an endpoint: a TOML file that describes a controller and its endpoint function.

The presets in ``presets/`` are layouts; users and the fuzzer write others. A file is checked
completely when it is loaded: an unknown key, a wrong type or an impossible value is a
:class:`UsageError` that names the key and the fix. Every :class:`Layout` can be built.

Missing keys have the defaults of :class:`Layout`, and BAR sizes those of the kernel's pci-epf-test.
Integers may be strings with a K, M, G or T suffix.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rcdrv.errors import UsageError, did_you_mean, missing_module
from rcdrv.files import read_text
from rcdrv.sim.checks import parse_table, unknown_key
from rcdrv.sim.description import (
    MSIX_ENTRY_SIZE,
    REGISTERS_SIZE,
    SMALLEST_EPF_BAR,
    BarLayout,
    BarType,
    DoorbellBackend,
    DoorbellLayout,
    G,
    Layout,
    M,
    checks_of,
    pba_size,
)
from rcdrv.sim.functions import FUNCTIONS, TABLES

BAR_KEYS = [f"bar{index}" for index in range(6)]
SCHEMA, BAR_SCHEMA, DOORBELL_SCHEMA = map(checks_of, (Layout, BarLayout, DoorbellLayout))


def preset_names() -> list[str]:
    from importlib.resources import files

    names = (entry.name for entry in files("rcdrv.sim").joinpath("presets").iterdir())
    return sorted(name[: -len(".toml")] for name in names if name.endswith(".toml"))


def load_layout(spec: str) -> Layout:
    """Load ``PRESET`` or ``FILE.toml``, with ``,key=value`` appended any number of times.

    A key of a table is dotted (``bar2.size``); ``fault`` adds one fault, ``faults`` replaces all.

    :raises UsageError: no such preset or file, or the first error in its contents
    """
    name, *assignments = spec.split(",")
    table = _read(name)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not key or not equals:
            raise UsageError(
                f"{spec!r}: {assignment!r} is not key=value", hint="for example rk3588,hz=250"
            )
        _override(table, key, value)
    return parse_layout(table, name)


def parse_layout(table: Mapping[str, object], source: str = "layout") -> Layout:
    """Check a TOML document, and return its layout.

    :param table: the document as read by tomllib
    :param source: its name in errors
    :raises UsageError: the first error, with its key
    """
    values: dict[str, Any] = {}
    bars: list[BarLayout | None] = [None] * 6
    tables: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{source}: {key}"
        if key in BAR_KEYS:
            bar = BarLayout(**parse_table(value, path, BAR_SCHEMA))
            bars[BAR_KEYS.index(key)] = None if bar.type is BarType.DISABLED else bar
        elif key == "doorbell":
            values[key] = DoorbellLayout(**parse_table(value, path, DOORBELL_SCHEMA))
        elif key in TABLES:
            function = TABLES[key]
            tables[key] = function.settings(**parse_table(value, path, function.schema))
        elif key in SCHEMA:
            values[key] = SCHEMA[key](value, path)
        else:
            raise unknown_key(path, [*SCHEMA, *BAR_KEYS, "doorbell", *TABLES])
    name = values.get("function", Layout.function)
    if name not in FUNCTIONS:
        raise UsageError(f"{source}: function: {name!r} is not one of {', '.join(FUNCTIONS)}")
    values = {**FUNCTIONS[name].defaults, **values}
    return _resolve(Layout(**values, bars=tuple(bars), tables=tables), source)


def _read(name: str) -> dict[str, object]:
    if name.endswith(".toml"):
        return _parse_toml(read_text(Path(name)), name)
    presets = preset_names()
    if name not in presets:
        listed = f"one of {', '.join(presets)}, or the path of a .toml file"
        raise UsageError(f"no preset {name!r}", hint=did_you_mean(name, presets) or listed)
    from importlib.resources import files

    presets_folder = files("rcdrv.sim").joinpath("presets")
    same = presets_folder.joinpath(f"{name}.json")  # in rcdrv.pyz, for a Python without TOML
    if sys.version_info < (3, 11) and same.is_file():
        import json

        document: dict[str, object] = json.loads(same.read_text(encoding="utf-8"))
        return document
    resource = presets_folder.joinpath(f"{name}.toml")
    return _parse_toml(resource.read_text(encoding="utf-8"), name)


def _parse_toml(text: str, name: str) -> dict[str, object]:
    # The same library under two names: it is in the standard library since Python 3.11.
    try:
        toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError as error:
        raise missing_module(str(error.name)) from None
    try:
        document: dict[str, object] = toml.loads(text)
    except ValueError as error:
        raise UsageError(f"{name}: not TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply") from None
    return document


def _override(table: dict[str, object], key: str, text: str) -> None:
    value: object = text
    if key == "fault":
        faults = table.get("faults", [])
        key, value = "faults", [*(faults if isinstance(faults, list) else []), text]
    elif key == "faults":
        value = [name for name in text.split("+") if name]
    elif key != "description":
        value = {"true": True, "false": False}.get(text, text)
    *tables, leaf = key.split(".")
    for name in tables:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{key}: {name} is not a table")
        table = inner
    table[leaf] = value


# -- derived keys, and combinations that are impossible -------------------------------------------


def _resolve(layout: Layout, source: str) -> Layout:
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
