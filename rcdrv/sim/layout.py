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
from importlib import import_module
from pathlib import Path
from typing import Any

from rcdrv.errors import UsageError, did_you_mean, missing_module
from rcdrv.files import read_text
from rcdrv.sim.checks import parse_table, unknown_key
from rcdrv.sim.description import BarLayout, BarType, DoorbellLayout, Layout, checks_of
from rcdrv.sim.functions import FUNCTIONS, TABLES
from rcdrv.sim.rules import resolve

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
    return resolve(Layout(**values, bars=tuple(bars), tables=tables), source)


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
