"""What one judge says of one case, read from the kselftest's TAP or from rcdrv's JSON."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_RUN = re.compile(r"#\s+RUN\s+(?P<name>\S+) \.\.\.")
_RESULT = re.compile(
    r"(?P<not>not )?ok \d+ (?P<name>\S+)"
    r"(?:\s+# (?P<directive>SKIP|XFAIL|XPASS)\b\s*(?P<reason>.*)|\s+#.*)?"
)
# The harness's own markers of a case's beginning and end say nothing that the result does not.
_MARKER = re.compile(r"#\s+(RUN|OK|FAIL|SKIP)\s")
_ERRNO = re.compile(r"== ret \(-(\d+)\)")
_TIMEOUT = "Test terminated by timeout"


@dataclass(frozen=True)
class Outcome:
    """A verdict and its evidence."""

    verdict: str
    """``pass``, ``fail``, ``skip`` or another verdict of rcdrv's; or one of the two below."""
    cause: str = ""
    """In one word where there is one: the kernel's errno, or rcdrv's reason."""
    words: tuple[str, ...] = ()
    """All that the judge said."""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.verdict} {self.cause}".rstrip()


NOT_RUN = Outcome("not run")
"""Left out on purpose."""
MISSING = Outcome("missing")
"""It should be there, but the judge did not come so far, or does not know the case."""


class Line(NamedTuple):
    """A line of output, and when it came."""

    at: float
    text: str


def stamped(text: str) -> list[Line]:
    """The output of ``ts %.s``: each line behind the time at which it came."""
    pairs = (line.partition(" ") for line in text.splitlines())
    return [Line(float(at), line) for at, _, line in pairs]


def from_tap(lines: Iterable[Line]) -> dict[str, Outcome]:
    """The cases in TAP as the kselftest harness prints it, stdout and stderr together."""
    found: dict[str, Outcome] = {}
    words: list[str] = []
    begun = 0.0
    for at, text in lines:
        if _RUN.match(text):
            begun = at
            words = []
        elif result := _RESULT.fullmatch(text):
            said, seconds = tuple(words), at - begun
            cause = _cause(said)
            # The harness's SKIP() forgets what failed before it: MSIX_TEST ends with one on every
            # function that has fewer than 2048 vectors, whatever became of those it has.
            if result["not"] or cause:
                outcome = Outcome("fail", cause, said, seconds)
            else:
                verdict = (result["directive"] or "pass").lower()
                outcome = Outcome(verdict, result["reason"] or "", said, seconds)
            found[result["name"]] = outcome
        elif text.startswith("# ") and not _MARKER.match(text):
            words.append(text.removeprefix("# "))
    return found


def from_document(text: str) -> dict[str, Outcome]:
    """The cases in what ``rcdrv test --json`` prints.

    :raises ValueError: it is no such document
    """
    document = json.loads(text)
    if not isinstance(document, Mapping) or "results" not in document:
        raise ValueError("not the JSON of rcdrv test")
    return {
        result["name"]: Outcome(
            result["verdict"],
            result["reason"] or "",
            tuple(filter(None, (result["message"], *result["diagnostics"], result["hint"]))),
            result["seconds"],
        )
        for result in document["results"]
    }


def _cause(words: Iterable[str]) -> str:
    """The error numbers that the driver answered, by name and without repetition."""
    text = "\n".join(words)
    if _TIMEOUT in text:
        return "timeout"
    numbers = dict.fromkeys(int(number) for number in _ERRNO.findall(text))
    return ",".join(errno.errorcode.get(number, str(number)) for number in numbers)
