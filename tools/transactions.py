"""Count the BAR accesses of rcdrv and of the kernel's driver in each of the 23 cases.

Accesses take most of the time on a link. A trapping endpoint sees each of them. The counts do not
depend on the machine while answers arrive within 20 ms, so ``docs/performance.md`` lists them and
tests check them. After 20 ms rcdrv polls STATUS; the kernel's driver does not.

``python3 -m tools.transactions`` prints the table. The kernel's columns need the lab.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import rcdrv.api
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.irqs import raise_vector
from rcdrv.errors import RcdrvError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.layout import load_layout
from tools.compare import judges
from tools.lab.endpoint import REPOSITORY
from tools.lab.errors import LabError
from tools.lab.kernel_driver import SELFTEST

SPEC = ",".join(("generic", *(f"bar{bar}.size=16K" for bar in range(6))))
"""All 23 cases pass, so both drivers run them completely. Small BARs, as each word traps."""
READ_NS, WRITE_NS = 550, 50
"""Shortest published round trip of a 32-bit read, and spacing of posted writes (performance.md)."""
STATUS_LAB = 125

DOORBELL_TEST = "pcie_ep_doorbell.DOORBELL_TEST"
WHOLE = "DOORBELL_TEST, all of a session"
"""Includes the opening, or the probe of the kernel's driver."""


class Count(NamedTuple):
    """BAR accesses. Those of config space are not counted: the host's kernel makes most of them."""

    reads: int
    """Non-posted: each waits for its completion."""
    writes: int
    """Posted."""

    @property
    def microseconds(self) -> float:
        """Minimum time of the accesses on a link."""
        return (self.reads * READ_NS + self.writes * WRITE_NS) / 1000


def count(log: str) -> Count:
    """Count the accesses in lines of an access log."""
    reads = writes = 0
    for line in log.splitlines():
        entry = json.loads(line)
        if "event" in entry or entry["region"] == "CONFIG":
            continue
        if entry["size"] > 8:
            raise ValueError(f"an entry of {entry['size']} bytes hides the width of its accesses")
        if entry["op"] == "read":
            reads += 1
        else:
            writes += 1
    return Count(reads, writes)


class _Trapped(Direct):
    """Split blocks into accesses of at most 8 bytes, as vfio_pci_core_do_io_rw() does."""

    messages = False

    def read(self, region: int, offset: int, size: int) -> bytes:
        one = super().read
        ends = range(offset, offset + size, 8)
        return b"".join(one(region, at, min(8, offset + size - at)) for at in ends)

    def write(self, region: int, offset: int, data: bytes) -> None:
        for at in range(0, len(data), 8):
            super().write(region, offset + at, data[at : at + 8])


class Counter:
    """Count new entries of an access log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._seen = 0

    def take(self) -> Count:
        """Count the accesses since the last call. The driver must be idle."""
        with self._log.open("rb") as file:
            file.seek(self._seen)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]  # the last line may be half there, as it is written
        self._seen += len(new)
        return count(new.decode())


def of_rcdrv(log: Path) -> dict[str, Count]:
    """Count accesses of rcdrv by step and case, in this process and on virtual time.

    :param log: file for the access log
    """
    counts: dict[str, Count] = {}
    with log.open("w") as stream:
        device = _Trapped(load_layout(SPEC), AccessLog(stream))
        counter = Counter(log)

        def step(name: str, action: Callable[[], object]) -> None:
            action()
            counts[name] = counter.take()

        endpoint = rcdrv.api.Endpoint(Function(device.attach(), clock=device.clock))
        counter.take()
        step("first command", lambda: _first_command(endpoint))
        for name in rcdrv.api.case_names():
            step(name, lambda name=name: endpoint.test(name).check())  # type: ignore[misc]
        with endpoint.doorbell() as doorbell:
            doorbell.ring()  # needs no write of STATUS
            counter.take()
            step("one ring", doorbell.ring)
        endpoint.close()
        counter.take()

        def session() -> None:
            with rcdrv.api.Endpoint(Function(device.attach(), clock=device.clock)) as endpoint:
                endpoint.test(DOORBELL_TEST).check()

        step(WHOLE, session)
        device.endpoint.close()
    return counts


def _first_command(endpoint: rcdrv.api.Endpoint) -> None:
    """Run what a session does once: find the registers, clean up after an earlier run."""
    raise_vector(endpoint.driver, IrqChoice.MSI, 0)
    endpoint.disable_doorbell()


def of_kernel() -> dict[str, Count]:
    """Count accesses of the kernel's driver by case of the kselftest, in a lab guest.

    :raises LabError: the lab does not start, or a case does not pass
    """
    return dict(_of_kernel())


def _of_kernel() -> Iterator[tuple[str, Count]]:
    with judges.laboratory([SPEC], log_accesses=True) as guest:
        judges.prepare(guest)
        (endpoint,) = guest.endpoints
        counter = Counter(endpoint.access_log)
        counter.take()
        judges.hand_over(guest, endpoint, judges.DRIVER)
        probe = counter.take()
        for name in rcdrv.api.case_names():
            counter.take()
            result = guest.run([str(judges.FOLDER / SELFTEST), "-r", name], timeout=180)
            if result.status:
                raise LabError(f"the kselftest's {name} does not pass: {result.stdout}")
            counts = counter.take()
            yield name, counts
            if name == DOORBELL_TEST:
                yield WHOLE, Count(*map(sum, zip(probe, counts, strict=True)))


def table(ours: Mapping[str, Count], kernel: Mapping[str, Count]) -> str:
    """Return the table in the Markdown of docs/performance.md."""
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


Accesses = tuple[int, int]
"""BAR reads and writes."""


def documented() -> dict[str, tuple[Accesses, Accesses | None]]:
    """Return the table of docs/performance.md: accesses of rcdrv and of the kernel, by step."""
    found: dict[str, tuple[Accesses, Accesses | None]] = {}
    for line in (REPOSITORY / "docs/performance.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and cells[0].startswith("`"):
            reads, kernel_reads, writes, kernel_writes = cells[1:5]
            kernel = (int(kernel_reads), int(kernel_writes)) if kernel_reads else None
            found[cells[0].strip("`")] = (int(reads), int(writes)), kernel
    return found


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.transactions", description=__doc__)
    parser.add_argument("--no-lab", action="store_true", help="rcdrv's columns only")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="rcdrv-transactions-") as folder:
            ours = of_rcdrv(Path(folder) / "access")
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
