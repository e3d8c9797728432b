"""Search for BAR layouts and command sequences that break the driver or the endpoint.

layout: run software endpoints with layouts from plausible to hostile, and compare each outcome with
the expected one. A finding is shrunk, and saved as a TOML file.
replay: run saved files again, also ones written by hand.
device: send commands in every order to the endpoint that --device names, and compare each outcome
with a model of the protocol. A finding is shortened, and printed as a script.

The exit status is 1 if anything was found, else 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

from rcdrv.address import default_address, open_function, scheme_of
from rcdrv.cli.common import (
    FUNCTION,
    HOST,
    common_options,
    file_name,
    guard,
    number,
    positive,
    print_json,
    refuse_unused,
    say_nothing,
    seconds,
    show,
    tracer,
)
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.errors import DeviceLost, HostError, UsageError
from rcdrv.files import make_folder, open_output, replace_file
from rcdrv.function import Function
from rcdrv.wait import Cancel

_OF_LAYOUT = ("device", "json", "timeout", "reg_bar", "irq")
"""Only with --ep, except --json: without it, the endpoints are software endpoints."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    layout = commands.add_parser(
        "layout",
        help="a campaign over layouts",
        parents=[common_options(_OF_LAYOUT)],
        description="Makes software endpoints with layouts from plausible to hostile, and"
        "\nholds what comes out of each against what must come out. With --ep: layouts of a board.",
    )
    add = layout.add_argument
    add("--seconds", type=seconds, metavar="S", help="start no new example after S seconds")
    add("--examples", type=number, metavar="N", help="layouts to try (default 1000)")
    add("--seed", type=number, default=0, metavar="N", help="the same seed, the same layouts")
    add("--workers", type=positive, default=1, metavar="N", help="processes (default 1)")
    add("--plausible", action="store_true", help="only layouts that some controller could have")
    add(
        "--out",
        type=file_name,
        metavar="DIR",
        help="findings and every example; resumed if it exists",
    )
    add("--picture", type=file_name, metavar="FILE.svg", help="draw the coverage")
    add("--dask", metavar="SCHEDULER", help="use the workers of a dask scheduler (tcp://HOST:8786)")
    add("--ep", metavar="COMMAND", help="set a board's layouts: a shell there (ssh root@board)")
    add("--configfs", default="/sys/kernel/config/pci_ep", metavar="PATH", help="there, with --ep")
    add("--dry-run", action="store_true", help="with --ep: show what would be run there")

    replay = commands.add_parser(
        "replay", help="run saved findings again", parents=[common_options(FUNCTION)]
    )
    replay.add_argument("where", type=file_name, metavar="FILE|DIR")
    replay.description = (
        "Runs saved layouts again: in software endpoints of their own, or, with --device, the"
        "\nlayout of one file on the endpoint that has it, through whatever is in between."
    )

    device = commands.add_parser(
        "device",
        help="commands in every order",
        parents=[common_options()],
        description="Sends commands in every order to the endpoint that --device names, and holds"
        " each answer against\na model of the protocol.",
    )
    add = device.add_argument
    add("--seconds", type=seconds, metavar="S", help="start no new sequence after S seconds")
    add("--examples", type=number, metavar="N", help="sequences to try (default 20)")
    add("--steps", dest="length", type=positive, metavar="N", help="in a sequence (default 30)")
    add("--seed", type=number, default=0, metavar="N", help="the same seed, the same sequences")
    add("--out", type=file_name, metavar="DIR", help="the finding's script, and every sequence")
    add(
        "--destructive",
        action="append",
        default=[],
        metavar="CLASS",
        help="also run steps that may crash the endpoint's kernel; 'list' lists the classes",
    )
    add("do", nargs="*", metavar="STEP", help="run these instead, as the script of a finding does")

    for command in (layout, replay):
        command.add_argument(
            "--real-time",
            action="store_true",
            help="over vfio-user at the endpoint's own tick, and every byte of every BAR",
        )


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    runs = {"layout": _layout, "replay": _replay, "device": _device}
    return runs[args.what](args, cancel)


def _layout(args: argparse.Namespace, cancel: Cancel) -> int:
    if args.ep is not None or args.dry_run:
        return _layout_on_board(args, cancel)
    args.common_options = HOST
    refuse_unused(args)
    # Imported here, as only a campaign needs them, and not its help.
    from rcdrv.fuzz import campaign

    unbounded = args.examples is None and args.seconds is None
    plan = campaign.Plan(
        seed=args.seed,
        examples=1000 if unbounded else args.examples,
        seconds=args.seconds,
        workers=args.workers,
        dask=args.dask or "",
        real_time=args.real_time,
        hostile=not args.plausible,
        folder=args.out,
    )

    def on_block(progress: campaign.Progress) -> None:
        cancel.check()
        _show_progress(_line(progress))

    progress = campaign.run(plan, on_block)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if args.picture is not None:
        replace_file(args.picture, progress.coverage.svg().encode("utf-8"))
    document = {
        **plan.identity,
        "examples": progress.examples,
        "resumed": progress.resumed,
        "seconds": progress.seconds,
        "rate": progress.rate,
        "coverage": progress.coverage.share,
    }
    found = [(one.finding, one.table, one.path) for one in progress.findings]
    return _conclude(args, document, found, [progress.coverage.picture(), _line(progress)])


def _layout_on_board(args: argparse.Namespace, cancel: Cancel) -> int:
    from rcdrv.fuzz import board
    from rcdrv.fuzz.finding import save

    layouts = board.draw_settings(args.seed, args.examples or 20)
    if args.dry_run:
        scripts = [board.show_script(args.configfs)]
        scripts += [board.apply_script(settings, args.configfs) for settings in layouts]
        print("\n# --- a script of its own\n\n".join(scripts), end="")
        return 0
    shell = board.Shell(args.ep, cancel=cancel)
    address = args.device or default_address()
    if scheme_of(address).is_started:
        raise UsageError("--ep sets up a board; what sim: starts has no configfs")
    guard(args, address)

    def returned() -> Function:
        if scheme_of(address).is_local:
            _rescan(address, cancel)
        return board.wait_open(partial(open_function, address, cancel=cancel), cancel)

    def on_layout(report: Any) -> None:
        cancel.check()
        _show_progress(f"{report.settings} layouts, {len(report.findings)} findings")

    one = board.Board(
        shell,
        returned,
        root=args.configfs,
        reg_bar=args.reg_bar,
        irq=IrqChoice(args.irq),
        timeout=args.timeout,
    )
    report = board.campaign(one, layouts, on_layout)
    document = {"device": address, "examples": report.settings}
    out: Path | None = args.out
    found = [
        (finding, table, None if out is None else save(out, finding, table))
        for finding, table in report.findings
    ]
    line = f"{report.settings} layouts, {len(found)} findings"
    return _conclude(args, document, found, [line])


def _rescan(address: str, cancel: Cancel) -> None:
    from rcdrv.fuzz.board import LINK_TIMEOUT
    from rcdrv.host.binding import Binder
    from rcdrv.host.replug import port_above, rescan
    from rcdrv.sysfs import Paths

    port = port_above(address, Paths())
    binder = Binder(port.paths, say_nothing)
    rescan(port, binder, say_nothing, address, within=LINK_TIMEOUT, cancel=cancel)


def _show_progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line} ", end="", file=sys.stderr, flush=True)


def _line(progress: Any) -> str:
    return (
        f"{progress.examples} layouts, {progress.rate:.0f}/s,"
        f" {progress.coverage.share:.0%} of BAR types x sizes x backends,"
        f" {len(progress.findings)} findings"
    )


def _conclude(
    args: argparse.Namespace,
    document: dict[str, Any],
    found: Sequence[tuple[Any, dict[str, Any], Path | None]],
    lines: Sequence[str],
) -> int:
    """Show findings, with the layout and the file of each, before ``lines``; return the status."""
    from rcdrv.fuzz.finding import dump_table

    documents, shown = [], []
    for finding, table, path in found:
        documents.append(
            {
                "kind": finding.kind,
                "what": finding.what,
                "message": finding.message,
                "layout": table,
                "file": str(path) if path else None,
            }
        )
        place = f"  saved as {path}" if path else indent(dump_table(table).rstrip("\n"), "  ")
        shown += [f"{finding.kind}: {finding.message}", place]
    show(args, {**document, "findings": documents}, [*shown, *lines])
    return 1 if found else 0


def _replay(args: argparse.Namespace, cancel: Cancel) -> int:
    if args.device:
        return _replay_elsewhere(args, cancel)
    from rcdrv.fuzz.finding import saved_files
    from rcdrv.fuzz.trial import run_layout
    from rcdrv.sim.layout import load_layout

    documents = []
    for path in saved_files(args.where):
        cancel.check()
        if path.suffix != ".toml":
            raise UsageError(f"{path}: a saved layout is a .toml file")
        layout = load_layout(str(path))
        report = run_layout(layout, real_time=args.real_time, whole=args.real_time)
        documents.append(_replayed(args, path, report))
    if args.json:
        print_json({"replayed": documents})
    return 1 if any(document["findings"] for document in documents) else 0


def _replayed(args: argparse.Namespace, path: Path, report: Any) -> dict[str, Any]:
    """Return the document of a layout that was run again, and show its findings."""
    from rcdrv.fuzz.finding import reason_of

    findings = [f"{finding.kind}: {finding.message}" for finding in report.findings]
    if not args.json:
        print(f"{path}: {'; '.join(findings) or 'nothing wrong'}")
    return {
        "file": str(path),
        "saved": reason_of(path),
        "outcomes": report.outcomes,
        "findings": findings,
    }


def _replay_elsewhere(args: argparse.Namespace, cancel: Cancel) -> int:
    from rcdrv.fuzz.trial import NotPresented, Report, run_elsewhere
    from rcdrv.sim.layout import load_layout

    if not args.where.is_file():
        raise UsageError(f"{args.where}: no such file", hint="--device takes one layout's file")
    if scheme_of(args.device).is_started:
        raise UsageError(
            "replay opens the endpoint twice, and sim: starts a new one each time",
            hint="leave --device out, or serve it: rcdrv sim FILE --socket PATH",
        )
    layout = load_layout(str(args.where))
    guard(args, args.device)
    more = {"device": args.device, "presented": True, "reason": None}
    try:
        report = run_elsewhere(layout, partial(open_function, args.device, cancel=cancel))
    except NotPresented as error:
        if args.json:
            document = _replayed(args, args.where, Report())
            print_json({**document, **more, "presented": False, "reason": error.message})
        else:
            print(f"{args.where}: not presentable: {error.message}")
        return HostError.exit_status
    document = _replayed(args, args.where, report)
    if args.json:
        print_json({**document, **more})
    return 1 if document["findings"] else 0


def _device(args: argparse.Namespace, cancel: Cancel) -> int:
    from rcdrv.fuzz.device import campaign
    from rcdrv.fuzz.device.harm import CLASSES
    from rcdrv.fuzz.device.steps import parse_step
    from rcdrv.sim.layout import load_layout

    if "list" in args.destructive:
        for name, what in CLASSES.items():
            print(f"{name:23} {what}")
        return 0
    steps = [parse_step(text) for text in args.do]
    options = campaign.Options(
        steps=args.length or campaign.STEPS,
        destructive=_harm_classes(args.destructive),
        reg_bar=args.reg_bar,
        timeout=args.timeout,
        irq=IrqChoice(args.irq),
        trace=tracer(args),
    )
    address = args.device or default_address()
    with ExitStack() as stack:
        if scheme_of(address).is_started:
            software = campaign.Software(load_layout(address.removeprefix("sim:")), cancel)
            stack.callback(software.close)
            fuzzer = campaign.DeviceFuzzer(software.open, options, software.renew)
        else:
            guard(args, address)
            fuzzer = campaign.DeviceFuzzer(partial(open_function, address, cancel=cancel), options)
        if steps:
            done = campaign.Campaign(1, len(steps), fuzzer.replay(steps))
        else:
            unbounded = args.examples is None and args.seconds is None
            done = fuzzer.run(
                args.seed,
                examples=20 if unbounded else args.examples,
                seconds=args.seconds,
                on_sequence=_sequence_log(args.out, stack),
            )
    return _device_end(args, address, options, done)


def _harm_classes(names: list[str]) -> tuple[str, ...]:
    from rcdrv.fuzz.device.harm import CLASSES

    for name in names:
        if name not in CLASSES:
            hint = f"one of {', '.join(CLASSES)}"
            raise UsageError(f"--destructive: no class {name!r}", hint=hint)
    return tuple(dict.fromkeys(names))


def _sequence_log(folder: Path | None, stack: ExitStack) -> Callable[..., None]:
    """Return the function that logs a sequence as a line of JSON."""
    if folder is None:
        return lambda *_sequence: None
    from rcdrv.fuzz.device.campaign import record

    make_folder(folder)
    stream = stack.enter_context(open_output(folder / "sequences.jsonl"))

    def log(*sequence: Any) -> None:
        print(record(*sequence), file=stream, flush=True)

    return log


def _device_end(args: argparse.Namespace, address: str, options: Any, done: Any) -> int:
    from rcdrv.fuzz.device.campaign import save, script

    found, text, path = done.found, "", None
    if found is not None:
        origin = "its steps" if args.do else f"--seed {args.seed}, sequence {done.sequences - 1}"
        if done.flaky:
            origin += "; not seen again when repeated, so it is not made short"
        text = script(found, address, options, origin)
        if args.out is not None:
            path = save(args.out, found, text)
    document = {
        "device": address,
        "seed": args.seed,
        "sequences": done.sequences,
        "steps": done.steps,
        "finding": found.message if found else None,
        "flaky": done.flaky,
        "script": text or None,
        "file": str(path) if path else None,
    }
    finding = f"1 finding{f', saved as {path}' if path else ''}" if found else "no finding"
    line = f"{done.sequences} sequences, {done.steps} steps, {finding}"
    show(args, document, [f"{text}{line}"])
    if found is None:
        return 0
    return DeviceLost.exit_status if found.lost else 1
