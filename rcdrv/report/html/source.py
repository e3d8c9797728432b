"""Reader of result files: what each is a result of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rcdrv.errors import UsageError
from rcdrv.files import LARGEST_RESULT, read_descriptor, read_file
from rcdrv.results.layout import Bar
from rcdrv.results.node import Node, parse
from rcdrv.wait import Cancel

_COMMANDS = (
    "test, check, ring, bench, info, ntb ping, fuzz layout, fuzz replay or fuzz device, or the"
    " examples.jsonl of a fuzz campaign"
)

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
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        try:
            first = parse(lines[0], f"{name}: line 1", _hint())
        except UsageError:  # one document of many lines
            return [parse(text, name, _hint())]
        more = enumerate(lines[1:], 2)
        return [first, *(parse(line, f"{name}: line {at}", _hint()) for at, line in more)]
    return [parse(text, name, _hint())]
