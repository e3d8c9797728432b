"""A JSON document that somebody else may have written: every error names its place in the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from rcdrv.errors import UsageError
from rcdrv.files import parse_json
from rcdrv.verdict import Verdict

_LONGEST = 10**18
"""Limit of a duration in nanoseconds: thirty years; floats are exact below it."""


class Node:
    """A JSON value and its place in the file, for error messages."""

    __slots__ = ("_hint", "_parent", "_step", "value")

    def __init__(self, value: Any, step: str, parent: Node | None = None, hint: str = "") -> None:
        self.value = value
        self._step = step
        self._parent = parent
        self._hint: str = hint if parent is None else parent._hint

    @property
    def where(self) -> str:
        """Place, such as ``ring.json: rings[3]: status``.

        Built on demand: there may be a million rings.
        """
        before = self._parent.where if self._parent is not None else ""
        if not before:
            return self._step
        return f"{before}{self._step}" if self._step.startswith("[") else f"{before}: {self._step}"

    def wrong(self, expected: str) -> NoReturn:
        """Raise UsageError: the value is not ``expected``."""
        shown = repr(self.value)
        if len(shown) > 60:
            shown = f"{shown[:57]}..."
        raise UsageError(f"{self.where}: {shown} is not {expected}", hint=self._hint)

    def has(self, *keys: str) -> bool:
        """Return whether this is an object with all of these members."""
        return isinstance(self.value, dict) and all(key in self.value for key in keys)

    def __getitem__(self, key: str) -> Node:
        """Return a required member."""
        if not isinstance(self.value, dict):
            self.wrong("an object")
        if key not in self.value:
            raise UsageError(f"{self.where}: {key} is missing", hint=self._hint)
        return Node(self.value[key], key, self)

    def find(self, key: str) -> Node | None:
        """Return a member, or None if it is missing or null."""
        if not isinstance(self.value, dict):
            self.wrong("an object")
        if self.value.get(key) is None:
            return None
        return self[key]

    def items(self) -> Iterator[tuple[str, Node]]:
        if not isinstance(self.value, dict):
            self.wrong("an object")
        for key in self.value:
            yield key, self[key]

    def __iter__(self) -> Iterator[Node]:
        if not isinstance(self.value, list):
            self.wrong("a list")
        for index, value in enumerate(self.value):
            yield Node(value, f"[{index}]", self)

    def entries(self, count: int) -> Sequence[Node]:
        """Return the entries of a list of exactly this length."""
        found = tuple(self)
        if len(found) != count:
            self.wrong(f"a list of {count}")
        return found

    @property
    def text(self) -> str:
        if not isinstance(self.value, str):
            self.wrong("a text")
        return str(self.value)

    @property
    def integer(self) -> int:
        """Unsigned integer of 64 bits."""
        return self._whole((1 << 64) - 1, "an integer of 64 bits")

    @property
    def number(self) -> float:
        if type(self.value) not in (int, float) or not 0 <= self.value <= _LONGEST:
            self.wrong("a number from 0 on")
        return float(self.value)

    @property
    def nanoseconds(self) -> int:
        return self._whole(_LONGEST, "a duration in nanoseconds")

    def _whole(self, most: int, what: str) -> int:
        if type(self.value) is not int or not 0 <= self.value <= most:
            self.wrong(what)
        return int(self.value)

    @property
    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            self.wrong("true or false")
        return bool(self.value)

    @property
    def verdict(self) -> Verdict:
        try:
            return Verdict(self.value)
        except ValueError:
            self.wrong(f"one of {', '.join(verdict.value for verdict in Verdict)}")

    def said(self, key: str) -> str:
        """Return a text member, or ``""`` if it is missing or null."""
        found = self.find(key)
        return "" if found is None else found.text


def parse(data: str | bytes, name: str, hint: str) -> Node:
    """Parse a document.

    :param name: its file
    :param hint: of every error
    :raises UsageError: it is none
    """
    try:
        return Node(parse_json(data, parse_constant=_no_number), name, hint=hint)
    except ValueError as error:
        what = f"not JSON: {error}" if data.strip() else "it is empty"
        raise UsageError(f"{name}: {what}", hint=hint) from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
