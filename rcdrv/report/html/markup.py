"""HTML and SVG without injection: text becomes markup in one place only, escaped.

Results quote what an endpoint says, and reports are opened in browsers.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

from rcdrv.report.text import one_line


class Markup(str):
    """Markup, as opposed to text. Only :func:`element` and :func:`join` make it."""

    __slots__ = ()


Child: TypeAlias = "str | Markup | Iterable[Child] | None"
Attribute: TypeAlias = "str | int | float | None"

_VOID = {"br", "col", "hr", "link", "meta"}


def element(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """Make an element.

    :param children: strings are escaped, with unprintable characters; None is omitted; a list is
        flattened
    :param attributes: None is omitted. A trailing ``_`` (``class_``) is dropped; any other ``_``
        becomes ``-``
    """
    head = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_text(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{head} />")  # so that the page is well-formed XML too
    return Markup(f"<{tag}{head}>{join(*children)}</{tag}>")


def drawing(width: int, height: float, title: str, words: str, parts: Child, class_: str) -> Markup:
    """Make an SVG picture; title and words are for screen readers."""
    return element(
        "svg",
        element("title", title),
        element("desc", words),
        parts,
        viewBox=f"0 0 {width} {height:g}",
        role="img",
        aria_label=f"{title}: {words}",
        class_=class_,
    )


def join(*children: Child) -> Markup:
    """Join children without an enclosing element."""
    return Markup("".join(map(_render, children)))


def style(sheet: str) -> Markup:
    """Make a style sheet from a constant: never from a result."""
    if "</" in sheet:
        raise ValueError("a style sheet that ends its own element")
    return Markup(f"<style>\n{sheet}</style>")


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return _text(child)
    return "".join(map(_render, child))


def _text(text: str) -> str:
    return escape(one_line(text), quote=True)


def _number(value: str | int | float) -> str:
    """Format a coordinate with one decimal."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
