"""Manual pages, in the man macros that man-db and mandoc both read (man(7))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from rcdrv import __version__
from rcdrv.manual.grammar import Command, Parameter
from rcdrv.manual.topics import ADDRESSES, ENVIRONMENT, EXIT_STATUSES, FILES


def pages(tree: Command) -> dict[str, str]:
    """Return {file name: text}: rcdrv.1, and one page for each command (rcdrv-ring.1)."""
    return {"rcdrv.1": _overview(tree)} | {
        f"{_page_name(command)}.1": _page(tree, command) for command in tree.children
    }


def _page_name(command: Command) -> str:
    return "-".join(command.path[:2])


def _overview(tree: Command) -> str:
    lines = [
        *_head("rcdrv", tree.summary),
        ".SH SYNOPSIS",
        r".B rcdrv",
        r"[\fIOPTION\fR...] \fICOMMAND\fR [\fIARGUMENT\fR...]",
        ".SH DESCRIPTION",
        *_prose(tree.description),
        ".SH COMMANDS",
        "Each has a page of its own.",
        *_definitions((rf"\fBrcdrv\-{one.path[1]}\fR(1)", one.summary) for one in tree.children),
        ".SH OPTIONS",
        "They may stand before the command or behind it.",
        *_parameters(tree.common),
        *_parameters(tree.parameters),
        ".SH ADDRESSES",
        *_definitions((_bold(term), text) for term, text in ADDRESSES),
        *_exit_status(),
        ".SH ENVIRONMENT",
        *_definitions((_bold(term), text) for term, text in ENVIRONMENT),
        ".SH FILES",
        *_definitions((_italic(term), text) for term, text in FILES),
        ".SH SEE ALSO",
        ",\n".join(rf"\fB{_escape(_page_name(one))}\fR(1)" for one in tree.children),
    ]
    return _document(lines)


def _page(tree: Command, command: Command) -> str:
    lines = [*_head(_page_name(command), command.summary), ".SH SYNOPSIS"]
    shared = command.shared
    leaves = [child.without(shared) for child in command.children]
    for index, leaf in enumerate(leaves or (command,)):
        more = r" [\fIOPTION\fR...]" if shared else ""
        lines += [".br"] * bool(index) + [_synopsis(leaf) + more]
    lines += [".SH DESCRIPTION", *_prose(command.description)]
    if command.parameters:
        lines += [".SH OPTIONS", *_parameters(command.parameters)]
    if leaves:
        lines.append(".SH COMMANDS")
    for leaf in leaves:
        lines += [f".SS {_escape(leaf.name)}", *_prose(leaf.description or leaf.summary)]
        lines += _parameters(leaf.parameters)
    if shared:
        lines += [".SS All of these", "They also take:", *_parameters(shared)]
    names = [option.flags[-1] for option in command.common if option.flags[-1] != "--help"]
    lines += [
        ".SH COMMON OPTIONS",
        r"Described in \fBrcdrv\fR(1): " + ", ".join(map(_bold, names)) + ".",
        *_exit_status(),
        ".SH SEE ALSO",
        r"\fBrcdrv\fR(1)",
    ]
    return _document(lines)


def _head(name: str, summary: str) -> list[str]:
    # No date: the same source makes the same page.
    return [
        rf".\" Made from the command line parser of rcdrv {__version__}.",
        f'.TH {_escape(name.upper())} 1 "" "rcdrv {__version__}" "User Commands"',
        ".nh",
        ".ad l",
        ".SH NAME",
        rf"{_escape(name)} \- {_escape(summary)}",
    ]


def _document(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _synopsis(command: Command) -> str:
    parameters = (*command.options, *command.arguments)
    return " ".join((_bold(command.name), *(one.usage(_bold, _italic) for one in parameters)))


def _parameters(parameters: Sequence[Parameter]) -> list[str]:
    lines: list[str] = []
    for heading, group in groupby(parameters, key=lambda one: one.group):
        if heading:
            lines += [".PP", f"{_escape(heading[0].upper() + heading[1:])}:"]
        lines += _definitions((_term(one), one.help) for one in group)
    return lines


def _term(parameter: Parameter) -> str:
    """Format the term of a parameter: ``-v, --verbose``, ``--bar N``."""
    flags = ", ".join(map(_bold, parameter.flags))
    return " ".join(filter(None, (flags, parameter.value(_bold, _italic))))


def _exit_status() -> list[str]:
    rows = ((_bold(str(status)), text) for status, text in EXIT_STATUSES.items())
    return [".SH EXIT STATUS", *_definitions(rows)]


def _definitions(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [line for term, text in rows for line in (".TP", term, _guard(_escape(text)))]


def _prose(text: str) -> list[str]:
    """Format a docstring's paragraphs: `code` becomes bold; indented text stays verbatim."""
    lines: list[str] = []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip("\n"))):
        lines += [".PP"] * bool(number)
        source = paragraph.splitlines()
        if all(line.startswith("    ") for line in source):
            lines += [".EX", *(_guard(_escape(line)) for line in source), ".EE"]
            continue
        for line in source:
            # "layout: a campaign over layouts" is an entry of a list.
            if re.match(r"\w+: ", line) and line is not source[0]:
                lines.append(".br")
            pieces = re.split(r"`([^`]+)`", line.strip())
            lines.append(
                _guard("".join(_bold(p) if odd % 2 else _escape(p) for odd, p in enumerate(pieces)))
            )
    return lines


def _escape(text: str) -> str:
    """Escape text; a hyphen stays one that can be copied into a shell."""
    return text.replace("\\", r"\e").replace("-", r"\-")


def _guard(line: str) -> str:
    """Guard a line that begins with a dot or an apostrophe, which would be a request."""
    return rf"\&{line}" if line[:1] in (".", "'") else line


def _bold(text: str) -> str:
    return rf"\fB{_escape(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{_escape(text)}\fR"
