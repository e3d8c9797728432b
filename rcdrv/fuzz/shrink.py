"""Shrink a layout to the smallest that still shows a finding.

Works on the table, not on hypothesis's draws, so that a layout written by hand can be shrunk too,
and each remaining key is known to matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

Table = dict[str, Any]

_SIZES = (16, 128, 1 << 12, 1 << 17, 1 << 20)
_SIMPLE = (0, 1, 4)

MOST_TRIES = 1000


def shrink(table: Table, shows: Callable[[Table], bool]) -> Table:
    """Drop keys and simplify values while ``shows`` confirms the finding."""
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
