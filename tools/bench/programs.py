"""Start-up and memory of rcdrv as a program, and the rate of a fuzz campaign."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tools.bench.measure import NO_SLOWER, Kind, Row, Target, compared, in_turns

PYTHON = sys.executable
PASS = (PYTHON, "-c", "pass")
RCDRV = (PYTHON, "-m", "rcdrv")
# VmHWM counts this program only; ru_maxrss would start with its parent's memory.
_PEAK = """
import sys
try:
    if sys.argv[1:]:
        from rcdrv.cli import main
        main(sys.argv[1:])
finally:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    print(line.split()[1], file=sys.stderr)
"""
# Calls of Python functions a layout: those of many less those of few, without start and end.
_CALLS = """
import contextlib, io, sys
from rcdrv.cli import main
from tools.bench.measure import calls

def campaign(examples):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["fuzz", "layout", "--examples", str(examples), "--workers", "1"]) == 0

many = int(sys.argv[1])
print((calls(lambda: campaign(20 + many)) - calls(lambda: campaign(20))) // many)
"""
_LAYOUTS = 500.0
"""Layouts a second and core: the target."""


def rows(*, quick: bool) -> Iterator[Row]:
    """Measure start-up, memory and fuzzing."""
    with served("rk3588") as address, compiled():
        yield from _start(address, 7 if quick else 21)
        yield from _memory(address)
        yield from _fuzz(30 if quick else 600, 1 if quick else 3)


@contextlib.contextmanager
def compiled() -> Iterator[None]:
    """Let programs use bytecode, as an installed rcdrv does, whatever the environment."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="rcdrv-bench-") as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def served(spec: str) -> Iterator[str]:
    """Yield the address of a running software endpoint."""
    with tempfile.TemporaryDirectory(prefix="rcdrv-bench-") as folder:
        path = Path(folder) / "endpoint.sock"
        process = subprocess.Popen(
            [*RCDRV, "sim", spec, "--socket", str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 30
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"bench: the software endpoint {spec} did not start")
                time.sleep(0.005)
            yield f"vfio-user:{path}"
        finally:
            process.terminate()
            process.wait()


def _start(address: str, rounds: int) -> Iterator[Row]:
    ring = (*RCDRV, "--device", address, "ring")
    # The whole start, up to the failing connection to a device that does not exist.
    nobody = (*RCDRV, "--device", f"{address}.nobody", "ring")
    found = in_turns(
        {
            "bare": lambda: seconds(PASS) * 1e3,
            "start": lambda: seconds(nobody, expect=3) * 1e3,
            "ring": lambda: seconds(ring) * 1e3,
        },
        rounds,
    )
    bare = "python3 -c pass"
    yield compared(
        "start-up of rcdrv ring", "ms", found["start"], bare, found["bare"], Target(Kind.TIMES, 4.0)
    )
    yield compared(
        "rcdrv ring, all of it",
        "ms",
        found["ring"],
        bare,
        found["bare"],
        None,
        "with two ticks of the endpoint (ENABLE, DISABLE) and 2 ms to detect a second interrupt",
    )


def _memory(address: str) -> Iterator[Row]:
    bare = peak()
    runs: tuple[tuple[str, ...], ...] = (
        ("ring",),
        ("ring", "--count", "3000"),
        ("test", "-f", "pci_ep_basic"),
    )
    for arguments in runs:
        ours = peak("--device", address, *arguments)
        yield compared(
            f"memory of rcdrv {' '.join(arguments)}",
            "MiB",
            [ours],
            "python3 -c pass",
            [bare],
        )


def _fuzz(examples: int, rounds: int) -> Iterator[Row]:
    def campaign(workers: int) -> Callable[[], float]:
        argv = ("fuzz", "layout", "--examples", str(examples), "--workers", str(workers), "--json")

        def run() -> float:
            output = subprocess.run([*RCDRV, *argv], stdout=subprocess.PIPE, check=False).stdout
            document = json.loads(output)
            return float(document["seconds"] / document["examples"]) * 1e3

        return run

    found = in_turns({"one": campaign(1), "two": campaign(2)}, rounds)
    counter = (PYTHON, "-c", _CALLS, str(min(examples, 200)))
    counted = subprocess.run(counter, stdout=subprocess.PIPE, check=True).stdout
    calls, one = int(counted), min(found["one"])
    yield compared(
        "fuzz, a layout with 1 worker",
        "ms",
        found["one"],
        f"{_LAYOUTS:g} a second",
        [1e3 / _LAYOUTS],
        NO_SLOWER,
        f"a layout makes {calls} calls of Python functions, {one * 1e3 / calls:.2f} us each with"
        f" what they do; at that cost the target allows {calls * 1e3 / _LAYOUTS / one:.0f}",
    )
    yield compared(
        "fuzz, a layout with 2 workers",
        "ms",
        found["two"],
        "with 1 worker",
        found["one"],
        None,
        f"{os.cpu_count()} processors here; 0.5 would be perfect scaling",
    )


def seconds(argv: Sequence[str], *, expect: int = 0) -> float:
    """Return the duration of a program, from the fork to its end."""
    start = time.perf_counter()
    done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    took = time.perf_counter() - start
    if done.returncode != expect:
        raise SystemExit(
            f"bench: {' '.join(argv)} ended with {done.returncode}: {done.stderr.decode()}"
        )
    return took


def peak(*arguments: str) -> float:
    """Return the peak memory in MiB of rcdrv, or without arguments of a bare interpreter."""
    done = subprocess.run(
        [PYTHON, "-c", _PEAK, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
    return int(done.stderr.split()[-1]) / 1024
