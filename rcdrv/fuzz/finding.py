"""A finding of a layout: what it is, its smallest layout, and its file.

A file is the layout in TOML, with a one-line reason on top::

    # access: 131072 bytes written to BAR2+0x0 (shows registers), which is not allowed
    faults = ["disable-fail"]

    [bar0]

    [bar2]
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdrv.errors import UsageError
from rcdrv.files import make_folder, read_text, replace_file

Table = dict[str, Any]
"""A layout as TOML has it."""

_SIZES = (16, 128, 1 << 12, 1 << 17, 1 << 20)
_SIMPLE = (0, 1, 4)

MOST_TRIES = 1000


@dataclass(frozen=True)
class Finding:
    kind: str
    """``verdict``, ``crash``, ``hang``, ``access`` or ``left``."""
    what: str
    """Identity of the violation, which shrinking preserves."""
    message: str
    """One line for the user."""

    @property
    def key(self) -> tuple[str, str]:
        """Equal for findings of one fault."""
        return self.kind, self.what


# -- shrinking ------------------------------------------------------------------------------------


def shrink(table: Table, shows: Callable[[Table], bool]) -> Table:
    """Drop keys and simplify values while ``shows`` confirms the finding.

    Works on the table, not on hypothesis's draws, so each remaining key is known to matter.
    """
    tries = 0
    changed = True
    while changed:
        changed = False
        for candidate in _simpler(table):
            tries += 1
            if tries > MOST_TRIES:
                return table
            if shows(candidate):
                table, changed = candidate, True
                break
    return table


def _simpler(table: Table) -> Iterator[Table]:
    """Yield smaller tables, the most promising first: without a BAR, a key, simpler values."""
    yield from _plain(table)
    for key in sorted(table, key=lambda key: not isinstance(table[key], dict)):
        yield _without(table, (key,))
    for path in _leaves(table):
        if len(path) > 1:
            yield _without(table, path)
    for path in _leaves(table):
        value = _get(table, path)
        for simpler in _simpler_values(path[-1], value):
            yield _with(table, path, simpler)


def _plain(table: Table) -> Iterator[Table]:
    """Yield tables with default BARs and doorbell, which take several changes at once."""
    bars = [key for key in table if key.startswith("bar")]
    plain: Table = {**table, **{bar: {} for bar in bars}}
    simplest = {"backend": "embedded"}
    if table.get("doorbell", simplest) != simplest:
        for doorbell in ({**table, "doorbell": simplest}, {**plain, "doorbell": simplest}):
            yield {key: doorbell[key] for key in doorbell if key != "register_bar"}
    if plain != table:
        yield plain
    for bar in bars:
        if table[bar]:
            yield {**table, bar: {}}


def _simpler_values(key: str, value: Any) -> Iterator[Any]:
    if key == "faults":
        for index, fault in enumerate(value):
            if len(value) > 1:
                yield value[:index] + value[index + 1 :]
            if "=" in fault:
                yield [*value[:index], fault.partition("=")[0], *value[index + 1 :]]
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from (simple for simple in (_SIZES if key == "size" else _SIMPLE) if simple < value)


def _leaves(table: Table, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _get(table: Table, path: tuple[str, ...]) -> Any:
    for key in path:
        table = table[key]
    return table


def _with(table: Table, path: tuple[str, ...], value: Any) -> Table:
    changed = copy.deepcopy(table)
    _get(changed, path[:-1])[path[-1]] = value
    return changed


def _without(table: Table, path: tuple[str, ...]) -> Table:
    changed = copy.deepcopy(table)
    del _get(changed, path[:-1])[path[-1]]
    return changed


# -- files ----------------------------------------------------------------------------------------


def dump_table(table: Table) -> str:
    lines = [
        f"{key} = {_value(value)}" for key, value in table.items() if key not in _tables(table)
    ]
    for name in sorted(_tables(table)):
        lines += ["", f"[{name}]", *(f"{key} = {_value(v)}" for key, v in table[name].items())]
    return "\n".join(lines).lstrip() + "\n"


def _tables(table: Table) -> list[str]:
    return [key for key, value in table.items() if isinstance(value, dict)]


def _value(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1024:
        return hex(value)
    return json.dumps(value)


def save(folder: Path, finding: Finding, table: Table) -> Path:
    make_folder(folder)
    path = folder / f"{slug(finding.kind, finding.what)}.toml"
    reason = " ".join(finding.message.split())
    replace_file(path, f"# {finding.kind}: {reason}\n{dump_table(table)}".encode())
    return path


def slug(*words: str) -> str:
    """Return words as a file name of letters, digits and hyphens, without a suffix."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:80]


def saved_files(where: Path) -> Iterator[Path]:
    """Return the findings in a file or a folder.

    :raises UsageError: none there
    """
    if where.is_dir():
        files = sorted(where.glob("*.toml"))
        if not files:
            raise UsageError(
                f"{where}: no .toml file in there",
                hint="a run of fuzz layout that found nothing saves none",
            )
        yield from files
    elif where.is_file():
        yield where
    else:
        raise UsageError(f"{where}: no such file or folder")


def reason_of(path: Path) -> str:
    """Return a finding's saved reason; may be empty."""
    first, _, _ = read_text(path).partition("\n")
    return first.removeprefix("#").strip() if first.startswith("#") else ""
