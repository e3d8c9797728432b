"""Count the accesses of rcdrv and of the kernel's driver: a ring, each of the 23 cases, and more.

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
from typing import NamedTuple, Protocol, TypeVar

import rcdrv.api
from rcdrv.describe import describe
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.irqs import raise_vector
from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.ping import DoorbellPinger
from rcdrv.epf_vntb.registers import choose_map
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
_T = TypeVar("_T")

MEBIBYTE = "generic,bar1.size=1M"
VNTB = "rcar-s4-vntb,vntb.peer_delay_ms=0"
BAR_TEST = "pci_ep_bar.BAR1.BAR_TEST"
DOORBELL_TEST = "pcie_ep_doorbell.DOORBELL_TEST"
WHOLE = "DOORBELL_TEST, all of a session"
"""Includes the opening, or the probe of the kernel's driver."""


class Count(NamedTuple):
    """Accesses of the host."""

    reads: int
    """Of BARs; non-posted: each waits for its completion."""
    writes: int
    """Of BARs; posted."""
    config: int
    """Of config space, both ways; non-posted. The kernel's are its PCI core's."""
    size: int
    """Bytes of the accesses of BARs."""

    @property
    def microseconds(self) -> float:
        """Minimum time of the BARs' accesses on a link."""
        return (self.reads * READ_NS + self.writes * WRITE_NS) / 1000


def count(log: str) -> Count:
    """Count the accesses in lines of an access log."""
    reads = writes = config = size = 0
    for line in log.splitlines():
        entry = json.loads(line)
        if "event" in entry:
            continue
        if entry["region"] == "CONFIG":
            config += 1
            continue
        if entry["size"] > 8:
            raise ValueError(f"an entry of {entry['size']} bytes hides the width of its accesses")
        size += entry["size"]
        if entry["op"] == "read":
            reads += 1
        else:
            writes += 1
    return Count(reads, writes, config, size)


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
    for spec, steps in ((SPEC, _of_epf_test), (MEBIBYTE, _of_bulk), (VNTB, _of_vntb)):
        with log.open("w") as stream:
            device = _Trapped(load_layout(spec), AccessLog(stream))
            counter = Counter(log)

            def step(name: str, action: Callable[[], _T], counter: Counter = counter) -> _T:
                counter.take()
                result = action()
                counts[name] = counter.take()
                return result

            steps(device, step)
            device.endpoint.close()
    return counts


class _Step(Protocol):
    """Count the accesses of an action, and return its result."""

    def __call__(self, name: str, action: Callable[[], _T]) -> _T: ...


def _opened(device: Direct) -> rcdrv.api.Endpoint:
    return rcdrv.api.Endpoint(Function(device.attach(), clock=device.clock))


def _of_epf_test(device: Direct, step: _Step) -> None:
    endpoint = step("open", lambda: _opened(device))
    step("info", lambda: describe(endpoint.driver.function))
    step("first command", lambda: _first_command(endpoint))
    for name in rcdrv.api.case_names():
        step(name, lambda name=name: endpoint.test(name).check())  # type: ignore[misc]
    with endpoint.doorbell() as doorbell:
        doorbell.ring()  # needs no write of STATUS
        step("one ring", doorbell.ring)
    step("close", endpoint.close)

    def session() -> None:
        with _opened(device) as endpoint:
            endpoint.test(DOORBELL_TEST).check()

    step(WHOLE, session)


def _of_bulk(device: Direct, step: _Step) -> None:
    with _opened(device) as endpoint:
        endpoint.test(BAR_TEST).check()  # finds out the width
        step(f"{BAR_TEST} of 1 MiB", lambda: endpoint.test(BAR_TEST).check())


def _of_vntb(device: Direct, step: _Step) -> None:
    with Function(device.attach(), clock=device.clock) as function:
        vntb = Vntb(function, choose_map(function.config.vendor_id, function.config.device_id))
        pinger = DoorbellPinger(vntb)
        try:
            pinger.open()
            step("vNTB: one ping", lambda: pinger.ping(0))
        finally:
            pinger.close()
            vntb.close()


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


_COLUMNS = ("reads", "writes", "config", "bytes")


def table(ours: Mapping[str, Count], kernel: Mapping[str, Count]) -> str:
    """Return the table in the Markdown of docs/performance.md."""
    heads = "".join(f" {one} | kernel's |" for one in (*_COLUMNS, "at least, us"))
    rows = [f"| |{heads}", "|---" * 11 + "|"]
    for name, mine in ours.items():
        theirs = kernel.get(name)
        of_kernel = [*map(str, theirs), f"{theirs.microseconds:.1f}"] if theirs else [""] * 5
        pairs = zip((*map(str, mine), f"{mine.microseconds:.1f}"), of_kernel, strict=True)
        rows.append(
            f"| `{name}` | " + " | ".join(f"{own} | {other}" for own, other in pairs) + " |"
        )
    return "\n".join(rows) + "\n"


def documented() -> dict[str, tuple[Count, Count | None]]:
    """Return the table of docs/performance.md: accesses of rcdrv and of the kernel, by step."""
    found: dict[str, tuple[Count, Count | None]] = {}
    for line in (REPOSITORY / "docs/performance.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 11 and cells[0].startswith("`"):
            mine, kernel = cells[1:9:2], cells[2:9:2]
            found[cells[0].strip("`")] = (
                Count(*map(int, mine)),
                Count(*map(int, kernel)) if kernel[0] else None,
            )
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
