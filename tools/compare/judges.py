"""Has the kernel's driver and rcdrv judge an endpoint, one after the other in the same guest.

The endpoint is a software endpoint, or the kernel's own functions in a guest of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from rcdrv.sim.description import Dma
from rcdrv.sim.layout import load_layout
from tools.compare.outcome import Outcome, from_document, from_tap, stamped
from tools.compare.rows import Row, lacking, rows_of
from tools.lab.channel import Result
from tools.lab.endpoint import Endpoint
from tools.lab.errors import LabError
from tools.lab.guest import Guest
from tools.lab.kernel_driver import MODULE, SELFTEST, kernel_driver
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint

DRIVER, VFIO = "pci-endpoint-test", "vfio-pci"
FOLDER = PurePosixPath("/opt/kernel")
# The kselftest opens nothing else, so the driver may have one function at a time.
NODE = "/dev/pci-endpoint-test.0"
TIMEOUT = 180.0
_SECONDS = "/tmp/compare-seconds"

# One pipe for the results, on stdout, and what led to them, on stderr: that keeps the order.
_STAMPED = '"$@" 2>&1 | ts %.s'
_HAND_OVER = """
cd "/sys/bus/pci/devices/$1"
echo "$2" >driver_override
if [ -e driver ]; then echo "$1" >driver/unbind; fi
echo "$1" >/sys/bus/pci/drivers_probe
[ "$(basename "$(readlink driver)")" = "$2" ]
"""


@dataclass(frozen=True)
class Judgement:
    """All that one judge says of one endpoint."""

    outcomes: dict[str, Outcome]
    process: float
    """Seconds from the start of the judge's process to its end, on the guest's clock."""
    log: tuple[str, ...] = ()
    """What the driver wrote to the kernel's log meanwhile, or rcdrv to its stderr."""

    @property
    def cases(self) -> float:
        """Seconds in the cases proper."""
        return sum(outcome.seconds for outcome in self.outcomes.values())


@dataclass(frozen=True)
class Comparison:
    """Both judgements of one endpoint."""

    preset: str
    kernel: Judgement
    rcdrv: Judgement

    @property
    def rows(self) -> list[Row]:
        return rows_of(
            self.preset, self.kernel.outcomes, self.rcdrv.outcomes, left_out(self.preset)
        )


@dataclass(frozen=True)
class Square:
    """Both judgements of the software endpoint, and both of the kernel's endpoint functions."""

    software: Comparison
    kernel: Comparison

    @property
    def preset(self) -> str:
        return self.software.preset

    @property
    def differing(self) -> list[tuple[Row, Row]]:
        """The cases that do not end the same on both endpoints, for both judges."""
        rows = {row.case: row for row in self.kernel.rows}
        pairs = [(row, rows.get(row.case, lacking(row))) for row in self.software.rows]
        return [pair for pair in pairs if pair[0].said != pair[1].said]


@dataclass(frozen=True)
class Timing:
    """The fastest of several runs of each judge on one endpoint."""

    preset: str
    runs: int
    kernel: Judgement
    rcdrv: Judgement


def laboratory(presets: Sequence[str], *, log_accesses: bool = False) -> Guest:
    """The guest for these presets, not booted yet.

    :param presets: with ``kernel:`` in front for the kernel's endpoint functions
    :param log_accesses: trap every access, and log it; else BARs are mapped

    :raises LabError: the kernel's driver cannot be built here
    """
    files = {str(FOLDER).lstrip("/"): kernel_driver("x86_64")}
    # Bound to vfio-pci, or the module would take all of them when it is loaded.
    return Guest("x86_64", endpoints=presets, files=files, log_accesses=log_accesses)


def prepare(guest: Guest) -> str:
    """Load the driver.

    :returns: the kernel's release
    """
    _must(guest.run(["insmod", str(FOLDER / MODULE)]), "load the kernel's driver")
    return _must(guest.run(["uname", "-r"]), "ask for the kernel's release").strip()


def compare(guest: Guest, endpoint: Endpoint) -> Comparison:
    """Both judges, first the kernel's driver, which leaves the endpoint as it happens to."""
    kernel = judge_by_kernel(guest, endpoint)
    comparison = Comparison(endpoint.spec, kernel, judge_by_rcdrv(guest, endpoint))
    if isinstance(endpoint, KernelEndpoint) and (oops := endpoint.crash()):
        raise LabError(f"the kernel of endpoint {endpoint.spec} crashed:\n{oops}")
    return comparison


def measure(guest: Guest, endpoint: Endpoint, runs: int) -> Timing:
    """Both judges in turns, as often; :func:`compare` before it has warmed everything up."""
    kernel, rcdrv = [], []
    for _ in range(runs):
        kernel.append(judge_by_kernel(guest, endpoint))
        rcdrv.append(judge_by_rcdrv(guest, endpoint))

    def fastest(judgements: list[Judgement]) -> Judgement:
        return min(judgements, key=lambda judgement: judgement.process)

    return Timing(endpoint.spec, runs, fastest(kernel), fastest(rcdrv))


def left_out(preset: str) -> tuple[str, ...]:
    """Variants that hang the kernel's driver: it waits for ever on an endpoint without DMA."""
    return ("dma",) if load_layout(preset).dma is Dma.NONE else ()


def judge_by_kernel(guest: Guest, endpoint: Endpoint) -> Judgement:
    """The unmodified driver, through the unmodified kselftest."""
    hand_over(guest, endpoint, DRIVER)
    _must(guest.run(["test", "-c", NODE]), f"find {NODE}")
    guest.run(["dmesg", "-c"])
    options = [part for variant in left_out(endpoint.spec) for part in ("-V", variant)]
    argv = ["sh", "-c", _STAMPED, "stamped", *_timed([str(FOLDER / SELFTEST), *options])]
    tap = stamped(guest.run(argv, timeout=TIMEOUT).stdout)
    process = _seconds(guest)
    log = guest.run(["dmesg", "-c"]).stdout.splitlines()
    hand_over(guest, endpoint, VFIO)
    return Judgement(from_tap(tap), process, tuple(line for line in log if DRIVER in line))


def judge_by_rcdrv(guest: Guest, endpoint: Endpoint) -> Judgement:
    """``rcdrv test``, through the kernel's VFIO."""
    argv = ["rcdrv", "--device", endpoint.address, "test", "--json"]
    result = guest.run(_timed(argv), timeout=TIMEOUT)
    log = tuple(result.stderr.splitlines())
    try:
        return Judgement(from_document(result.stdout), _seconds(guest), log)
    except ValueError as error:
        raise LabError(f"rcdrv test ended with {result.status}: {result.stderr}") from error


def _timed(argv: Sequence[str]) -> list[str]:
    return ["time", "-f", "%e", "-o", _SECONDS, *argv]


def _seconds(guest: Guest) -> float:
    """Seconds of a timed command, from the last line: a status other than 0 has a line before."""
    return float(guest.get(_SECONDS).split()[-1])


def hand_over(guest: Guest, endpoint: Endpoint, driver: str) -> None:
    script = ["sh", "-ec", _HAND_OVER, "hand-over", endpoint.address, driver]
    _must(guest.run(script), f"give {endpoint.spec} at {endpoint.address} to {driver}")


def _must(result: Result, purpose: str) -> str:
    if result.status:
        raise LabError(f"cannot {purpose}: {result.stderr.strip()}")
    return result.stdout
