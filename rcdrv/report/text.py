"""Text of a result, as printable lines."""

from __future__ import annotations

from collections.abc import Iterator

from rcdrv.results.result import CaseResult
from rcdrv.verdict import Verdict


def one_line(text: str) -> str:
    """Return text with unprintable characters as escapes, such as ``\\n``.

    Messages quote the endpoint, which must not break lines, move the cursor, or fail to encode.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def headline(result: CaseResult) -> str:
    """Return the cause of the verdict, or a note on a pass; may be empty.

    A skip's message is complete without its reason (unsupported).
    """
    reason = result.reason.value if result.reason else ""
    if result.verdict is Verdict.SKIP:
        return one_line(result.message or reason)
    return one_line(": ".join(part for part in (reason, result.message) if part))


def details(result: CaseResult) -> Iterator[str]:
    for text in result.diagnostics:
        yield from map(one_line, text.splitlines())
    if result.hint:
        yield f"hint: {one_line(result.hint)}"


def wrapped(text: str, width: int) -> list[str]:
    """Wrap text to at most two lines; the second may end in an ellipsis."""
    if len(text) <= width:
        return [text]
    cut = max((text.rfind(mark, 0, width + 1) for mark in " ,-:"), default=-1)
    cut = cut + 1 if cut > width // 3 else width
    rest = text[cut:].strip()
    return [text[:cut].strip(), rest if len(rest) <= width else f"{rest[: width - 1]}…"]
