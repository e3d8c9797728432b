"""Run the cases of the kernel's pci_endpoint kselftest, without the kernel module.

NAME is a full name (pci_ep_bar.BAR4.BAR_TEST), a part of one (BAR4, DOORBELL_TEST) or a shell
pattern. -l, -f/-F, -v/-V, -t/-T and -r are the options of the kselftest with the same meaning: they
take exact names, lower case includes, upper case excludes, and the first match decides.

--device may be repeated: the suites run in parallel, and the exit status is the worst.

The exit status is 0 if no case failed (a skip is no failure), else 1; 5 if the device was lost.
With --baseline only results worse than the baseline's are failures; its own failures are expected.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rcdrv.api import DESTRUCTIVE_NAMES, Endpoint, all_cases, choose_cases
from rcdrv.cli import exit_status, print_error
from rcdrv.cli.common import (
    ENDPOINT,
    RECORD,
    add_bulk,
    endpoint,
    file_name,
    number,
    open_function,
    print_json,
    show,
)
from rcdrv.cli.options import spell
from rcdrv.cli.reconnect import add_reconnect, wait_until_back
from rcdrv.epf_test.suite import Case
from rcdrv.errors import DeviceLost, HostError, RcdrvError
from rcdrv.report import for_terminal
from rcdrv.report.tap import Tap, list_text
from rcdrv.results.baseline import load, shipped
from rcdrv.results.document import to_document
from rcdrv.results.observer import Observer, Observers
from rcdrv.results.result import Baseline, CaseResult, Run
from rcdrv.verdict import Verdict
from rcdrv.wait import Cancel

SEVERAL = True
COMMON_OPTIONS = (*ENDPOINT, *RECORD)


class _Filter(argparse.Action):
    """Collects the selecting options in the given order."""

    def __call__(self, _parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        namespace.filters = [*namespace.filters, (option.lstrip("-"), values)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="tests to run (default: all)")
    add("-l", dest="list", action="store_true", help="list all tests, or those of NAME")
    parser.set_defaults(filters=[])
    for letter, what in (("f", "fixture"), ("v", "variant"), ("t", "test")):
        add(f"-{letter}", action=_Filter, metavar="NAME", help=f"include {what}")
        add(f"-{letter.upper()}", action=_Filter, metavar="NAME", help=f"exclude {what}")
    add("-r", action=_Filter, metavar="NAME", help="run specified test")
    add(
        "--more",
        action="store_true",
        help="run the second suite instead, which finds failures that the kselftest does not",
    )
    add(
        "--size",
        type=number,
        action="append",
        metavar="BYTES",
        help="size of the transfers; may be repeated (default: the kselftest's five)",
    )
    add(
        "--align",
        type=number,
        metavar="BYTES",
        help="place the transfer buffers at odd multiples of this power of two",
    )
    add(
        "--boundaries",
        action="store_true",
        help="instead, run transfers that begin and end around 4 KiB boundaries",
    )
    add(
        "--destructive",
        action="append",
        default=[],
        choices=DESTRUCTIVE_NAMES,
        help="also run the cases of this name, which may crash or reset the endpoint or disturb"
        " this host; may be repeated",
    )
    add(
        "--whole",
        action="store_true",
        help="test BARs above 1 GiB completely, at about 10 MB/s (default: parts of them)",
    )
    add_bulk(parser)
    add("--tap", action="store_true", help="TAP version 13, the default when not on a terminal")
    add_reconnect(parser)
    add(
        "--baseline",
        metavar="NAME|FILE",
        help="exit 0 if nothing is worse than in this output of --json, or than the known limits of"
        f" a board: {', '.join(shipped())}",
    )
    add("--junit", type=file_name, metavar="FILE", help="also write JUnit XML")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    every = all_cases(
        sizes=args.size,
        align=args.align,
        boundaries=args.boundaries,
        whole=args.whole,
        destructive=args.destructive,
        more=args.more,
    )
    if args.list:
        listed = [case.name for case in choose_cases(every, args.names, ())]
        return show(args, {"tests": [str(name) for name in listed]}, list_text(listed).splitlines())
    chosen = choose_cases(every, args.names, args.filters)
    baseline = None if args.baseline is None else load(args.baseline, cancel)

    def body(args: argparse.Namespace, cancel: Cancel, observer: Observer) -> int:
        return _run(args, cancel, chosen, baseline, _Spelled(observer))

    if len(args.devices) > 1:
        from rcdrv.cli.suites import run_suites

        return run_suites(args, cancel, [case.name for case in chosen], baseline, body)
    return body(args, cancel, _observer(args))


def _run(
    args: argparse.Namespace,
    cancel: Cancel,
    chosen: Sequence[Case],
    baseline: Baseline | None,
    observer: _Spelled,
) -> int:
    """Run the cases on the one device of ``args``."""
    meeting = getattr(args, "meeting", None)  # of several devices
    if meeting is not None:
        from rcdrv.epf_test.more.several import meet

        chosen = meet(chosen, meeting, args.number)
    try:
        with contextlib.ExitStack() as stack:

            def opened() -> Endpoint:
                function = stack.enter_context(open_function(args, cancel))
                args.device = function.address
                return endpoint(args, function)

            def reconnect(lost: DeviceLost) -> Endpoint | None:
                if not args.reconnect:
                    return None
                stack.close()
                try:
                    wait_until_back(args.device, cancel, lost, vf_token=args.vf_token)
                except HostError as error:
                    print_error(error)
                    return None
                return opened()

            result = opened().run(chosen, baseline=baseline, observer=observer, reconnect=reconnect)
            if result.lost is not None:
                raise result.lost
    except RcdrvError as error:
        if not observer.started:
            raise
        # The report is complete and lists the cases not run; only the cause is missing.
        print_error(error)
        return exit_status(error, cancel)
    if result.run.count(Verdict.LOST):
        return DeviceLost.exit_status
    return 1 if result.failed else 0


class _Spelled(Observers):
    """Forwards results after replacing the parameters in their messages by options."""

    started = False

    def start(self, run: Run) -> None:
        self.started = True
        super().start(run)

    def case_finished(self, result: CaseResult) -> None:
        super().case_finished(_spelled(result))

    def finish(self, run: Run) -> None:
        super().finish(replace(run, results=[_spelled(result) for result in run.results]))


def _spelled(result: CaseResult) -> CaseResult:
    return replace(
        result,
        message=spell(result.message),
        hint=spell(result.hint),
        diagnostics=tuple(spell(line) for line in result.diagnostics),
    )


class _Json(Observer):
    """Prints one document at the end, also of a stopped run."""

    def finish(self, run: Run) -> None:
        print_json(to_document(run))


def _observer(args: argparse.Namespace) -> Observer:
    """Return the output: TAP, or a live table on a terminal; and JUnit if requested."""
    shown: list[Observer] = []
    if args.junit:
        from rcdrv.report.junit import JUnit  # imports the XML library

        shown.append(JUnit(args.junit))
    if args.json:
        shown.append(_Json())
    elif args.tap or not sys.stdout.isatty():
        shown.append(Tap(sys.stdout))
    else:
        shown.append(for_terminal(sys.stdout))
    return Observers(*shown)
