"""Comparison of rcdrv, C and the kernel's own driver on one endpoint, in one lab guest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from tools.bench import inside
from tools.bench.measure import NO_SLOWER, Row, Target, compared
from tools.bench.native import LIBRARY
from tools.compare import judges
from tools.lab.endpoint import Endpoint
from tools.lab.errors import LabError
from tools.lab.guest import Guest

PRESET = "generic"  # all cases pass, so no driver waits for a time-out
_HOME = "/opt/bench"
_PYTHON = (
    "the guest's processor is emulated, which slows an interpreter down more than compiled loops;"
    " BAR fill + verify is the same on a real processor"
)

Medians = dict[str, list[float]]
"""Median of each round in nanoseconds, by operation."""


def rows(library: Path, *, quick: bool) -> Iterator[Row]:
    """Measure everything that needs the kernel's VFIO or the kernel's driver.

    :raises LabError: the lab does not start
    """
    with judges.laboratory([PRESET]) as guest:
        judges.prepare(guest)
        (endpoint,) = guest.endpoints
        _bring(guest, library)
        ours: Medians = {}
        kernel: Medians = {}
        for _ in range(2 if quick else 9):
            _add(kernel, _by_kernel(guest, endpoint))
            _add(ours, _work(guest, "rcdrv", endpoint.address))
        yield from _rings(ours)
        yield from _against_kernel(ours, kernel)
        timing = judges.measure(guest, endpoint, 1 if quick else 3)
    mine, theirs = timing.rcdrv, timing.kernel
    kselftest = "the kselftest"
    yield compared("the 23 cases, in the cases", "s", [mine.cases], kselftest, [theirs.cases])
    yield compared(
        "the 23 cases, whole process",
        "s",
        [mine.process],
        kselftest,
        [theirs.process],
        NO_SLOWER,
        f"{mine.process - mine.cases:.1f} s of it are outside the cases: an interpreter starts and"
        " imports on an emulated processor, and VFIO resets the function at open",
    )


def _rings(ours: Medians) -> Iterator[Row]:
    for how in ("interrupt", "spin", "poll"):
        yield _row(
            f"ring to answer, {how}", "us", ours[f"ring {how}"], f"C, {how}", ours[f"C ring {how}"]
        )


def _against_kernel(ours: Medians, kernel: Medians) -> Iterator[Row]:
    kernels = "the kernel's driver"
    share = (min(ours["ring interrupt"]) - min(ours["C ring interrupt"])) / 1e3
    yield _row(
        "DOORBELL_TEST",
        "ms",
        ours["doorbell cycle"],
        kernels,
        kernel["doorbell cycle"],
        NO_SLOWER,
        f"a command waits for a look of the endpoint, {min(ours['raise MSI']) / 1e6:.1f} ms with"
        " the answer, and DISABLE for one more where it comes late; Python on the emulated"
        f" processor adds {share:.0f} us to a single ring",
    )
    yield _row("raise MSI", "ms", ours["raise MSI"], kernels, kernel["raise MSI"], None)
    size = int(ours["BAR bytes"][0])
    what = f"BAR_TEST of {size >> 10} KiB"
    yield _row(what, "ms", ours["BAR"], kernels, kernel["BAR"], None, _PYTHON)
    yield _row(
        what,
        "ms",
        ours["BAR"],
        "C, the same mapping",
        ours["C BAR"],
        None,
        _PYTHON,
    )
    for direction in ("READ", "WRITE", "COPY"):
        yield _row(
            f"{direction} of {inside.SIZE} bytes", "ms", ours[direction], kernels, kernel[direction]
        )


def _row(
    what: str,
    unit: str,
    ours: list[float],
    against: str,
    theirs: list[float],
    target: Target | None = None,
    because: str = "",
) -> Row:
    scale = {"us": 1e3, "ms": 1e6}[unit]
    mine, other = ([median / scale for median in medians] for medians in (ours, theirs))
    return compared(f"{what}, in the guest", unit, mine, against, other, target, because)


def _bring(guest: Guest, library: Path) -> None:
    here = Path(__file__).parent
    for name in ("__init__.py", "native.py", "inside.py"):
        guest.put(f"{_HOME}/tools/bench/{name}", (here / name).read_bytes())
    guest.put(f"{_HOME}/tools/__init__.py", b"")
    guest.put(f"{_HOME}/tools/bench/{LIBRARY}", library.read_bytes())


def _by_kernel(guest: Guest, endpoint: Endpoint) -> dict[str, list[float]]:
    judges.hand_over(guest, endpoint, judges.DRIVER)
    try:
        return _work(guest, "kernel")
    finally:
        judges.hand_over(guest, endpoint, judges.VFIO)


def _work(guest: Guest, *arguments: str) -> dict[str, list[float]]:
    result = guest.run(
        ["python3", "-m", "tools.bench.inside", *arguments],
        env={"PYTHONPATH": f"{_HOME}:/opt/rcdrv"},
        timeout=180,
    )
    if result.status:
        raise LabError(f"the measurement in the guest failed: {result.stderr}")
    found: dict[str, list[float]] = json.loads(result.stdout)
    return found


def _add(medians: Medians, round_: Mapping[str, list[float]]) -> None:
    for name, samples in round_.items():
        medians.setdefault(name, []).append(median(samples))
