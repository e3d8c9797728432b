"""File format of a recording: readable lines, compressed by gzip (``zcat FILE``).

The first line names the format and its version. The second describes the function as a JSON object.
Each further line is an event: microseconds since the previous event, a letter, and fields in
hexadecimal without leading zeros; ``!`` and an error at the end mark a call that failed.

| letter | fields | event |
| --- | --- | --- |
| ``r`` | region offset size value | one read; of config space only if the value is new |
| ``w`` | region offset size value | one write; ``@0+10`` is an address in DMA buffer 0 |
| ``R`` | region offset size contents | a block was read |
| ``W`` | region offset size crc | a block was written |
| ``i`` | kind flags start count result | VFIO_DEVICE_SET_IRQS |
| ``n`` | kind vector count | ``count`` interrupts arrived |
| ``m`` | buffer size | a DMA buffer was mapped |
| ``u`` | buffer | a DMA buffer was unmapped |
| ``d`` | buffer offset size contents | the device wrote to a DMA buffer |
| ``h`` | buffer crc | the driver had written to a DMA buffer, before the next write |
| ``p`` | | a wait ended without an event |
| ``z`` | | reset |
| ``l`` | | the transport ended |
| ``b`` | region width | blocks of this BAR move in words of so many bits from here; of 32 before |
| ``t`` | words | a note: the start of a case, or its verdict |
| ``x`` | | the recording is cut off here, at its largest size |

Version 2 cuts blocks at multiples of 64 KiB, and has ``b``. The file grows as the session goes; the
end of the gzip stream, with its CRC, says that it is complete.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rcdrv.device import CONFIG_REGION, IrqKind, SetIrqs
from rcdrv.errors import (
    AccessError,
    DeviceLost,
    EndpointError,
    HostError,
    RcdrvError,
    UsageError,
)
from rcdrv.files import parse_json, read_file
from rcdrv.verdict import NotPassed, Reason, Verdict

VERSION = 2
READABLE = (1, 2)
MOST_EVENTS = 200_000
LARGEST_FILE = 16 << 20
LARGEST_TEXT = 32 << 20
"""Limit of the uncompressed lines in bytes."""

_MAGIC = "rcdrv-recording"
_TRANSPARENT = frozenset("ndpthlb")

Place = tuple[int, int, int]
"""Region, offset, size of an access."""


def _hex(digits: int) -> str:
    """Return the pattern of a number without leading zeros."""
    return f"(?:0|[1-9a-f][0-9a-f]{{0,{digits - 1}}})"


_BUFFER, _COUNT, _WORD, _LONG = map(_hex, (4, 3, 8, 16))
_PLACE, _CONTENTS = f"[0-8] {_LONG}", r"[=hzxc][\w:+/=]*"

_FIELDS = {
    "r": f"{_PLACE} [1248](?: {_LONG})?",
    "w": rf"{_PLACE} [1248] (?:{_LONG}|@{_BUFFER}(?:\+{_LONG}|\^))",
    "R": f"{_PLACE} {_WORD}(?: {_CONTENTS})?",
    "W": f"{_PLACE} {_WORD} {_WORD}",
    "i": f"[0-4] {_hex(2)} {_COUNT} {_COUNT}(?: {_COUNT})?",
    "n": f"[0-4] {_COUNT} {_WORD}",
    "m": f"{_BUFFER} {_hex(12)}",
    "u": _BUFFER,
    "d": f"{_BUFFER} {_WORD} {_WORD} {_CONTENTS}",
    "h": f"{_BUFFER} {_WORD}",
    "t": r"[\w.=-]{1,100}(?: [\w.=-]{1,100}){0,30}",
    "b": "[0-5] (?:20|40)",
    **dict.fromkeys("pzlx", ""),
}
_SHAPES = {op: re.compile(shape, re.ASCII) for op, shape in _FIELDS.items()}
_LENGTHS = {"r": 4, "R": 4, "i": 5}
"""Number of fields, where a failed call has one less."""
_NUMBERS = {"t": 0, "R": 3, "d": 3}
"""Number of fields that are numbers, where others follow."""
_ERRORS: dict[str, type[RcdrvError]] = {
    "lost": DeviceLost,
    "host": HostError,
    "access": AccessError,
    "usage": UsageError,
    "endpoint": EndpointError,
}
_FAILURES = [
    f"{verdict.value}/{reason.value}"
    for verdict in (Verdict.FAIL, Verdict.SKIP, Verdict.LOST)
    for reason in Reason
]
_LINE = re.compile(
    rf"(?P<dt>\d{{1,12}}) (?P<op>[{''.join(_FIELDS)}])(?: (?P<fields>[^!]+?))?"
    rf"(?: !(?P<error>{'|'.join([*_ERRORS, *_FAILURES])}))?",
    re.ASCII,
)


class Event(NamedTuple):
    """One event, a line of the file."""

    time: float
    """Seconds since the start of the recording."""
    op: str
    fields: tuple[Any, ...] = ()
    """Numbers, and text: contents, words of a note, and an address in a buffer."""
    error: str = ""

    @property
    def place(self) -> Place:
        """Of an access."""
        return self.fields[:3]

    @property
    def value(self) -> Any:
        """Of an access: a number, an address in a buffer, or the contents of a block."""
        return self.fields[3]

    @property
    def of_device(self) -> bool:
        """Whether the device did something, or was lost."""
        return self.op in "nld"

    @property
    def acts(self) -> bool:
        """Whether the driver did something that the device may notice at once."""
        return self.op in "wWz"

    @property
    def of_config(self) -> bool:
        """Whether config space was accessed."""
        return self.op in "rwRW" and self.fields[0] == CONFIG_REGION

    @property
    def transparent(self) -> bool:
        """Whether a driver may omit it: an event of the device, or a read of config space."""
        return self.op in _TRANSPARENT or (self.op == "r" and self.of_config)


@dataclass
class Recording:
    """Contents of a recording."""

    version: str
    """Version of rcdrv that recorded it."""
    backend: str
    can_reset: bool
    irqs: tuple[int, ...]
    """Number of vectors of each kind."""
    regions: tuple[tuple[int, int], ...]
    """(Size, flags) of BARs, ROM and config space."""
    config: bytes
    """Config space at the start, with invented addresses of BARs."""
    seed: bytes
    """Seed of the random data of transfers."""
    is_cut: bool = True
    """Blocks are cut at multiples of 64 KiB."""
    events: list[Event] = field(default_factory=list)
    cut_off: str = ""
    """Why it ends before the session did: ``size`` or ``killed``."""

    # -- reading and writing ----------------------------------------------------------------------

    def head(self) -> str:
        """Return the first two lines."""
        head = {
            "rcdrv": self.version,
            "backend": self.backend,
            "reset": self.can_reset,
            "interrupts": self.irqs,
            "regions": self.regions,
            "config": self.config.hex(),
            "seed": self.seed.hex(),
        }
        return f"{_MAGIC} {VERSION}\n{json.dumps(head)}\n"

    @classmethod
    def read(cls, path: str) -> Recording:
        """Read a file, which is not trusted.

        :raises UsageError: not readable, or not a recording of this version
        """
        content = read_file(Path(path), LARGEST_FILE)
        inflate = zlib.decompressobj(wbits=31)
        try:
            text = inflate.decompress(content, LARGEST_TEXT + 1).decode("ascii")
        except (zlib.error, UnicodeDecodeError):
            _refuse(path, "not a recording of rcdrv")
        if len(text) > LARGEST_TEXT:
            _refuse(path, f"more than {LARGEST_TEXT >> 20} MiB unpacked")
        found = re.match(rf"{_MAGIC} (\d{{1,4}})\n", text, re.ASCII)
        if found is None:
            _refuse(path, "not a recording of rcdrv")
        if int(found[1]) not in READABLE:
            _refuse(path, f"version {found[1]} of the format; this is {VERSION}")
        if inflate.eof and not text.endswith("\n"):
            _refuse(path, "truncated")
        head, whole, body = text[found.end() :].partition("\n")
        if not whole:
            _refuse(path, "truncated in its first lines: the run was killed")
        try:
            known = parse_json(head)
        except ValueError as error:
            _refuse(path, f"line 2: {error}")
        for key, is_valid in _HEAD.items():
            if not isinstance(known, dict) or not is_valid(known.get(key)):
                _refuse(path, f"line 2: {key} is missing or invalid")
        recording = cls(
            version=known["rcdrv"],
            backend=known["backend"],
            can_reset=known["reset"],
            irqs=tuple(known["interrupts"]),
            regions=tuple((size, flags) for size, flags in known["regions"]),
            config=bytes.fromhex(known["config"]),
            seed=bytes.fromhex(known["seed"]),
            is_cut=found[1] != "1",
        )
        lines = body[: body.rfind("\n") + 1].splitlines()  # the last one may be half
        recording.events = _events(path, lines)
        if not inflate.eof:
            recording.cut_off = "killed"
            last = recording.events[-1].time if lines else 0.0
            recording.events.append(Event(last, "x", ("killed",)))
        elif recording.events and recording.events[-1].op == "x":
            recording.cut_off = "size"
        return recording

    def line(self, at: int) -> int:
        """Return the line of an event in the file, counted from 1."""
        return at + 3

    def verdicts(self) -> list[tuple[str, str, str]]:
        """Return (name, verdict, reason) of each case, or layer, from the notes."""
        found = []
        name = ""
        for event in self.events:
            match event.op, event.fields:
                case "t", ("case", *words):
                    name = " ".join(words)
                case "t", ("verdict", verdict, reason):
                    found.append((name, verdict, "" if reason == "-" else reason))
        return found

    def summary(self) -> dict[str, Any]:
        """Return the summary that ``rcdrv info`` prints, in plain JSON types."""
        commands = [event.fields[1:] for event in self.events if event.fields[:1] == ("command",)]
        return {
            "rcdrv": self.version,
            "backend": self.backend,
            "command": list(commands[0]) if commands else [],
            "events": len(self.events),
            "cut_off": self.cut_off or None,
            "seconds": round(self.events[-1].time, 6) if self.events else 0.0,
            "verdicts": [list(one) for one in self.verdicts()],
        }


def _refuse(path: str, why: str) -> NoReturn:
    raise UsageError(f"{path}: {why}", hint="`record=FILE` makes a recording")


def _text(shape: str) -> Callable[[object], bool]:
    pattern = re.compile(shape, re.ASCII)
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _numbers(*largest: int) -> Callable[[object], bool]:
    """Return the check of a list of as many numbers as limits."""
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(largest)
        and all(type(n) is int and 0 <= n <= most for n, most in zip(value, largest, strict=True))
    )


_is_region = _numbers((1 << 63) - 1, 15)
_HEAD: dict[str, Callable[[Any], bool]] = {
    "rcdrv": _text(r"[\w.+-]{1,40}"),
    "backend": _text(r"[\w.+-]{1,40}"),
    "reset": lambda value: isinstance(value, bool),
    "interrupts": _numbers(*[2048] * len(IrqKind)),
    "regions": lambda value: (
        isinstance(value, list) and len(value) == CONFIG_REGION + 1 and all(map(_is_region, value))
    ),
    "config": _text("(?:[0-9a-f]{8}){16,1024}"),
    "seed": _text("(?:[0-9a-f]{2}){1,64}"),
}
"""Check of each member of the second line."""


def _events(path: str, lines: Sequence[str]) -> list[Event]:
    if len(lines) > MOST_EVENTS + 1:
        _refuse(path, f"more than {MOST_EVENTS} events")
    events, now = [], 0
    for number, line in enumerate(lines, 3):
        found = _LINE.fullmatch(line)
        op, fields = (found["op"], found["fields"] or "") if found else ("", "")
        if found is None or not _SHAPES[op].fullmatch(fields):
            _refuse(path, f"line {number} is not an event")
        words = fields.split()
        if not found["error"] and len(words) < _LENGTHS.get(op, 0):
            _refuse(path, f"line {number} has no result")
        count = _NUMBERS.get(op, len(words))
        numbers = [word if word[0] == "@" else int(word, 16) for word in words[:count]]
        now += int(found["dt"])
        events.append(Event(now / 1e6, op, (*numbers, *words[count:]), found["error"] or ""))
    return events


# -- errors ---------------------------------------------------------------------------------------


def error_word(error: RcdrvError) -> str:
    """Return the kind of an error as a word; its message may name a host."""
    if isinstance(error, NotPassed):
        return f"{error.verdict.value}/{error.reason.value}"
    return next((word for word, kind in _ERRORS.items() if isinstance(error, kind)), "host")


def error_of(word: str, address: str) -> RcdrvError:
    """Return the error of a word, which was checked when the file was read."""
    message = f"{address}: this failed in the recording ({word})"
    if word in _ERRORS:
        return _ERRORS[word](message)
    verdict, _, reason = word.partition("/")
    return NotPassed(Reason(reason), message, verdict=Verdict(verdict))


# -- events in messages ---------------------------------------------------------------------------


def register(place: Place, word: int | str | None) -> str:
    """Return what is in a register, in words."""
    held = "nothing written" if word is None else _value(word)
    return f"{held} in BAR{place[0]}+{place[1]:#x}"


_VERBS = {
    SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER: "arming",
    SetIrqs.DATA_NONE | SetIrqs.ACTION_MASK: "masking",
    SetIrqs.DATA_NONE | SetIrqs.ACTION_UNMASK: "unmasking",
}


def told(op: str, fields: tuple[Any, ...]) -> str:
    """Return a call of the driver in words."""
    if op in "rwRW":
        region, offset, size = fields[:3]
        place = "config space" if region == CONFIG_REGION else f"BAR{region}"
        place += f"+{offset:#x}"
        article = "an" if size == 1 else "a"
        if op == "r":
            return f"{article} {8 * size}-bit read of {place}"
        if op == "w":
            return f"{article} {8 * size}-bit write of {_value(fields[3])} to {place}"
        if op == "R":
            return f"a read of {size:#x} bytes at {place}"
        return f"a write of {size:#x} bytes (CRC {fields[3]:x}) at {place}"
    if op == "i":
        kind, flags, start, count = fields[:4]
        verb = _VERBS.get(SetIrqs(flags), f"setting to flags {flags:#x}") if count else "disarming"
        vectors = f"{count or 'all'} {IrqKind(kind).name}"
        return f"the {verb} of {vectors}{f' from vector {start}' if start else ''}"
    if op in "mu":
        length = f" of {fields[1]:#x} bytes" if len(fields) > 1 else ""
        return f"DMA buffer {fields[0]}{length} {'' if op == 'm' else 'un'}mapped"
    return {"z": "a reset", "x": "the cut-off of the recording"}.get(op, op)


def _value(word: int | str) -> str:
    if isinstance(word, int):
        return f"{word:#x}"
    number, _, inside = word[1:].rstrip("^").partition("+")
    return f"the address{' (upper half)' if word.endswith('^') else ''} of DMA buffer {number}" + (
        f" + 0x{inside}" if inside not in ("", "0") else ""
    )
