"""Have the kernel's own driver and rcdrv judge the same endpoints, and compare.

The endpoints are software endpoints, all in one x86-64 guest of the lab, and the kernel's own
endpoint functions. The exit status is 0 if every verdict is accounted for and the same on both
endpoints, 1 if one is not or if an explanation is outdated, 125 if the lab failed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.compare import judges, render
from tools.compare.judges import Comparison, Square
from tools.compare.rows import Stale, stale
from tools.lab.errors import LabError
from tools.lab.guest import KERNEL_PREFIX, Guest
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint

PRESETS = ("rk3588", "rcar-s4", "imx95", "imx8m", "am654", "tegra194", "j721e", "generic")
TIMED = "generic"  # everything passes there, so no judge waits in vain
RUNS = 3
STATUS_LAB = 125
AT_ONCE = 4
"""Kernel's endpoints that run side by side: each is a guest of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return the exit status."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return _run(options)
    except LabError as error:
        print(f"compare: {error}", file=sys.stderr)
        return STATUS_LAB
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def problems(
    comparisons: Sequence[Comparison], outdated: Iterable[Stale], squares: Iterable[Square] = ()
) -> str:
    """All that is not as it should be; empty if nothing is."""
    return "".join(
        (
            *map(render.complaints, comparisons),
            *map(render.disagreements, squares),
            *map(render.stale_complaint, outdated),
        )
    )


def outdated(comparisons: Sequence[Comparison]) -> list[Stale]:
    """The explanations that these presets do not need."""
    rows = [row for comparison in comparisons for row in comparison.rows]
    return list(stale(rows, [comparison.preset for comparison in comparisons]))


def _run(options: argparse.Namespace) -> int:
    presets = list(dict.fromkeys(options.preset or PRESETS))
    timed = options.time or (TIMED if TIMED in presets else presets[0])
    if timed not in presets:
        presets.append(timed)
    with judges.laboratory(presets) as guest:
        release = judges.prepare(guest)
        comparisons = _compare(guest)
        timing = judges.measure(guest, guest.endpoints[presets.index(timed)], options.runs)
    squares = [] if options.software_only else _squares(comparisons)

    stales = outdated(comparisons)
    wrong = problems(comparisons, stales, squares)
    shown = (
        render.table(comparisons),
        render.notes(comparisons),
        render.timing_text(timing),
        wrong or "Every verdict is accounted for.\n",
    )
    print("\n".join(filter(None, shown)), end="")
    if options.json:
        document = render.document(comparisons, squares, stales, timing, release)
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(render.page(comparisons, squares, timing, release))
    return 1 if wrong else 0


def _compare(guest: Guest) -> list[Comparison]:
    comparisons = []
    for endpoint in guest.endpoints:
        comparison = judges.compare(guest, endpoint)
        comparisons.append(comparison)
        whose = "kernel's " if isinstance(endpoint, KernelEndpoint) else ""
        print(
            f"compare: {whose}{endpoint.spec}: kernel {comparison.kernel.process:.1f} s,"
            f" rcdrv {comparison.rcdrv.process:.1f} s",
            file=sys.stderr,
        )
    return comparisons


def _squares(comparisons: Sequence[Comparison]) -> list[Square]:
    """Each with the same judgements of the kernel's endpoint functions."""
    squares: list[Square] = []
    for start in range(0, len(comparisons), AT_ONCE):
        group = comparisons[start : start + AT_ONCE]
        with judges.laboratory([KERNEL_PREFIX + each.preset for each in group]) as guest:
            judges.prepare(guest)
            squares += map(Square, group, _compare(guest))
    return squares


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tools.compare", description=__doc__)
    parser.add_argument(
        "--preset",
        action="append",
        metavar="NAME",
        help="what to compare on, as for 'rcdrv sim'; may be repeated (default: all presets)",
    )
    parser.add_argument(
        "--time", metavar="NAME", help=f"the preset to measure the time on (default: {TIMED})"
    )
    parser.add_argument(
        "--runs", type=_positive, default=RUNS, help=f"runs to measure (default: {RUNS})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is known")
    pages = parser.add_mutually_exclusive_group()
    pages.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the page of the documentation"
    )
    pages.add_argument(
        "--software-only", action="store_true", help="leave out the kernel's endpoint functions"
    )
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
