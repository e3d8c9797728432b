"""Messages below cli/ name parameters; the command line names its options."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rcdrv
from rcdrv.bench import plot
from rcdrv.cli import COMMANDS, main, print_error, whole_parser
from rcdrv.cli.options import OPTIONS, spell, spell_document
from rcdrv.epf_vntb import perf
from rcdrv.epf_vntb.echo import TransportPinger
from rcdrv.epf_vntb.netdev import NetInterface
from rcdrv.epf_vntb.registers import choose_map
from rcdrv.epf_vntb.transport import Transport
from rcdrv.errors import UsageError
from rcdrv.fuzz import board, campaign
from rcdrv.host.binding import Binder
from rcdrv.host.replug import rescan

PACKAGE = Path(rcdrv.__file__).parent

SPEAKERS: tuple[Callable[..., object], ...] = (
    rcdrv.open,
    rcdrv.Endpoint.ring,
    rcdrv.Endpoint.test,
    choose_map,
    NetInterface,
    Transport,
    TransportPinger,
    perf.measure,
    Binder.bind,
    rescan,
    board.Shell,
    campaign.Plan,
    plot.draw,
)
"""What a program calls, and the messages speak of."""

OWN_COMMAND_LINE = {
    "fuzz/device/campaign.py": "writes the shell script that replays a finding",
}

_COMMAND = re.compile(rf"(?:^|\brcdrv )(?:{'|'.join(COMMANDS)})\b[^;,:]*")


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def options() -> set[str]:
    return {
        flag
        for parser in parsers(whole_parser())
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
    }


def strings(path: Path) -> Iterator[str]:
    """Every string of a module; what an f-string fills in is ``{}``."""
    tree = ast.parse(path.read_text())
    inner = {
        id(value)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for value in ast.walk(node)
        if value is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        elif isinstance(node, ast.Constant) and id(node) not in inner:
            yield node.value if isinstance(node.value, str) else ""


def below_cli() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.split("/")[0] not in ("cli", "manual") and name not in OWN_COMMAND_LINE:
            yield name, path


def options_named(text: str) -> set[str]:
    """The options that a message names; an option alone is an argument of a program."""
    if text.startswith("--") and " " not in text:
        return set()
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", _COMMAND.sub("", text)))


def test_no_message_below_cli_names_an_option() -> None:
    ours = options()
    found = [
        f"{name}: {text!r}"
        for name, path in below_cli()
        for text in strings(path)
        if ours & options_named(text)
    ]
    assert found == []


def test_an_option_in_a_message_is_found() -> None:
    assert options_named("try --irq poll") == {"--irq"}
    assert options_named("rcdrv bind {} --group takes them; or use --force") == {"--force"}


def test_every_parameter_that_a_message_names_has_an_option() -> None:
    single = re.compile(r"(?<![:`])`([a-z_]+)(?:=[^`\s]*)?`(?!`)")
    named = {
        name for _, path in below_cli() for text in strings(path) for name in single.findall(text)
    }
    assert len(named) > 5
    assert sorted(named - OPTIONS.keys()) == []


def test_every_parameter_of_the_table_is_one_of_the_api() -> None:
    parameters = {name for one in SPEAKERS for name in inspect.signature(one).parameters}
    assert sorted(OPTIONS.keys() - parameters) == []


def test_every_option_of_the_table_is_one_of_the_command_line() -> None:
    assert sorted(set(OPTIONS.values()) - options()) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`reg_bar` says where", "--reg-bar says where"),
        ("`irq=poll` works without", "--irq poll works without"),
        ("`force=True` tries", "--force tries"),
        ("no `such` name, ``reg`` and `", "no `such` name, ``reg`` and `"),
    ],
)
def test_a_name_becomes_its_option(text: str, shown: str) -> None:
    assert spell(text) == shown


def test_only_texts_of_a_document_are_spelled() -> None:
    document = {"device": "`irq`", "results": [{"hint": "`irq`", "diagnostics": ["`bar`"]}]}
    assert spell_document(document) == {
        "device": "`irq`",
        "results": [{"hint": "--irq", "diagnostics": ["--bar"]}],
    }


def test_an_error_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(UsageError("`bar` 7 is not there", hint="`reg_bar` says"))
    assert capsys.readouterr().err == "rcdrv: --bar 7 is not there\nhint: --reg-bar says\n"


def test_a_document_names_the_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RCDRV_DEVICE", raising=False)
    monkeypatch.setattr("rcdrv.host.function.candidates", list)
    assert main(["info", "--json"]) == 3
    assert "--device ADDRESS" in json.loads(capsys.readouterr().out)["hint"]
