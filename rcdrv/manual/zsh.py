"""Completion for zsh, 5.0 and newer."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rcdrv.manual.grammar import Command, Kind, Parameter, known_addresses
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import preset_names

_HEAD = """\
#compdef rcdrv
# Completion of rcdrv for zsh. Made from the command line parser: rcdrv setup completion zsh

_rcdrv_addresses() {{
    if compset -P 'vfio-user:' || compset -P 'sim:(#b)(*/)'; then
        _files
    elif compset -P 'sim:*,fault='; then
        compadd -- {faults}
    else
        compadd -S '' -- {prefixes}
        compadd -- {addresses}
        local function
        for function in /sys/bus/pci/devices/*(N); do
            # Bridges are not endpoints.
            [[ $(<$function/class) == 0x06* ]] || compadd -- ${{function:t}}
        done
    fi
}}

_rcdrv_specs() {{
    compadd -- {presets}
    _files -g '*.toml(-.)'
}}
"""

_WITH_COMMANDS = """
{function}() {{
    local curcontext=$curcontext context state line ret=1
    typeset -A opt_args
    _arguments -C \\
{arguments} \\
        '1:command:(({commands}))' \\
        '*:: :->command' && ret=0
    if [[ $state == command ]]; then
        curcontext="${{curcontext%:*}}-$words[1]:"
        (( $+functions[{function}_$words[1]] )) && {function}_$words[1] && ret=0
    fi
    return ret
}}
"""

_PLAIN = """
{function}() {{
    _arguments -s \\
{arguments}
}}
"""


def completion(tree: Command) -> str:
    """Return the function, for a file in ``$fpath``."""
    head = _HEAD.format(
        faults=" ".join(FAULTS),
        prefixes=" ".join(one for one in known_addresses() if one.endswith(":")),
        addresses=" ".join(one for one in known_addresses() if not one.endswith(":")),
        presets=" ".join(preset_names()),
    )
    return head + "".join(_functions(tree)) + '\n_rcdrv "$@"\n'


def _functions(command: Command) -> Iterator[str]:
    for child in command.children:
        yield from _functions(child)
    rows = [_option(option) for option in (*command.options, *command.common)]
    rows += [_argument(number, one) for number, one in enumerate(command.arguments, start=1)]
    listed = " \\\n".join(f"        {row}" for row in rows)
    name = "_" + "_".join(command.path)
    if command.children:
        commands = " ".join(
            f"{child.path[-1]}\\:{_evaluated(child.summary)}" for child in command.children
        )
        yield _WITH_COMMANDS.format(function=name, arguments=listed, commands=commands)
    else:
        yield _PLAIN.format(function=name, arguments=listed)


def _option(option: Parameter) -> str:
    flags = " ".join(option.flags)
    description = f"[{_escaped(option.help, '[]')}]"
    value = f":{_escaped(option.metavar)}:{_action(option)}" if option.metavar else ""
    if len(option.flags) == 1:
        return f"'*{flags}{description}{value}'"
    names = ",".join(option.flags)
    return f"'({flags})'{{{names}}}'{description}{value}'"


def _argument(number: int, argument: Parameter) -> str:
    where = "*" if argument.repeated else f"{number}:" if argument.optional else str(number)
    return f"'{where}:{_escaped(argument.metavar)}:{_action(argument)}'"


def _action(parameter: Parameter) -> str:
    if parameter.kind is Kind.WORDS:
        return f"({' '.join(parameter.words)})"
    return {
        Kind.FILE: "_files",
        Kind.ADDRESS: "_rcdrv_addresses",
        Kind.SPEC: "_rcdrv_specs",
    }.get(parameter.kind, " ")


def _escaped(text: str, more: str = "") -> str:
    """Escape for a specification of _arguments, within single quotes."""
    escaped = re.sub(f"([\\\\:{re.escape(more)}])", r"\\\1", text)
    return escaped.replace("'", "'\\''")


def _evaluated(text: str) -> str:
    """Escape for text within ((...)), which _arguments makes the shell parse again."""
    return re.sub(r"([^\w])", r"\\\1", text).replace("'", "'\\''")
