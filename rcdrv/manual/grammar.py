"""The command line as data: commands with their options and arguments.

Read from the argparse parser itself, so it cannot disagree. Only this module uses argparse's
internals (``_actions``, ``_action_groups``).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from rcdrv.address import prefixes
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import preset_names


class Kind(Enum):
    """Kind of a value, for completion."""

    PLAIN = "plain"
    WORDS = "words"
    """A word of :attr:`Parameter.words`."""
    FILE = "file"
    ADDRESS = "address"
    """Value of ``--device``."""
    SPEC = "spec"
    """Argument of ``rcdrv sim``: a preset or a TOML file."""


Font = Callable[[str], str]
"""Sets a text in the font of what is typed as it stands, or of what stands for something."""


class Parameter(NamedTuple):
    """An option; without flags, a positional argument."""

    flags: tuple[str, ...]
    metavar: str
    """Placeholder of its value; empty if it takes none."""
    help: str
    kind: Kind = Kind.PLAIN
    words: tuple[str, ...] = ()
    optional: bool = False
    """Whether its value, or the argument, may be omitted."""
    repeated: bool = False
    """Whether it takes any number of values."""
    required: bool = False
    """Whether the option must be given."""
    group: str = ""
    """Its heading, if not argparse's own."""

    def value(self, literal: Font = str, variable: Font = str) -> str:
        """Return its value as in a usage line: ``N``, ``[ADDRESS]``, ``[NAME...]``."""
        text = variable(self.metavar) if self.metavar else ""
        if self.kind is Kind.WORDS and self.metavar == "|".join(self.words):
            text = "|".join(map(literal, self.words))
        text += "..." * self.repeated
        return f"[{text}]" if self.optional and text else text

    def usage(self, literal: Font = str, variable: Font = str) -> str:
        """Return it as in a usage line: ``[--bar N]``, ``ADDRESS``."""
        flag = map(literal, self.flags[-1:])
        text = " ".join(filter(None, (*flag, self.value(literal, variable))))
        return f"[{text}]" if self.flags and not self.required else text


class Command(NamedTuple):
    """A command; the program itself is one."""

    path: tuple[str, ...]
    """``('rcdrv', 'ntb', 'ping')``."""
    summary: str
    description: str
    parameters: tuple[Parameter, ...]
    """Its own, in the order of --help, without those in :attr:`common`."""
    common: tuple[Parameter, ...]
    """Common options that it takes."""
    children: tuple[Command, ...]

    @property
    def name(self) -> str:
        return " ".join(self.path)

    @property
    def options(self) -> tuple[Parameter, ...]:
        return tuple(one for one in self.parameters if one.flags)

    @property
    def arguments(self) -> tuple[Parameter, ...]:
        return tuple(one for one in self.parameters if not one.flags)

    @property
    def synopsis(self) -> tuple[str, ...]:
        """Return its name, and one item for each of its own options and arguments."""
        return (self.name, *(one.usage() for one in (*self.options, *self.arguments)))

    @property
    def shared(self) -> tuple[Parameter, ...]:
        """Parameters that all of its commands take, described once."""
        if len(self.children) < 2:
            return ()
        first, *others = (child.parameters for child in self.children)
        return tuple(one for one in first if all(one in other for other in others))

    def without(self, parameters: Sequence[Parameter]) -> Command:
        """Return the command without these parameters."""
        return self._replace(
            parameters=tuple(one for one in self.parameters if one not in parameters)
        )

    def walk(self) -> Iterator[Command]:
        """Yield this command and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def known_addresses() -> tuple[str, ...]:
    """Return address prefixes for completion, and the presets' whole addresses."""
    started = (f"{prefix}{name}" for prefix in prefixes(started=True) for name in preset_names())
    return (*prefixes(started=False), *started)


_KINDS = {"ADDRESS": Kind.ADDRESS, "SPEC": Kind.SPEC} | dict.fromkeys(
    ("FILE", "DIR", "FILE|DIR"), Kind.FILE
)
"""Kinds of values that the converter does not show."""


def command_tree(parser: argparse.ArgumentParser) -> Command:
    """Return the whole command line, as :func:`rcdrv.cli.whole_parser` has it."""
    common = frozenset(
        (action.dest, flag)
        for action in parser._actions
        if action.dest != "version"
        for flag in action.option_strings
    )
    return _command(parser, ("rcdrv",), "drive a PCIe endpoint from its root complex", common)


def _command(
    parser: argparse.ArgumentParser,
    path: tuple[str, ...],
    summary: str,
    common: frozenset[tuple[str, str]],
) -> Command:
    arguments: list[Parameter] = []
    options: list[Parameter] = []
    shared: list[Parameter] = []
    children: list[Command] = []
    # argparse's own two groups come first, and need no heading.
    for number, group in enumerate(parser._action_groups):
        heading = group.title or "" if number > 1 else ""
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                children = _children(action, path, common)
                continue
            if action.help is argparse.SUPPRESS:
                continue
            # By destination too: -d is --device, but the DMA option of `rcdrv pcitest`.
            if not action.option_strings:
                arguments.append(_parameter(action, heading))
            elif all((action.dest, flag) in common for flag in action.option_strings):
                shared.append(_parameter(action, heading))
            else:
                options.append(_parameter(action, heading))
    return Command(
        path,
        summary,
        (parser.description or "").strip(),
        (*arguments, *options),
        tuple(shared),
        tuple(children),
    )


def _children(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    path: tuple[str, ...],
    common: frozenset[tuple[str, str]],
) -> list[Command]:
    summaries = {action.dest: action.help or "" for action in subparsers._choices_actions}
    return [
        _command(child, (*path, name), summaries[name], common)
        for name, child in subparsers.choices.items()
    ]


def _parameter(action: argparse.Action, heading: str) -> Parameter:
    choices = "|".join(str(choice) for choice in action.choices or ())
    metavar = ""
    if action.nargs != 0:
        metavar = str(action.metavar or choices or action.dest.upper())
    words = _words(action)
    kind = _KINDS.get(metavar, Kind.PLAIN)
    if words:
        kind = Kind.WORDS
    elif getattr(action.type, "__name__", "") == "file_name":
        kind = Kind.FILE
    # Of argparse's formatting only %% is in use.
    text = (action.help or "").replace("%%", "%")
    return Parameter(
        tuple(action.option_strings),
        metavar,
        text,
        kind,
        words,
        optional=action.nargs in ("?", "*"),
        repeated=action.nargs in ("*", "+"),
        required=bool(action.option_strings) and action.required,
        group=heading,
    )


def _words(action: argparse.Action) -> tuple[str, ...]:
    """Return the values for completion: all, or the known ones."""
    if action.choices:
        return tuple(str(choice) for choice in action.choices)
    if getattr(action.type, "__name__", "") == "bar_number":
        return ("0", "1", "2", "3", "4", "5")
    if action.dest == "names":
        from rcdrv.epf_test.more import MORE  # not for each touch of the tabulator key
        from rcdrv.epf_test.suite import cases

        return tuple(str(case.name) for case in (*cases(), *MORE))
    if action.dest == "fault":
        return tuple(FAULTS)
    return ()
