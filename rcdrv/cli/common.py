"""Common parts of the subcommands: options, number formats, output."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

from rcdrv.address import default_address, forms, prefixes, scheme_of
from rcdrv.address import open_function as open_address
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.driver import EpfTest
from rcdrv.errors import RcdrvError, UsageError, did_you_mean
from rcdrv.function import Function
from rcdrv.verdict import verdict_document
from rcdrv.wait import Cancel

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType
    from typing import Any, NoReturn

    from rcdrv.api import Endpoint


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Return a formatter of help, which argparse has made for every option, even without --help."""
    return argparse.RawDescriptionHelpFormatter(prog, width=_terminal_width() - 2)


@cache
def _terminal_width() -> int:
    """Return the number of columns by the rules of :func:`shutil.get_terminal_size`.

    The import of :mod:`shutil` outweighs the parsing.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80


class Parser(argparse.ArgumentParser):
    """Raises invalid arguments as errors, which are reported like all others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _formatter)
        super().__init__(*args, **kwargs)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Raise if help cannot be written, which argparse ignores."""
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            close = did_you_mean(str(value), map(str, action.choices or ()))
            hint = f"{self.prog} --help"
            if isinstance(action, argparse._SubParsersAction):
                # The value of a command's own option, put before the command, is taken for it.
                hint += "; a command's own options stand behind its name"
            raise UsageError(str(error), hint=close or hint) from None

    def options(self, args: argparse.Namespace) -> set[str]:
        """Return the long options that this command line accepts."""
        found = {option for option in self._option_string_actions if option[:2] == "--"}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = action.choices.get(str(getattr(args, action.dest, None)))
                found |= chosen.options(args) if isinstance(chosen, Parser) else set()
        return found


def parse(parser: Parser, arguments: Sequence[str] | None) -> argparse.Namespace:
    args, left = parser.parse_known_args(arguments)
    if not left:
        return args
    from rcdrv.sysfs import is_address  # `ring` on a socket starts without it

    command = getattr(args, "command", None)
    hint = f"{parser.prog} {command} --help" if command else f"{parser.prog} --help"
    if left[0].startswith("--"):
        option, known = left[0].partition("=")[0], parser.options(args)
        if option not in known:  # one that the command does not take is before it
            hint = did_you_mean(option, known) or hint
    elif left[0][:2] in ("-d", "-v"):
        hint = "-d and -v stand before the command; --device and --verbose anywhere"
    elif left[0].startswith(prefixes()) or is_address(left[0]):
        hint = f"an address is the value of an option: --device {left[0]}"
    raise UsageError(f"unrecognized arguments: {' '.join(left)}", hint=hint)


ENDPOINT = ("device", "json", "verbose", "timeout", "reg_bar", "irq", "vf_token")
"""All common options, for commands that drive a pci-epf-test."""
OPENED = ("device", "json", "vf_token")
"""Options of a command that opens a function."""
FUNCTION = ("device", "json")
"""Options of a command that changes a function's binding."""
RECORD = ("record",)
"""Option of a command whose run can be recorded and replayed."""
HOST = ("json",)
"""Options of a command that needs no function."""

Say = Callable[[str], None]

_SHORT = {"device": "-d", "verbose": "-v"}


@cache
def _common() -> dict[str, dict[str, Any]]:
    """Return what add_argument() takes for each common option, by its parameter."""
    return {
        "device": {
            "action": _Device,
            "metavar": "ADDRESS",
            "help": f"{forms()} (default: $RCDRV_DEVICE, else the only endpoint on this host)",
        },
        "json": {"action": "store_true", "help": "print one JSON document"},
        "verbose": {"action": "store_true", "help": "show every register access, on stderr"},
        "timeout": {
            "type": seconds,
            "default": 1.0,
            "metavar": "SECONDS",
            "help": "limit of every wait for the endpoint (default 1.0)",
        },
        "reg_bar": {
            "type": bar_number,
            "metavar": "N",
            "help": "the BAR with the test registers (default: by the part's ID, else by probing)",
        },
        "irq": {
            "choices": [choice.value for choice in IrqChoice],
            "default": "auto",
            "help": "how the endpoint answers (default auto)",
        },
        "vf_token": {
            "metavar": "UUID",
            "help": "shared by the users of a physical function and of its virtual functions, if"
            " all are bound to vfio-pci",
        },
        "record": {
            "type": file_name,
            "metavar": "FILE",
            "help": "record the session between driver and device, for --device replay:FILE",
        },
    }


def _default(name: str) -> object:
    how = _common()[name]
    return how.get("default", False if how.get("action") == "store_true" else None)


def common_options(names: Sequence[str] = ENDPOINT, *, top: bool = False) -> Parser:
    """Return the common options of these names, for use before (``top``) or after a command.

    Those after the command have no defaults, so that they do not override the ones before it.
    """
    options = Parser(add_help=False, argument_default=None if top else argparse.SUPPRESS)
    for name in names:
        spelled = [f"--{name.replace('_', '-')}"]
        if top and name in _SHORT:
            spelled.insert(0, _SHORT[name])
        default = _default(name) if top else argparse.SUPPRESS
        options.add_argument(*spelled, **{**_common()[name], "default": default})
    options.set_defaults(common_options=tuple(names))
    if top:
        options.set_defaults(devices=())
    return options


def refuse_unused(args: argparse.Namespace) -> None:
    command = " ".join(filter(None, (args.command, getattr(args, "action", None))))
    for name in _common():
        if name not in args.common_options and getattr(args, name) != _default(name):
            raise UsageError(
                f"{command} has no use for --{name.replace('_', '-')}",
                hint=f"rcdrv {command} --help",
            )


def refuse_several(args: argparse.Namespace, command: ModuleType) -> None:
    if len(args.devices) > 1 and not getattr(command, "SEVERAL", False):
        raise UsageError(
            f"{args.command} takes one --device, not {len(args.devices)}",
            hint="ring, test and check take several",
        )
    if len(args.devices) > 1 and args.record is not None:
        raise UsageError("--record keeps one session, and several devices make several")


class _Device(argparse.Action):
    """Collects all devices; the last one is the device of commands that take only one."""

    def __call__(self, _parser: Any, namespace: Any, values: Any, _option: Any = None) -> None:
        if not values:  # as of an unset variable: the only endpoint here is not meant
            raise argparse.ArgumentError(self, "it is empty")
        namespace.device = values
        namespace.devices = [*(getattr(namespace, "devices", None) or ()), values]


def number(text: str) -> int:
    """Parse a non-negative number: ``64``, ``0x40``, ``4K``, ``1M``."""
    value = -1
    try:
        value = int(text, 0)
    except ValueError:
        from rcdrv.results.units import parse_size  # here, as it would slow the start of `ring`

        with contextlib.suppress(ValueError):
            value = parse_size(text)
    if value >= 1 << 64:
        raise argparse.ArgumentTypeError("the number does not fit in 64 bits")
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 64, 0x40 or 4K")
    return value


def file_name(text: str) -> Path:
    """Parse the name of a file or folder."""
    if text in ("", "-"):  # an unset variable is not the working directory
        raise argparse.ArgumentTypeError(f"{text!r} is no file; standard output is /dev/stdout")
    from pathlib import Path  # here, like parse_size

    return Path(text)


def positive(text: str) -> int:
    value = number(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text} is not at least one")
    return value


def bar_number(text: str) -> int:
    """Parse ``0`` to ``5``, with or without ``BAR`` before it."""
    digits = text[3:] if text[:3].upper() == "BAR" else text
    if digits not in {"0", "1", "2", "3", "4", "5"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not a BAR: 0 to 5")
    return int(digits)


def word32(text: str) -> int:
    value = number(text)
    if value > 0xFFFFFFFF:
        raise argparse.ArgumentTypeError(f"{text} does not fit in 32 bits")
    return value


def seconds(text: str, most: float = 86400.0) -> float:
    """Parse a time above 0 s and up to a day: seconds, or with units."""
    value = -1.0
    try:
        value = float(text)
    except ValueError:
        from rcdrv.results.units import parse_duration  # here, like parse_size

        with contextlib.suppress(ValueError):
            value = parse_duration(text)
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time in seconds, or such as 500ms, 20m or 1h30m, up to"
            f" {most / 86400:g} d"
        )
    return value


def period(text: str) -> float:
    """Parse a time above 0 s and up to a hundred days."""
    return seconds(text, 8640000.0)


def pause(text: str) -> float:
    """Parse a time of 0 s or more."""
    return 0.0 if text.strip("0.") == "" and text != "" else seconds(text)


def open_function(args: argparse.Namespace, cancel: Cancel) -> Function:
    address = args.device or default_address()
    record = getattr(args, "record", None)
    if record is not None and getattr(args, "reconnect", False):
        raise UsageError("--record keeps one session, and --reconnect may make several")
    if record is not None and getattr(args, "soak", None):
        raise UsageError(
            "--record keeps what can be replayed, and --soak ends by the clock",
            hint="leave --soak out: --count 1000 ends by itself",
        )
    if scheme_of(address).is_vfio:
        guard(args, address)
    function = open_address(address, cancel=cancel, vf_token=args.vf_token, record=record)
    if record is not None:
        function.mark("command", args.command, *_numbers(args))
    function.width = getattr(args, "bulk", function.width)
    # Only now is it known whether a server may truncate its BARs.
    if not getattr(function.device, "sealed", True):
        guard(args, address)
    return function


def _numbers(args: argparse.Namespace) -> list[str]:
    """Return the options that are numbers or switches; texts may be private."""
    given = {name: value for name, value in vars(args).items() if name not in _OF_OUTPUT}
    return [
        f"{name}={value}"
        for name, value in sorted(given.items())
        if name == "irq" or (isinstance(value, (bool, int, float)) and value is not False)
    ]


_OF_OUTPUT = ("in_child", "json", "verbose", "tap")


def add_bulk(parser: argparse.ArgumentParser) -> None:
    """Add --width, for commands that write and read much of a BAR."""
    what = "write and read BARs in words of so many bits (default 64, where these arrive)"
    add = parser.add_argument
    add("--width", dest="bulk", type=int, choices=(32, 64), default=64, help=what)


def add_place(parser: argparse.ArgumentParser, *words: str) -> None:
    """Add BAR, OFFSET, further ``words`` and --width, for commands with accesses of one width."""
    from rcdrv.mmio import WIDTHS

    add = parser.add_argument
    add("bar", type=bar_number, metavar="BAR", help="0 to 5")
    add("offset", type=number, metavar="OFFSET", help="bytes from its start")
    for word in words:
        add(word, type=number, metavar=word.upper())
    add("--width", type=int, choices=WIDTHS, default=32, help="bits (default 32)")


def guard(args: argparse.Namespace, address: str) -> None:
    """Continue in a child process if an access to a mapped BAR may raise SIGBUS.

    That is so for a function of this host, and for a server that may truncate the file of a BAR. A
    software endpoint seals its files.
    """
    if not args.in_child and not scheme_of(address).is_started:
        from rcdrv.cli.guard import continue_in_child

        continue_in_child(address)
        args.in_child = True


def endpoint(args: argparse.Namespace, function: Function) -> Endpoint:
    from rcdrv.api import Endpoint

    return Endpoint(function, **_settings(args))


def drive(args: argparse.Namespace, function: Function) -> EpfTest:
    """Return the pci-epf-test driver alone, so that `ring` starts without the rest of the API."""
    return EpfTest(function, **_settings(args))


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    irq, trace = IrqChoice(args.irq), tracer(args)
    return {"reg_bar": args.reg_bar, "irq": irq, "timeout": args.timeout, "trace": trace}


def tracer(args: argparse.Namespace) -> Callable[[str], None] | None:
    """Return the function that shows register accesses; None without --verbose."""

    reader_lost = False

    def trace(line: str) -> None:
        nonlocal reader_lost
        if reader_lost:  # it must not disturb the clean-up
            return
        try:
            print(line, file=sys.stderr)
        except (OSError, ValueError):
            reader_lost = True

    return trace if args.verbose else None


def warn_left_enabled(left_enabled: bool) -> None:
    """Warn that the endpoint's doorbell may be enabled, if so; the last line of output."""
    if left_enabled:
        print(
            "rcdrv: the endpoint has confirmed no DISABLE: its doorbell may still be enabled",
            file=sys.stderr,
        )


def printer(args: argparse.Namespace) -> Say:
    """Return the function that prints a line at once, or nothing with --json."""
    return say_nothing if args.json else partial(print, flush=True)


def say_nothing(_line: str) -> None:
    """Show nothing."""


def show(args: argparse.Namespace, document: dict[str, Any], lines: Iterable[str]) -> int:
    """Print a result: the document with --json, else the lines. Return exit status 0."""
    if args.json:
        print_json(document)
    else:
        for line in lines:
            print(line)
    return 0


def print_json(document: dict[str, Any]) -> None:
    """Print the one JSON document of this run."""
    import json

    from rcdrv.cli.options import spell_document

    json.dump(spell_document(document), sys.stdout, indent=2)
    sys.stdout.write("\n")


def error_document(device: str | None, error: RcdrvError) -> dict[str, Any]:
    """Return the document of --json for an error before the command has one of its own."""
    return {"device": device, **verdict_document(error)}
