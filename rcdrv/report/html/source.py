"""Reader of result files: every error names its place in the file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rcdrv.errors import UsageError
from rcdrv.files import LARGEST_RESULT, parse_json, read_descriptor, read_file
from rcdrv.results.layout import Bar
from rcdrv.verdict import Verdict
from rcdrv.wait import Cancel

_COMMANDS = (
    "test, check, ring, bench, info, ntb ping, fuzz layout, fuzz replay or fuzz device, or the"
    " examples.jsonl of a fuzz campaign"
)
_LONGEST = 10**18
"""Limit of a duration in nanoseconds: thirty years; floats are exact below it."""


class Node:
    """A JSON value and its place in the file, for error messages."""

    __slots__ = ("_parent", "_step", "value")

    def __init__(self, value: Any, step: str, parent: Node | None = None) -> None:
        self.value = value
        self._step = step
        self._parent = parent

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
        raise UsageError(f"{self.where}: {shown} is not {expected}", hint=_hint())

    def has(self, *keys: str) -> bool:
        """Return whether this is an object with all of these members."""
        return isinstance(self.value, dict) and all(key in self.value for key in keys)

    def __getitem__(self, key: str) -> Node:
        """Return a required member."""
        if not isinstance(self.value, dict):
            self.wrong("an object")
        if key not in self.value:
            raise UsageError(f"{self.where}: {key} is missing", hint=_hint())
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
        if type(self.value) is not int or not 0 <= self.value < 1 << 64:
            self.wrong("an integer of 64 bits")
        return int(self.value)

    @property
    def number(self) -> float:
        if type(self.value) not in (int, float) or not 0 <= self.value <= _LONGEST:
            self.wrong("a number from 0 on")
        return float(self.value)

    @property
    def nanoseconds(self) -> int:
        if type(self.value) is not int or not 0 <= self.value <= _LONGEST:
            self.wrong("a duration in nanoseconds")
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


Picture = Callable[[Any, str], "tuple[Sequence[Bar], str] | None"]
"""Convert a layout (a TOML table, and its place for messages) to BARs and a doorbell text; None if
it is not a layout."""


class Source(NamedTuple):
    """One result file."""

    name: str
    """File name."""
    kind: str
    """Key of :data:`KINDS`."""
    node: Node
    lines: Sequence[Node] = ()
    """Further lines of a file of JSON lines."""
    picture: Picture = lambda _table, _where: None
    """Converts layouts."""


KINDS: dict[str, tuple[str, ...]] = {
    "test": ("results", "not_run"),
    "ring": ("rings", "irq", "stray_interrupts"),
    "bench": ("bench", "series", "setup"),
    "ping": ("trips", "transmitted"),
    "ping compare": ("endpoints", "ratio"),
    "fuzz layout": ("seed", "examples", "findings"),
    "fuzz replay": ("replayed",),
    "fuzz device": ("sequences", "steps"),
    "check": ("layers", "broken", "side"),
    "info": ("bars", "vendor_id"),
    "error": ("verdict", "message", "hint"),
}
"""Members that identify a document; the first match counts."""


def read(path: str, picture: Picture, cancel: Cancel | None = None) -> list[Source]:
    """Read a file of results; ``-`` is standard input. A command on several devices has one each.

    :raises UsageError: unreadable, not JSON, or not a known document
    """
    try:
        if path == "-":
            data = read_descriptor(sys.stdin.fileno(), LARGEST_RESULT, cancel)
        else:
            data = read_file(Path(path), LARGEST_RESULT, cancel)
    except OSError as error:
        raise UsageError(f"cannot read standard input: {error.strerror}") from None
    name = "standard input" if path == "-" else path
    first, *more = _parse(data, name)
    if more:
        if first.has("seed", "block") and all(line.has("layout", "outcomes") for line in more):
            return [Source(name, "fuzz examples", first, more, picture)]
        raise UsageError(f"{name}: {1 + len(more)} JSON documents in one file", hint=_hint())
    if first.has("devices"):
        return [
            _recognised(f"{name}, {one.said('device')}", one, picture) for one in first["devices"]
        ]
    return [_recognised(name, first, picture)]


def _recognised(name: str, first: Node, picture: Picture) -> Source:
    for kind, keys in KINDS.items():
        if first.has(*keys):
            return Source(name, kind, first, picture=picture)
    raise UsageError(f"{name}: this is no result that a page can be made of", hint=_hint())


def _hint() -> str:
    return f"rcdrv report takes what --json of these commands prints: {_COMMANDS}"


def _parse(data: bytes, name: str) -> list[Node]:
    """Parse one document, or one per line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 text, at byte {error.start}", hint=_hint()) from None
    nodes: list[Node] = []
    where = name
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and _is_json(lines[0]):
            for number, line in enumerate(lines, 1):
                where = f"{name}: line {number}"
                nodes.append(Node(_loads(line), where))
            return nodes
        return [Node(_loads(text), name)]
    except ValueError as error:
        what = f"not JSON: {error}" if text.strip() else "it is empty"
        raise UsageError(f"{where}: {what}", hint=_hint()) from None


def _is_json(text: str) -> bool:
    try:
        _loads(text)
    except ValueError:
        return False
    return True


def _loads(text: str) -> Any:
    return parse_json(text, parse_constant=_no_number)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
