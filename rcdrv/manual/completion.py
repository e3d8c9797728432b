"""Completion of the command line: rcdrv answers, and a short script of each shell asks.

A script runs ``rcdrv --complete WORD...``, the last of which is being typed: the rcdrv in PATH, as
the tabulator key must not run what a folder has under that name. A line of the answer
is a word, and behind a tabulator what it means; or ``/PREFIX`` for the files behind a prefix, which
the shell completes, as it quotes their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rcdrv.manual.grammar import Command, Kind, Parameter, known_addresses
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import preset_names

BASH = """\
# Completion of rcdrv for bash, 4.2 and newer: rcdrv setup completion bash

_rcdrv() {
    # Not COMP_WORDS: bash breaks words at the colons of addresses.
    local line=${COMP_LINE:0:COMP_POINT} words cur word meaning
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur=${words[${#words[@]} - 1]}
    local quote=
    if [[ $cur == [\\'\\"]* ]]; then
        quote=${cur:0:1} cur=${cur:1}
        words[${#words[@]} - 1]=$cur
    fi
    COMPREPLY=()
    while IFS=$'\\t' read -r word meaning; do
        if [[ $word == /* ]]; then
            mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY \\
                < <(compgen -P "${word:1}" -f -- "${cur#"${word:1}"}")
            # bash quotes the names of files, which may be x$(command).
            compopt -o filenames 2>/dev/null
        else
            COMPREPLY+=("$word")
        fi
    done < <(command rcdrv --complete "${words[@]:1}" 2>/dev/null)
    # bash puts an answer behind the last of its word breaks, so what is before it has to go. Inside
    # quotes there are none.
    if [[ -z $quote && $cur == *[:=]* ]]; then
        word=${cur%"${cur##*[:=]}"}
        COMPREPLY=("${COMPREPLY[@]#"$word"}")
    fi
    # An address goes on behind these.
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace 2>/dev/null
    return 0
}

complete -F _rcdrv rcdrv
"""

ZSH = """\
#compdef rcdrv
# Completion of rcdrv for zsh, 5.0 and newer: rcdrv setup completion zsh

local line
local -a found shown
for line in ${(f)"$(command rcdrv --complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)"}; do
    if [[ $line == /* ]]; then
        compset -P "${(b)line[2,-1]}"
        _files
    elif [[ $line == *: ]]; then
        compadd -S '' -- $line
    else
        found+=(${line%%$'\\t'*})
        shown+=("${line/$'\\t'/  -- }")
    fi
done
compadd -l -d shown -a found
"""

FISH = """\
# Completion of rcdrv for fish, 3.0 and newer: rcdrv setup completion fish

function __rcdrv
    set -l words (commandline -opc)
    set -l current (commandline -ct | string replace -r '^["\\']' '')
    for line in (command rcdrv --complete $words[2..-1] $current 2>/dev/null)
        if string match -q '/*' -- $line
            set -l before (string sub -s 2 -- $line)
            set -l path (string sub -s (math (string length -- "$before") + 1) -- $current)
            for file in (__fish_complete_path $path)
                echo $before$file
            end
        else
            echo $line
        end
    end
end

complete -c rcdrv -f -a '(__rcdrv)'
"""


def complete(tree: Command, words: Sequence[str]) -> Iterator[str]:
    """Yield the answer of ``--complete`` for words, the last of which is being typed."""
    *before, word = words or [""]
    if not word.isprintable():  # an answer has a line for each word
        return
    command, count, option, options = tree, 0, None, True
    for one in before:
        children = {child.path[-1]: child for child in command.children}
        if option is not None:
            option = None  # this is its value
        elif options and one.startswith("-"):
            options = one != "--"
            option = _option(command, one)
        elif one in children:
            command = children[one]
        elif children:
            return  # no command has that name
        else:
            count += 1
    start, _, value = word.partition("=")
    if option is not None:
        yield from _values(option, "", word)
    elif options and word.startswith("--") and start != word:
        option = _option(command, start)
        yield from () if option is None else _values(option, f"{start}=", value)
    elif options and word.startswith("-"):
        for known in (*command.options, *command.common):
            yield from (f"{flag}\t{known.help}" for flag in known.flags if flag.startswith(word))
    elif command.children:
        for child in command.children:
            if child.path[-1].startswith(word):
                yield f"{child.path[-1]}\t{child.summary}"
    else:
        arguments = command.arguments
        if arguments and arguments[-1].repeated:  # the following ones are the same
            count = min(count, len(arguments) - 1)
        for argument in arguments[count : count + 1]:
            yield from _values(argument, "", word)


def _option(command: Command, flag: str) -> Parameter | None:
    """Return the option of a command, if it takes a value."""
    every = (*command.options, *command.common)
    return next((one for one in every if flag in one.flags and one.metavar), None)


def _values(parameter: Parameter, before: str, word: str) -> Iterator[str]:
    """Yield the values that begin with ``word``, each behind ``before``."""
    words: Sequence[str] = parameter.words
    if parameter.kind is Kind.FILE:
        yield f"/{before}"
    elif parameter.kind is Kind.SPEC:
        words = preset_names()
        yield f"/{before}"
    elif parameter.kind is Kind.ADDRESS:
        scheme, _, rest = word.partition(":")
        if ",fault=" in word:
            words = [f"{word.rpartition('=')[0]}={name}" for name in FAULTS]
        elif scheme == "vfio-user" or (scheme == "sim" and {*rest} & {*"/."}):
            yield f"/{before}{scheme}:"
        else:
            from rcdrv.host.function import functions

            words = [*known_addresses(), *(one.address for one in functions())]
    yield from (f"{before}{one}" for one in words if one.startswith(word))
