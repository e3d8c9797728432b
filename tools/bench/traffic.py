"""Traffic of every kind over ``rcdrv ntb tap``: ping, TCP, UDP, HTTP, both ways; and hours of it.

Both ends are network stacks of this machine, in two namespaces. What is transferred by HTTP has to
have the right SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tools.bench.network import (
    BOARD,
    HOST,
    check_host,
    inside,
    iperf,
    joined,
    namespaces,
    output,
    ping,
    running,
)
from tools.bench.programs import PYTHON

HTTP_BYTES = 100_000_000
_UDP = ("-u", "-b", "200M", "-l", "8192")
_WAYS = {"sim:": False, "vfio-user:": True}

FETCH = """
import hashlib, sys, urllib.request
found = hashlib.sha256()
with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
    while part := answer.read(1 << 20):
        found.update(part)
print(found.hexdigest())
"""

_LEAK_KB = 1024
"""What the memory of a process may grow by after a first round."""
_SAMPLE = 10
"""Seconds of iperf3 between two looks, in each direction."""


@contextlib.contextmanager
def serving(server: str, address: str, size: int) -> Iterator[tuple[str, str]]:
    """Serve ``size`` bytes by HTTP in the namespace ``server``; yields their URL and SHA-256."""
    with tempfile.TemporaryDirectory(prefix="rcdrv-http-") as folder:
        data = os.urandom(size)
        Path(folder, "data").write_bytes(data)
        serve = ("-u", "-m", "http.server", "8000", "--bind", address, "--directory", folder)
        with running(inside(server, PYTHON, *serve), "Serving HTTP"):
            yield f"http://{address}:8000/data", hashlib.sha256(data).hexdigest()


def http(server: str, address: str, client: str, size: int) -> float:
    """Fetch ``size`` bytes by HTTP from the namespace ``server``; return the seconds.

    :raises SystemExit: other bytes arrived
    """
    with serving(server, address, size) as (url, digest):
        return checked(lambda: output(inside(client, PYTHON, "-c", FETCH, url)), digest)


def checked(fetch: Callable[[], str], digest: str) -> float:
    """Return the seconds that ``fetch`` takes, whose result has to begin with the SHA-256.

    :raises SystemExit: it does not
    """
    start = time.monotonic()
    said = fetch()
    seconds = time.monotonic() - start
    if said.split()[:1] != [digest]:
        raise SystemExit(f"bench: what HTTP brought has the SHA-256 {said.strip()}, not {digest}")
    return seconds


def run(minutes: float, *, quick: bool) -> int:
    """Print what passed; with ``minutes``, instead, whether so much traffic leaks."""
    check_host()
    print(f"load {os.getloadavg()[0]:.1f}")
    if minutes:
        return _soak(minutes)
    seconds, size = (1, HTTP_BYTES // 10) if quick else (5, HTTP_BYTES)
    found = {way: _everything(served, seconds, size) for way, served in _WAYS.items()}
    print(f"{'':34}" + "".join(f"{way:>24}" for way in found))
    for what in next(iter(found.values())):
        print(f"{what:34}" + "".join(f"{figures[what]:>24}" for figures in found.values()))
    return 0


def _everything(served: bool, seconds: int, size: int) -> dict[str, str]:
    figures = {}
    with namespaces() as (host, board), joined("embedded", host, board, served=served):
        times = ping(host, 10)
        figures["ping, median of 10"] = f"{statistics.median(times):.2f} ms, {10 - len(times)} lost"
        for way, reverse in (("to", ()), ("from", ("-R",))):
            options = ("-t", str(seconds), *reverse)
            rate = iperf(host, board, options)["sum_received"]["bits_per_second"]
            figures[f"TCP {way} the endpoint"] = f"{rate / 1e9:.2f} Gbit/s"
            got = iperf(host, board, (*options, *_UDP))["sum"]
            figures[f"UDP {way} the endpoint"] = (
                f"{got['bits_per_second'] / 1e6:.0f} Mbit/s, {got['lost_percent']:.1f} % lost"
            )
        for way, server, address, client in (
            ("to", host, HOST, board),
            ("from", board, BOARD, host),
        ):
            took = http(server, address, client, size)
            what = f"HTTP of {size // 1_000_000} MB {way} the endpoint"
            figures[what] = f"{took:.2f} s, SHA-256 right"
    return figures


def _soak(minutes: float) -> int:
    """Traffic for ``minutes``; the exit status is 1 if a process has grown, or has more files."""
    end = time.monotonic() + 60 * minutes
    total = 0
    with namespaces() as (host, board), joined("embedded", host, board, served=True) as processes:
        first: list[tuple[int, int]] = []
        while True:
            for reverse in ((), ("-R",)):
                options = ("-t", str(_SAMPLE), *reverse)
                total += iperf(host, board, options)["sum_received"]["bytes"]
                iperf(host, board, ("-t", "1", *_UDP, *reverse))
            http(board, BOARD, host, HTTP_BYTES // 10)
            http(host, HOST, board, HTTP_BYTES // 10)
            now = [_holds(process) for process in processes]
            first = first or now
            shown = "; ".join(f"{name} {kb} kB, {files} files" for name, (kb, files) in _named(now))
            print(f"{total / 1e9:8.1f} GB: {shown}", flush=True)
            if time.monotonic() >= end:
                break
    grown = [
        name
        for (name, (kb, files)), (kb_before, files_before) in zip(_named(now), first, strict=True)
        if kb > kb_before + _LEAK_KB or files > files_before
    ]
    print(f"leaks: {', '.join(grown) or 'none'}")
    return 1 if grown else 0


def _named(found: Sequence[tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
    return list(zip(("the endpoint", "rcdrv"), found, strict=True))


def _holds(process: int) -> tuple[int, int]:
    """Resident memory in kB, but for what is shared with the other side, and open files."""
    resident = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    assert resident is not None
    return int(resident[1]), len(list(Path(f"/proc/{process}/fd").iterdir()))
