"""Look for the layout of BARs that breaks the driver, the endpoint, or their agreement.

layout: software endpoints with layouts from the plausible to the hostile; what comes out of each
is held against what must come out. What is found is shrunk, and saved as a TOML file.
replay: run saved files again, also ones written by hand.
device: commands in every order on the endpoint that --device names, each held against a model of
the protocol; what is found is made short, and printed as a script.

The exit status is 1 if anything was found, else 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rcdrv.cli.common import common_options, number, print_json, seconds, tracer
from rcdrv.errors import UsageError
from rcdrv.wait import Cancel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    shared = common_options(top=False)

    layout = commands.add_parser("layout", help="a campaign over layouts", parents=[shared])
    add = layout.add_argument
    add("--seconds", type=seconds, metavar="S", help="begin nothing more after S seconds")
    add("--examples", type=number, metavar="N", help="layouts to try (default 1000)")
    add("--seed", type=number, default=0, metavar="N", help="the same seed, the same layouts")
    add("--workers", type=_positive, default=1, metavar="N", help="processes (default 1)")
    add("--plausible", action="store_true", help="only what some controller could have")
    add("--out", type=Path, metavar="DIR", help="findings and every example; resumed if it exists")
    add("--picture", type=Path, metavar="FILE.svg", help="draw what was covered")
    add("--dask", metavar="SCHEDULER", help="use the workers of a dask scheduler (tcp://HOST:8786)")

    replay = commands.add_parser("replay", help="run saved findings again", parents=[shared])
    replay.add_argument("where", type=Path, metavar="FILE|DIR")

    device = commands.add_parser("device", help="commands in every order", parents=[shared])
    add = device.add_argument
    add("--seconds", type=seconds, metavar="S", help="begin nothing more after S seconds")
    add("--examples", type=number, metavar="N", help="sequences to try (default 20)")
    add("--steps", dest="length", type=_positive, metavar="N", help="in a sequence (default 30)")
    add("--seed", type=number, default=0, metavar="N", help="the same seed, the same sequences")
    add("--out", type=Path, metavar="DIR", help="the finding's script, and every sequence")
    add(
        "--destructive",
        action="append",
        default=[],
        metavar="CLASS",
        help="also do what may crash the endpoint's kernel; 'list' lists the classes",
    )
    add("do", nargs="*", metavar="STEP", help="do these instead, as the script of a finding does")

    for command in (layout, replay):
        command.add_argument(
            "--real-time",
            action="store_true",
            help="over vfio-user at the endpoint's own tick, and every byte of every BAR",
        )


def _positive(text: str) -> int:
    value = number(text)
    if not value:
        raise argparse.ArgumentTypeError("at least one")
    return value


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    runs = {"layout": _layout, "replay": _replay, "device": _device}
    return runs[args.what](args, cancel)


def _layout(args: argparse.Namespace, cancel: Cancel) -> int:
    # Imported here: a campaign needs more than the help does.
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
        if sys.stderr.isatty():
            print(f"\r{_line(progress)} ", end="", file=sys.stderr, flush=True)

    progress = campaign.run(plan, on_block)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if args.picture is not None:
        _write(args.picture, progress.coverage.svg())
    if args.json:
        print_json(_document(plan, progress))
    else:
        for found in progress.findings:
            print(f"{found.finding.kind}: {found.finding.message}")
            print(f"  saved as {found.path}" if found.path else _indented(found.table))
        print(progress.coverage.picture())
        print(_line(progress))
    return 1 if progress.findings else 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _line(progress: Any) -> str:
    return (
        f"{progress.examples} layouts, {progress.rate:.0f}/s,"
        f" {progress.coverage.share:.0%} of BAR types x sizes x backends,"
        f" {len(progress.findings)} findings"
    )


def _indented(table: dict[str, Any]) -> str:
    from rcdrv.fuzz.saved import dump_table

    return "\n".join(f"  {line}" for line in dump_table(table).splitlines())


def _document(plan: Any, progress: Any) -> dict[str, Any]:
    return {
        **plan.identity,
        "examples": progress.examples,
        "resumed": progress.resumed,
        "seconds": progress.seconds,
        "rate": progress.rate,
        "coverage": progress.coverage.share,
        "findings": [
            {
                "kind": found.finding.kind,
                "what": found.finding.what,
                "message": found.finding.message,
                "layout": found.table,
                "file": str(found.path) if found.path else None,
            }
            for found in progress.findings
        ],
    }


def _replay(args: argparse.Namespace, cancel: Cancel) -> int:
    from rcdrv.fuzz.saved import reason_of, saved_files
    from rcdrv.fuzz.trial import run_layout
    from rcdrv.sim.layout import load_layout

    documents = []
    for path in saved_files(args.where):
        cancel.check()
        if path.suffix != ".toml":
            raise UsageError(f"{path}: a saved layout is a .toml file")
        layout = load_layout(str(path))
        report = run_layout(layout, real_time=args.real_time, whole=args.real_time)
        findings = [f"{finding.kind}: {finding.message}" for finding in report.findings]
        documents.append(
            {
                "file": str(path),
                "saved": reason_of(path),
                "outcomes": report.outcomes,
                "findings": findings,
            }
        )
        if not args.json:
            print(f"{path}: {'; '.join(findings) or 'nothing wrong'}")
    if args.json:
        print_json({"replayed": documents})
    return 1 if any(document["findings"] for document in documents) else 0


def _device(args: argparse.Namespace, cancel: Cancel) -> int:
    from rcdrv.epf_test.driver import IrqChoice
    from rcdrv.fuzz.device import campaign
    from rcdrv.fuzz.device.steps import parse_step

    if "list" in args.destructive:
        return _list_harm()
    steps = [parse_step(text) for text in args.do]
    options = campaign.Options(
        steps=args.length or campaign.STEPS,
        destructive=_harm_classes(args.destructive),
        reg_bar=args.reg_bar,
        timeout=args.timeout,
        irq=IrqChoice(args.irq),
        trace=tracer(args),
    )
    with ExitStack() as stack:
        target = _target(args, cancel, stack)
        fuzzer = campaign.DeviceFuzzer(target, options)
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
    return _device_end(args, target.address, options, done)


def _target(args: argparse.Namespace, cancel: Cancel, stack: ExitStack) -> Any:
    from rcdrv.address import default_address, is_pci_address, open_function
    from rcdrv.fuzz.device.campaign import Software, Target
    from rcdrv.sim.layout import load_layout

    address = args.device or default_address()
    if address.startswith("sim:"):
        software = Software(load_layout(address.removeprefix("sim:")), cancel)
        stack.callback(software.close)
        return Target(software.open, address, software.renew)
    if not args.in_child and is_pci_address(address):
        from rcdrv.cli.guard import continue_in_child

        continue_in_child(address)
        args.in_child = True
    return Target(partial(open_function, address, cancel=cancel), address)


def _harm_classes(names: list[str]) -> tuple[str, ...]:
    from rcdrv.fuzz.device.harm import CLASSES

    for name in names:
        if name not in CLASSES:
            raise UsageError(
                f"--destructive: no class {name!r}", hint=f"one of {', '.join(CLASSES)}"
            )
    return tuple(dict.fromkeys(names))


def _list_harm() -> int:
    from rcdrv.fuzz.device.harm import CLASSES

    for name, what in CLASSES.items():
        print(f"{name:23} {what}")
    return 0


def _sequence_log(folder: Path | None, stack: ExitStack) -> Callable[..., None]:
    """Where every sequence is kept, a line of JSON each."""
    if folder is None:
        return lambda *_sequence: None
    from rcdrv.fuzz.device.campaign import record

    folder.mkdir(parents=True, exist_ok=True)
    stream = stack.enter_context((folder / "sequences.jsonl").open("w", encoding="utf-8"))

    def log(*sequence: Any) -> None:
        print(record(*sequence), file=stream, flush=True)

    return log


def _device_end(args: argparse.Namespace, address: str, options: Any, done: Any) -> int:
    from rcdrv.errors import DeviceLost
    from rcdrv.fuzz.device.campaign import save, script

    found, text, path = done.found, "", None
    if found is not None:
        origin = "its steps" if args.do else f"--seed {args.seed}, sequence {done.sequences - 1}"
        if done.flaky:
            origin += "; not seen again when repeated, so it is not made short"
        text = script(found, address, options, origin)
        if args.out is not None:
            path = save(args.out, found, text)
    if args.json:
        print_json(
            {
                "device": address,
                "seed": args.seed,
                "sequences": done.sequences,
                "steps": done.steps,
                "finding": found.message if found else None,
                "flaky": done.flaky,
                "script": text or None,
                "file": str(path) if path else None,
            }
        )
    else:
        print(text, end="")
        finding = f"1 finding{f', saved as {path}' if path else ''}" if found else "no finding"
        print(f"{done.sequences} sequences, {done.steps} steps, {finding}")
    if found is None:
        return 0
    return DeviceLost.exit_status if found.lost else 1
