"""Count what rcdrv and the kernel's driver send over the link for each of the 23 cases.

On a link the accesses are the time, and an endpoint that traps sees every one. The counts do not
depend on the machine, so ``docs/performance.md`` has them as they are, and tests hold them.

``python3 -m tools.transactions`` prints the table; it needs the lab for the kernel's columns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import rcdrv.api
from rcdrv.errors import RcdrvError
from tools.compare import judges
from tools.lab.endpoint import Endpoint
from tools.lab.errors import LabError
from tools.lab.kernel_driver import SELFTEST

SPEC = ",".join(("generic", *(f"bar{bar}.size=16K" for bar in range(6))))
"""All 23 cases pass there, so both drivers do all of each; small, as each word of a BAR traps."""
READ_NS, WRITE_NS = 550, 50
"""Round trip of a 32-bit read, spacing of posted writes: the least published (performance.md)."""
WORD = 4
"""Bytes. A bulk access is one message of vfio-user, and that many words on a link."""
STATUS_LAB = 125
_SECONDS = 30.0


class Count(NamedTuple):
    """Accesses of BARs, and of the config space."""

    reads: int
    """Non-posted: each waits for its completion."""
    writes: int
    """Posted."""
    config: int
    """Reads and writes of the config space, all non-posted."""

    @property
    def microseconds(self) -> float:
        """The least that the BAR accesses take on a link."""
        return (self.reads * READ_NS + self.writes * WRITE_NS) / 1000


def count(log: str) -> Count:
    """Count the accesses in lines of an access log."""
    reads = writes = config = 0
    for line in log.splitlines():
        entry = json.loads(line)
        if "event" in entry:
            continue
        words = -(-entry["size"] // WORD) if entry["size"] > 2 * WORD else 1
        if entry["region"] == "CONFIG":
            config += words
        elif entry["op"] == "read":
            reads += words
        else:
            writes += words
    return Count(reads, writes, config)


class Counter:
    """Counts what an endpoint's access log gains."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._seen = 0

    def take(self) -> Count:
        """Count the accesses since the last call; the driver must be at rest."""
        with self._log.open("rb") as file:
            file.seek(self._seen)
            new = file.read()
        self._seen += len(new)
        return count(new.decode())


def of_rcdrv(folder: Path) -> dict[str, Count]:
    """Count each step of a session and each case, over vfio-user."""
    counts: dict[str, Count] = {}
    with contextlib.closing(Endpoint(SPEC, 0, folder, log_accesses=True)) as served:
        served.wait_ready(time.monotonic() + _SECONDS)
        counter = Counter(served.access_log)

        def step(name: str, action: Callable[[], object]) -> None:
            action()
            counts[name] = counter.take()

        endpoint = rcdrv.api.open(f"vfio-user:{served.socket}", timeout=_SECONDS)
        counter.take()
        step("open", lambda: endpoint.driver.caps)
        step("info", endpoint.info)
        for name in rcdrv.api.case_names():
            step(name, lambda name=name: endpoint.test(name).check())  # type: ignore[misc]
        with endpoint.doorbell() as doorbell:
            doorbell.ring()
            counter.take()
            step("one ring", doorbell.ring)
        counter.take()
        step("close", endpoint.close)
    return counts


def of_kernel() -> dict[str, Count]:
    """Count each case of the kselftest on the kernel's own driver, in a lab guest.

    :raises LabError: the lab does not start, or a case does not pass
    """
    return dict(_of_kernel())


def _of_kernel() -> Iterator[tuple[str, Count]]:
    with judges.laboratory([SPEC], log_accesses=True) as guest:
        judges.prepare(guest)
        (endpoint,) = guest.endpoints
        judges.hand_over(guest, endpoint, judges.DRIVER)
        counter = Counter(endpoint.access_log)
        for name in rcdrv.api.case_names():
            counter.take()
            result = guest.run([str(judges.FOLDER / SELFTEST), "-r", name], timeout=180)
            if result.status:
                raise LabError(f"the kselftest's {name} does not pass: {result.stdout}")
            yield name, counter.take()


def table(ours: Mapping[str, Count], kernel: Mapping[str, Count]) -> str:
    """Render Markdown, as docs/performance.md has it."""
    head = "| | reads | kernel's | writes | kernel's | at least, us | kernel's |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for name, mine in ours.items():
        theirs = kernel.get(name)
        cells = [
            f"{mine.reads}",
            f"{theirs.reads}" if theirs else "",
            f"{mine.writes}",
            f"{theirs.writes}" if theirs else "",
            f"{mine.microseconds:.1f}",
            f"{theirs.microseconds:.1f}" if theirs else "",
        ]
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Print the table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.transactions", description=__doc__)
    parser.add_argument("--no-lab", action="store_true", help="rcdrv's columns only")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="rcdrv-transactions-") as folder:
            ours = of_rcdrv(Path(folder))
        print(table(ours, {} if options.no_lab else of_kernel()), end="")
    except LabError as error:
        print(f"transactions: {error}", file=sys.stderr)
        return STATUS_LAB
    except RcdrvError as error:
        print(f"transactions: {error.message}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
