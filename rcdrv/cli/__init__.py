"""The ``rcdrv`` command. Each subcommand has a module here; only the one that runs is imported."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper

from rcdrv import __version__
from rcdrv.errors import HostError, RcdrvError, UsageError, missing_module
from rcdrv.wait import Cancel

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import TextIO

    from rcdrv.cli.common import Parser

COMMANDS = {
    "list": "list the PCI functions of this host that may be endpoints",
    "doctor": "diagnose this host; name the fix for each problem",
    "bind": "bind a PCI function to vfio-pci, so that rcdrv can open it",
    "unbind": "return a PCI function to its previous driver",
    "rescan": "find an endpoint again after it rebooted, and bind it again",
    "reset": "reset the PCI function, or everything below its port",
    "check": "check the endpoint layer by layer, up to the first broken one",
    "ring": "ring the endpoint's doorbell and await the acknowledgement",
    "test": "run the cases of the kernel's pci_endpoint kselftest",
    "pcitest": "accept the options of the kernel's former pcitest program",
    "info": "show the PCI function: IDs, BARs, capabilities, interrupts, access to BARs",
    "regs": "show the test registers, decoded",
    "peek": "read a BAR, one access with exactly the given width",
    "poke": "write a BAR, one access with exactly the given width",
    "fuzz": "search for BAR layouts and commands that break the driver or the endpoint",
    "bench": "measure latency and throughput, as percentiles and plots",
    "ntb": "pci-epf-vntb: link, doorbells, scratchpads, memory windows, ping, network interface",
    "report": "make one HTML page of results in JSON",
    "sim": "serve a software endpoint on a socket",
    "setup": "install or print the udev rule, shell completion and manual pages",
}
"""Every subcommand and its one line of help, in the order of --help."""

_BUG = 70  # EX_SOFTWARE of sysexits.h; no other status means a bug


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status (see :mod:`rcdrv.errors`)."""
    # Not list(...): once rcdrv.cli.list is imported, the name refers to that module here.
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    _prepare_streams(ours=argv is None)

    def whole() -> int:
        with (
            contextlib.closing(Cancel()) as cancel,
            cancel.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        ):
            cancel.on_slow_cleanup = say_cleanup
            if arguments[:1] == ["--complete"]:  # a shell asks, at the tabulator key
                return _complete(arguments[1:])
            # Only as a program: a caller's process must not be forked.
            return _run(arguments, cancel, in_child=argv is not None)

    return program(whole)


def say_cleanup() -> None:
    """Say why a program that was told to stop is still running."""
    complain(
        "rcdrv: stopping: waiting for the endpoint to disable its doorbell or take its link down;"
        " Ctrl-C once more leaves it as it is"
    )


def program(whole: Callable[[], int]) -> int:
    """Return the exit status of ``whole``, or of an exception that it did not handle."""
    try:
        return whole()
    except BrokenPipeError:
        # The reader of our output has closed it, so there is nowhere to report this.
        _silence(sys.stdout)
        return 128 + signal.SIGPIPE
    except Exception as error:
        return _unexpected(error)


def _run(arguments: list[str], cancel: Cancel, *, in_child: bool) -> int:
    args = argparse.Namespace(json="--json" in arguments, device=None)

    def command() -> int:
        nonlocal args
        from rcdrv.cli.common import parse, refuse_several, refuse_unused

        args = parse(build_parser(arguments), arguments)
        refuse_unused(args)
        args.in_child = in_child
        module = import_module(f"rcdrv.cli.{args.command}")
        refuse_several(args, module)
        return int(module.run(args, cancel))

    return answer(lambda: args, cancel, command)


def answer(
    args: Callable[[], argparse.Namespace], cancel: Cancel, command: Callable[[], int]
) -> int:
    """Run a command; report its error, if any, and return the exit status.

    :param args: returns the arguments parsed so far
    """
    try:
        try:
            status = command()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise _exhausted(error) from error
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise UsageError(f"{error.filename}: {error.strerror}") from error
            if error.errno == errno.ENOENT and error.filename is None:  # of getcwd()
                raise HostError("the working directory is gone", hint="cd to another") from error
            raise
        except ImportError as error:
            # dlopen() of a C library fails without an errno.
            if os.strerror(errno.EMFILE) not in str(error):
                name = (error.name or "").partition(".")[0]
                if isinstance(error, ModuleNotFoundError) and name != "rcdrv":
                    raise missing_module(name) from error
                raise
            raise _exhausted(OSError(errno.EMFILE, os.strerror(errno.EMFILE))) from error
        except MemoryError as error:
            raise _exhausted(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))) from error
        sys.stdout.flush()
        return status
    except SystemExit:  # --help, --version, or a child's status
        sys.stdout.flush()
        raise
    except RcdrvError as error:
        status = exit_status(error, cancel)
        with contextlib.suppress(BrokenPipeError):  # the exit status says the same
            report_error(args(), error)
            sys.stdout.flush()
        return status


_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def _exhausted(error: OSError) -> HostError:
    return HostError(
        f"this host has no more to give: {error.strerror}",
        hint="ulimit -a shows the limits; rcdrv needs 64 open files and 256 MB of memory",
    )


def _unexpected(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        complain(f"rcdrv: cannot write the output: {error.strerror}")
        _silence(sys.stdout)
        return HostError.exit_status
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        print_error(_exhausted(error))
        return HostError.exit_status
    if os.environ.get("RCDRV_TRACEBACK"):
        raise error
    complain(
        f"rcdrv: this is a bug in rcdrv: {type(error).__name__}: {error}\n"
        "hint: RCDRV_TRACEBACK=1 in the environment shows where; please report it"
    )
    return _BUG


def _prepare_streams(*, ours: bool) -> None:
    """Replace closed streams (``2>&-``), whose output Python would write elsewhere.

    :param ours: the streams belong to this program, so unencodable characters are escaped
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            # Like Python's own streams: the descriptor stays open when the stream is replaced.
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, closefd=False))  # noqa: SIM115
    if ours and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _silence(stream: TextIO) -> None:
    """Discard the stream's buffer, which would fail again when Python exits."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def exit_status(error: RcdrvError | None, cancel: Cancel) -> int:
    """Return the exit status of an error, or 128 + N after signal N, as a shell does.

    Ctrl-C on a terminal also ends the processes that we started, which may cause the error.
    """
    if error is None:
        return 0
    return 128 + cancel.signal if cancel.signal else error.exit_status


def report_error(args: argparse.Namespace, error: RcdrvError) -> None:
    if args.json:
        from rcdrv.cli.common import error_document, print_json

        print_json(error_document(args.device, error))
    else:
        print_error(error)


def print_error(error: RcdrvError) -> None:
    """Print an error and its hint to stderr, a line each."""
    from rcdrv.cli.options import spell

    complain(spell(f"rcdrv: {error.message}" + (f"\nhint: {error.hint}" if error.hint else "")))


def complain(text: str) -> None:
    """Write to stderr; ignore a full or closed stderr, as the exit status remains.

    Control characters are escaped: names from elsewhere could control the terminal.
    """
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    try:
        print(shown, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def build_parser(arguments: Sequence[str]) -> Parser:
    """Return the parser for this command line, with only the named command in full."""
    from rcdrv.cli.common import ENDPOINT, RECORD, Parser, common_options

    parser = Parser(
        prog="rcdrv",
        description="Userspace PCIe root-complex driver for bringing up PCIe endpoints.",
        parents=[common_options((*ENDPOINT, *RECORD), top=True)],
    )
    parser.add_argument("--version", action="version", version=f"rcdrv {__version__}")
    named = {argument for argument in arguments if argument in COMMANDS}
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, summary in COMMANDS.items():
        if command in named:
            module = import_module(f"rcdrv.cli.{command}")
            child = parsers.add_parser(
                command,
                help=summary,
                description=module.__doc__,
                parents=[common_options(getattr(module, "COMMON_OPTIONS", ENDPOINT))],
            )
            module.add_arguments(child)
        else:
            parsers.add_parser(command, help=summary, add_help=False)
    return parser


def _complete(words: Sequence[str]) -> int:
    from rcdrv.manual.completion import complete
    from rcdrv.manual.grammar import command_tree

    for line in complete(command_tree(build_parser(words)), words):
        print(line)
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """Return the parser with every command in full: for manual pages and completion."""
    return build_parser([*COMMANDS])
