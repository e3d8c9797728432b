"""What the manual takes from the code when it is built: the usage of commands, and definitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from rcdrv.cli import whole_parser
from rcdrv.manual import topics
from rcdrv.manual.grammar import Command, Parameter, command_tree


class FromMarkdown(SphinxDirective):
    """A directive that stands for some Markdown."""

    has_content = False

    def markdown(self) -> Iterable[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        container = nodes.container()
        self.state.nested_parse(StringList(list(self.markdown())), self.content_offset, container)
        return list(container.children)


class Usage(FromMarkdown):
    """``{usage} ring``: the synopsis of a command and what it takes, off the parser.

    ``{usage} common``: the options of every command.
    """

    required_arguments = 1
    final_argument_whitespace = True

    def markdown(self) -> Iterable[str]:
        tree = command_tree(whole_parser())
        if self.arguments[0] == "common":
            yield from _parameters(tree.common)
            return
        wanted = ("rcdrv", *self.arguments[0].split())
        command = next((one for one in tree.walk() if one.path == wanted), None)
        if command is None:
            raise self.error(f"rcdrv has no command {self.arguments[0]!r}")
        if not command.children:
            yield from _usage(command)
        for child in command.children:
            yield from (f"**{child.name}**: {child.summary}", "")
            yield from _usage(child.without(command.shared))
        if command.shared:
            yield from ("All of these take, too:", "", *_parameters(command.shared))


class Topic(FromMarkdown):
    """``{topic} ADDRESSES``: a table of :mod:`rcdrv.manual.topics`."""

    required_arguments = 1

    def markdown(self) -> Iterable[str]:
        rows = getattr(topics, self.arguments[0])
        yield from _table(rows.items() if isinstance(rows, dict) else rows)


def _usage(command: Command) -> Iterable[str]:
    yield from ("```text", *_wrapped(command.synopsis), "```", "")
    yield from _parameters(command.parameters)


def _wrapped(synopsis: Sequence[str]) -> Iterable[str]:
    """A synopsis in lines that fit on a page."""
    line = synopsis[0]
    for part in synopsis[1:]:
        if len(line) + len(part) > 78:
            yield line
            line = " " * len(synopsis[0])
        line += f" {part}"
    yield line


def _parameters(parameters: Iterable[Parameter]) -> Iterable[str]:
    return _table((_term(one), one.help) for one in parameters if "--help" not in one.flags)


def _table(rows: Iterable[tuple[object, str]]) -> Iterable[str]:
    """Terms and what they mean; nothing at all where there are none."""
    lines = [f"| `{_cell(str(term))}` | {_cell(text)} |" for term, text in rows]
    if lines:
        yield from ("| | |", "| --- | --- |", *lines, "")


def _term(parameter: Parameter) -> str:
    return " ".join(filter(None, (", ".join(parameter.flags), parameter.value())))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("usage", Usage)
    app.add_directive("topic", Topic)
    return {"parallel_read_safe": True}
