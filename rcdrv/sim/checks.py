"""Checks of a layout's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from rcdrv.errors import UsageError, did_you_mean
from rcdrv.results.units import parse_size

Check = Callable[[object, str], Any]


def integer(low: int, high: int) -> Check:
    def check(value: object, path: str) -> int:
        if isinstance(value, str):
            try:
                value = parse_size(value)
            except ValueError:
                raise UsageError(f"{path}: {value!r} is not an integer") from None
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{path}: {value!r} is not an integer")
        if not low <= value <= high:
            raise UsageError(f"{path}: {value:#x} is not within {low:#x} and {high:#x}")
        return value

    return check


def power_of_two(low: int, high: int) -> Check:
    whole = integer(low, high)

    def check(value: object, path: str) -> int:
        number: int = whole(value, path)
        if number & (number - 1):
            raise UsageError(
                f"{path}: {number:#x} is not a power of two",
                hint=f"the next one is {1 << number.bit_length():#x}",
            )
        return number

    return check


def boolean(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{path}: {value!r} is not true or false")
    return value


def text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{path}: {value!r} is not a string")
    return value


def choice(enum: type[Enum]) -> Check:
    def check(value: object, path: str) -> Enum:
        if isinstance(value, enum):
            return value
        for member in enum:
            if member.value == value:
                return member
        choices = ", ".join(str(member.value) for member in enum)
        raise UsageError(f"{path}: {value!r} is not one of {choices}")

    return check


def parse_table(value: object, path: str, schema: Mapping[str, Check]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}: {value!r} is not a table")
    for key in value:
        if key not in schema:
            raise unknown_key(f"{path}.{key}", list(schema))
    return {key: schema[key](entry, f"{path}.{key}") for key, entry in value.items()}


def unknown_key(path: str, known: Sequence[str]) -> UsageError:
    close = did_you_mean(path.rpartition(".")[2].rpartition(" ")[2], known)
    return UsageError(f"{path}: no such key", hint=close or f"the keys are {', '.join(known)}")
