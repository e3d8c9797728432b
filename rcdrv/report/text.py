"""The words of a result, as lines that can be printed anywhere."""

from __future__ import annotations

from collections.abc import Iterator

from rcdrv.results.result import CaseResult
from rcdrv.verdict import Verdict


def one_line(text: str) -> str:
    """``text`` with everything that is not plain text shown as an escape, such as ``\\n``.

    Messages quote what an endpoint says. It may neither end a line, nor move a cursor, nor hold
    what cannot be encoded.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def headline(result: CaseResult) -> str:
    """Return why it did not pass, or a note on a pass; may be empty.

    A skip's message says all: its reason is only that the endpoint does not support it.
    """
    reason = result.reason.value if result.reason else ""
    if result.verdict is Verdict.SKIP:
        return one_line(result.message or reason)
    return one_line(": ".join(part for part in (reason, result.message) if part))


def details(result: CaseResult) -> Iterator[str]:
    """The diagnostics and the hint."""
    for text in result.diagnostics:
        yield from map(one_line, text.splitlines())
    if result.hint:
        yield f"hint: {one_line(result.hint)}"


def wrapped(text: str, width: int) -> list[str]:
    """At most two lines; what does not fit ends in an ellipsis."""
    if len(text) <= width:
        return [text]
    cut = max((text.rfind(mark, 0, width + 1) for mark in " ,-:"), default=-1)
    cut = cut + 1 if cut > width // 3 else width
    rest = text[cut:].strip()
    return [text[:cut].strip(), rest if len(rest) <= width else f"{rest[: width - 1]}…"]
