"""Completion for bash, 4.2 and newer, without the package bash-completion."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rcdrv.manual.grammar import Command, Kind, Parameter, known_addresses
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import preset_names

_SCRIPT = """\
# Completion of rcdrv for bash. Made from the command line parser: rcdrv setup completion bash

# The options and commands that may follow COMMAND.
_rcdrv_words() {{
    case $1 in
{words}
    esac
}}

# What completes the value of "COMMAND --option", or the argument "COMMAND NUMBER": a kind and its
# words. Fails for an option without a value.
_rcdrv_value() {{
    case $1 in
{values}
    *) return 1 ;;
    esac
}}

_rcdrv_addresses() {{
    local cur=$1 function
    case $cur in
    vfio-user:*) compgen -P vfio-user: -f -- "${{cur#vfio-user:}}" ;;
    sim:*,fault=*) compgen -P "${{cur%=*}}=" -W {faults} -- "${{cur##*=}}" ;;
    sim:*[/.]*) compgen -P sim: -f -- "${{cur#sim:}}" ;;
    *)
        compgen -W {addresses} -- "$cur"
        for function in /sys/bus/pci/devices/*; do
            # Bridges are not endpoints.
            [[ $(<"$function/class") != 0x06* && ${{function##*/}} == "$cur"* ]] &&
                printf '%s\\n' "${{function##*/}}"
        done
        ;;
    esac 2>/dev/null
}}

_rcdrv() {{
    # Not COMP_WORDS: bash breaks words at the colons of addresses.
    local line=${{COMP_LINE:0:COMP_POINT}} words=() path=rcdrv count=0 skip= word cur kind REPLY
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur=${{words[${{#words[@]}} - 1]}}
    for word in "${{words[@]:1:${{#words[@]}}-2}}"; do
        if [[ $skip ]]; then
            skip=
        elif [[ $word == -* ]]; then
            _rcdrv_value "$path $word" >/dev/null && skip=$word
        elif [[ " $(_rcdrv_words "$path") " == *" $word "* ]]; then
            path+=" $word"
        else
            count=$((count + 1))
        fi
    done
    COMPREPLY=()
    if [[ $skip ]]; then
        REPLY=$(_rcdrv_value "$path $skip")
    elif [[ $cur == --*=* ]]; then
        REPLY=$(_rcdrv_value "$path ${{cur%%=*}}")
        cur=${{cur#*=}}
    elif [[ $cur == -* ]]; then
        REPLY="words $(_rcdrv_words "$path")"
    else
        REPLY=$(_rcdrv_value "$path $((count + 1))") ||
            REPLY="words $(_rcdrv_words "$path" | tr ' ' '\\n' | grep -v '^-' | tr '\\n' ' ')"
    fi
    kind=${{REPLY%% *}}
    case $kind in
    words) mapfile -t COMPREPLY < <(compgen -W "${{REPLY#words}}" -- "$cur") ;;
    file) mapfile -t COMPREPLY < <(compgen -f -- "$cur") && compopt -o filenames 2>/dev/null ;;
    spec)
        mapfile -t COMPREPLY < <(compgen -W {presets} -- "$cur"; compgen -f -- "$cur")
        compopt -o filenames 2>/dev/null
        ;;
    address)
        mapfile -t COMPREPLY < <(_rcdrv_addresses "$cur")
        # bash quotes the names of files, which may be x$(command); what else is there is tame.
        [[ $cur == vfio-user:* || $cur == sim:*[/.]* ]] && compopt -o filenames 2>/dev/null
        ;;
    esac
    # bash puts an answer behind the last of its word breaks, so what is before it has to go.
    if [[ $cur == *[:=]* ]]; then
        word=${{cur%"${{cur##*[:=]}}"}}
        COMPREPLY=("${{COMPREPLY[@]#"$word"}}")
    fi
    # An address goes on behind these.
    [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *: ]] && compopt -o nospace 2>/dev/null
    return 0
}}

complete -F _rcdrv rcdrv
"""


def completion(tree: Command) -> str:
    return _SCRIPT.format(
        words="\n".join(_words(tree)),
        values="\n".join(_values(tree)),
        faults=shlex.quote(" ".join(FAULTS)),
        addresses=shlex.quote(" ".join(known_addresses())),
        presets=shlex.quote(" ".join(preset_names())),
    )


def _words(tree: Command) -> Iterator[str]:
    for command in tree.walk():
        words = [child.path[-1] for child in command.children]
        words += [flag for one in (*command.options, *command.common) for flag in one.flags]
        yield f"    {shlex.quote(command.name)}) echo {shlex.quote(' '.join(words))} ;;"


def _values(tree: Command) -> Iterator[str]:
    for command in tree.walk():
        for number, argument in enumerate(command.arguments, start=1):
            # Any number of arguments: the following ones are the same.
            pattern = "[1-9]*" if argument.repeated else str(number)
            yield _answer(f"{shlex.quote(f'{command.name} ')}{pattern}", argument)
        for option in (*command.options, *command.common):
            if option.metavar:
                names = "|".join(shlex.quote(f"{command.name} {flag}") for flag in option.flags)
                yield _answer(names, option)


def _answer(pattern: str, parameter: Parameter) -> str:
    words = parameter.words if parameter.kind is Kind.WORDS else ()
    return f"    {pattern}) echo {shlex.quote(' '.join((parameter.kind.value, *words)))} ;;"
