"""Measure latency and throughput of an endpoint, as percentiles.

ring: the doorbell's acknowledgement by interrupt and by polling, and the write alone.
mmio: single accesses of every width, and filling and reading of BAR memory.
dma: transfers by the endpoint's processor or its DMA engine.
irq: interrupts of this host alone and of the endpoint.

Keep a run with --json > FILE, and compare a later one with --against FILE.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from rcdrv.bench import answers, mmio, ring
from rcdrv.bench.setup import describe
from rcdrv.bench.text import table
from rcdrv.cli import exit_status, print_error
from rcdrv.cli.common import (
    bar_number,
    common_options,
    drive,
    file_name,
    number,
    open_function,
    positive,
    print_json,
    warn_left_enabled,
)
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.transfer import Direction
from rcdrv.errors import RcdrvError
from rcdrv.results.bench import Result, Series, load, to_document
from rcdrv.verdict import verdict_document
from rcdrv.wait import Cancel

_DEFAULT_COUNTS = {"ring": 1000, "mmio": 10_000, "dma": 20, "irq": 200}
_DEFAULT_SIZES = (1024, 64 << 10, 1 << 20)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    shared = common_options()

    def bench(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary, parents=[shared])

    one = bench("ring", "from the doorbell to its answer")
    one.add_argument(
        "--method",
        action="append",
        choices=[method.value for method in ring.Method],
        metavar="|".join(method.value for method in ring.Method),
        help="how to wait for the answer, if at all; may be repeated (default: all)",
    )
    one.add_argument("--bar", type=bar_number, metavar="N", help="the doorbell must be in BAR N")
    one.add_argument("--force", action="store_true", help="try even if CAPS has no doorbells")

    one = bench("mmio", "accesses to registers and memory")
    one.add_argument(
        "--bar",
        type=bar_number,
        metavar="N",
        help="the BAR for memory (default: the first that may be written)",
    )

    one = bench("dma", "transfers")
    one.add_argument(
        "--direction",
        action="append",
        choices=[direction.value for direction in Direction],
        metavar="|".join(direction.value for direction in Direction),
        help="from the root complex's view; may be repeated (default: all)",
    )
    one.add_argument(
        "--size",
        action="append",
        type=number,
        metavar="BYTES",
        help="of a transfer; may be repeated (default: 1K, 64K, 1M)",
    )
    one.add_argument("--dma", action="store_true", help="with the endpoint's DMA engine")

    one = bench("irq", "interrupts")
    one.add_argument(
        "--vectors", type=positive, default=1, metavar="N", help="use N in turn (default 1)"
    )

    for what, child in commands.choices.items():
        child.add_argument(
            "--count",
            type=positive,
            default=_DEFAULT_COUNTS[what],
            metavar="N",
            help=f"operations of each kind (default {_DEFAULT_COUNTS[what]})",
        )
        child.add_argument(
            "--plot", type=file_name, metavar="FILE", help="draw it: .svg, .png or .pdf"
        )
        child.add_argument(
            "--against", type=file_name, metavar="FILE", help="compare with an earlier run's --json"
        )


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    against = load(args.against, args.what) if args.against else None
    if args.plot:
        from rcdrv.bench import plot

        plot.check(args.plot)  # before anything is measured
    result, error = _measure(args, cancel)
    if args.json:
        print_json({**to_document(result), **verdict_document(error)})
    else:
        print(table(result, against), end="", flush=True)
        if error is not None:
            print_error(error)
    if args.plot and result.series:
        plot.draw(result, args.plot, against)
    warn_left_enabled(result.left_enabled)
    return exit_status(error, cancel)


def _measure(args: argparse.Namespace, cancel: Cancel) -> tuple[Result, RcdrvError | None]:
    """Return the results, and the error that ended the measurement, if any."""
    result: Result | None = None
    try:
        with open_function(args, cancel) as function:
            driver = drive(args, function)
            result = Result(args.what, function.address, describe(driver))
            for series in _BENCHES[args.what](args, driver, result):
                result.series.append(series)
    except RcdrvError as error:
        if result is None:
            raise
        return result, error
    return result, None


def _ring(args: argparse.Namespace, driver: EpfTest, result: Result) -> Iterator[Series]:
    for method in map(ring.Method, dict.fromkeys(args.method or ring.default_methods(driver))):
        yield ring.measure(
            driver, method, args.count, result, expect_bar=args.bar, force=args.force
        )


def _mmio(args: argparse.Namespace, driver: EpfTest, _result: Result) -> Iterator[Series]:
    bar = mmio.default_bar(driver) if args.bar is None else args.bar
    return mmio.measure(driver, bar, args.count)


def _dma(args: argparse.Namespace, driver: EpfTest, _result: Result) -> Iterator[Series]:
    for direction in map(Direction, dict.fromkeys(args.direction or Direction)):
        for size in args.size or _DEFAULT_SIZES:
            yield answers.transfer(driver, direction, size, args.dma, args.count)


def _irq(args: argparse.Namespace, driver: EpfTest, _result: Result) -> Iterator[Series]:
    for choice in answers.irq_choices(driver):
        here = answers.loopback(driver, choice, args.count)
        if here is not None:
            yield here
        yield answers.interrupt(driver, choice, args.vectors, args.count)


_BENCHES: dict[str, Callable[[argparse.Namespace, EpfTest, Result], Iterator[Series]]] = {
    "ring": _ring,
    "mmio": _mmio,
    "dma": _dma,
    "irq": _irq,
}
