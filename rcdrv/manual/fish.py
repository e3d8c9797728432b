"""Completion for fish, 3.0 and newer."""

from __future__ import annotations

from collections.abc import Iterator

from rcdrv.manual.grammar import Command, Kind, Parameter, known_addresses
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import preset_names

_HEAD = """\
# Completion of rcdrv for fish. Made from the command line parser: rcdrv setup completion fish

# The command that is typed so far, and how many arguments it has.
function __rcdrv_state
    set -l path rcdrv
    set -l arguments 0
    set -l skip no
    for word in (commandline -opc)[2..-1]
        if test $skip = yes
            set skip no
        else if string match -q -- '-*' $word
            contains -- "$path $word" {valued}; and set skip yes
        else if contains -- "$path $word" {commands}
            set path "$path $word"
        else
            set arguments (math $arguments + 1)
        end
    end
    echo $path
    echo $arguments
end

function __rcdrv_in
    set -l state (__rcdrv_state)
    test "$state[1]" = "$argv[1]"; or return 1
    # The argument of a given number, or with a + any from there on.
    switch "$argv[2]"
        case ''
            return 0
        case '*+'
            test "$state[2]" -ge (string replace + '' -- $argv[2])
        case '*'
            test "$state[2]" -eq "$argv[2]"
    end
end

function __rcdrv_addresses
    set -l word (commandline -ct)
    if string match -q -- '*,fault=*' $word
        set -l start (string replace -r '=[^=]*$' '=' -- $word)
        printf "$start%s\\n" {faults}
        return
    end
    printf '%s\\n' {addresses}
    for function in /sys/bus/pci/devices/*
        # Bridges are not endpoints.
        string match -q '0x06*' (cat $function/class); or string replace -r '.*/' '' $function
    end
end

complete -c rcdrv -f
"""


def completion(tree: Command) -> str:
    valued = [
        f"{command.name} {flag}"
        for command in tree.walk()
        for option in (*command.options, *command.common)
        if option.metavar
        for flag in option.flags
    ]
    head = _HEAD.format(
        valued=" ".join(map(_quoted, valued)),
        commands=" ".join(_quoted(command.name) for command in tree.walk() if command.path[1:]),
        addresses=" ".join(known_addresses()),
        faults=" ".join(FAULTS),
    )
    return head + "".join(f"{line}\n" for line in _lines(tree))


def _lines(tree: Command) -> Iterator[str]:
    for command in tree.walk():
        for child in command.children:
            yield _line(command.name, f"-a {child.path[-1]}", child.summary, "0")
        for number, argument in enumerate(command.arguments):
            where = f"{number}+" if argument.repeated else str(number)
            if argument.kind is not Kind.PLAIN:
                yield _line(command.name, _value(argument), argument.help, where)
        for option in (*command.options, *command.common):
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                for flag in option.flags
            )
            value = f" -r {_value(option)}" if option.metavar else ""
            yield _line(command.name, flags + value, option.help)


def _line(command: str, what: str, description: str, number: str = "") -> str:
    condition = _quoted(f'__rcdrv_in "{command}" {number}'.rstrip())
    return f"complete -c rcdrv -n {condition} {what.rstrip()} -d {_quoted(description)}"


def _value(parameter: Parameter) -> str:
    """Return the options of ``complete`` for a value."""
    if parameter.kind is Kind.WORDS:
        return f"-f -a {_quoted(' '.join(parameter.words))}"
    if parameter.kind is Kind.FILE:
        return "-F"
    if parameter.kind is Kind.SPEC:
        return f"-F -a {_quoted(' '.join(preset_names()))}"
    if parameter.kind is Kind.ADDRESS:
        return "-f -a '(__rcdrv_addresses)'"
    return "-f"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
