"""Ring, transfer, close and open an endpoint again for hours, and count what both sides hold.

python3 -m tools.soak [SPEC | kernel:SPEC] [--time 1h] [--interval S] [--json]

SPEC is served by a process of its own, or by the kernel's own endpoint in a guest. A session opens
the endpoint, rings one cycle of 200, transfers 64 KiB three ways, and closes it. What is held is
counted after ten sessions, again in the middle, and at the end, with no session open. A leak of one
a session would be as many as there were sessions in between, in both halves. The exit status is 1
if any ring or transfer failed, or either side grew so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import rcdrv
from rcdrv.cli.common import pause, period
from rcdrv.epf_test.outcome import worst
from rcdrv.epf_test.ring import RingPlan
from rcdrv.epf_test.soak import Soak, document, held
from rcdrv.results.units import duration_text, period_text
from rcdrv.wait import Deadline
from tools.lab.child import Child, wait_listening
from tools.lab.endpoint import environment
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint

WARM = 10
"""Sessions before anything is counted: caches fill, modules load."""
RINGS, BYTES = 200, 1 << 16
Counts = dict[str, int]


@contextlib.contextmanager
def served(spec: str) -> Iterator[tuple[Path, Callable[[], Counts]]]:
    """The socket of an endpoint, and what counts the things that its side holds."""
    if spec.startswith("kernel:"):
        with KernelEndpoint(spec.partition(":")[2]) as kernel:
            yield kernel.socket, kernel.usage
        return
    with tempfile.TemporaryDirectory(prefix="rcdrv-soak-") as folder:
        socket = Path(folder, "ep.sock")
        command = [sys.executable, "-m", "rcdrv", "sim", spec, "--socket", str(socket)]
        child = Child("endpoint", command, Path(folder), env=environment())
        try:
            if problem := wait_listening(child, socket, time.monotonic() + 30):
                sys.exit(f"{spec}: {problem}")
            yield socket, lambda: settled(lambda: process(child.pid))
        finally:
            child.stop()


def settled(read: Callable[[], Counts]) -> Counts:
    """The counts once they stay: a server learns of the end of a session a moment later."""
    deadline = Deadline(10)
    before = read()
    while True:
        time.sleep(0.2)
        now = read()
        same = all(now[name] == before[name] for name in now.keys() & {"descriptors", "mappings"})
        if same or deadline.expired:
            return now
        before = now


def process(pid: int) -> Counts:
    """Descriptors, mappings (and those of shared memory, which DMA is) and pages of a process."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {
        "descriptors": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        "mappings": maps.count("\n"),
        "shared mappings": maps.count("/memfd:"),
        "pages": int(Path(f"/proc/{pid}/statm").read_text().split()[1]),
    }


def session(address: str, soak: Soak, interval: float) -> tuple[int, int]:
    """One session; return DMA buffers and failed transfers that were left."""
    with rcdrv.open(address, timeout=10) as endpoint:
        soak.cycle(endpoint.driver, RingPlan(count=RINGS, interval=interval, end=soak.end))
        result = endpoint.test("memcpy", sizes=[BYTES])
        return held(endpoint.function).dma_buffers, len(result.failed)


class Count(NamedTuple):
    """What both sides hold after so many sessions."""

    sessions: int
    rcdrv: Counts
    endpoint: Counts

    def of(self, side: str, name: str) -> int:
        counts: Counts = getattr(self, side)
        return counts.get(name, 0)


def run(spec: str, seconds: float, interval: float) -> tuple[dict[str, Any], bool]:
    """Return the document, and whether all is well."""
    counts: list[Count] = []
    sessions = failed = buffers = 0
    with served(spec) as (socket, other_side):
        soak = Soak(seconds)
        middle = Deadline(seconds / 2)
        while not soak.end.expired or sessions < WARM + 2:
            left, bad = session(f"vfio-user:{socket}", soak, interval)
            sessions, failed, buffers = sessions + 1, failed + bad, buffers + left
            if sessions == WARM or (len(counts) == 1 and middle.expired):
                counts.append(Count(sessions, process(os.getpid()), other_side()))
        counts.append(Count(sessions, process(os.getpid()), other_side()))
    grown = dict(leaks(counts))
    return {
        **document(soak, spec, worst(soak.report, None)),
        "sessions": sessions,
        "failed_transfers": failed,
        "dma_buffers_left": buffers,
        "counts": [one._asdict() for one in counts],
        "grown": grown,
    }, not (grown or failed or buffers or soak.report.failed or soak.report.stray)


def leaks(counts: Sequence[Count]) -> Iterator[tuple[str, list[int]]]:
    """What rose from count to count, each time by one in four sessions or more; memory besides by
    4 MiB, as histograms fill up."""
    for side in ("rcdrv", "endpoint"):
        for name in getattr(counts[0], side):
            slack = 1024 if name == "pages" else 0
            if all(
                one.of(side, name) - before.of(side, name)
                > max(slack, (one.sessions - before.sessions) // 4)
                for before, one in pairwise(counts)
            ):
                yield f"{side}: {name}", [one.of(side, name) for one in counts]


def show(found: dict[str, Any]) -> None:
    """Print the figures."""
    soak = found["soak"]
    spread = ", ".join(f"{key} {duration_text(soak[key])}" for key in ("p50", "p99", "max"))
    print(
        f"{period_text(soak['elapsed'])}: {found['sessions']} sessions, {soak['count']} rings,"
        f" {soak['failed']} failed, {found['failed_transfers']} transfers failed; {spread}"
    )
    for drift in soak["drift"]:
        print(f"drift: p{drift['percentile']:g} from {drift['before']} to {drift['after']} ns")
    for side in ("rcdrv", "endpoint"):
        for name in found["counts"][0][side]:
            values = [one[side].get(name, 0) for one in found["counts"]]
            if name in ("descriptors", "mappings", "shared mappings", "pages", "vmalloc"):
                print(f"{side:9} {name:16}" + "".join(f"{value:9}" for value in values))
    print(f"leaks: {', '.join(found['grown']) or 'none'}")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", nargs="?", default="rk3588", metavar="SPEC")
    parser.add_argument("--time", type=period, default=3600.0)
    parser.add_argument("--interval", type=pause, default=0.0, metavar="S", help="between rings")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found, good = run(args.spec, args.time, args.interval)
    if args.json:
        json.dump(found, sys.stdout, indent=2)
        print()
    else:
        show(found)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
