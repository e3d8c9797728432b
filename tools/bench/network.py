"""Network over a vNTB: ``ping`` and ``iperf3`` between two namespaces, over ``rcdrv ntb tap``.

The reference is a plain copier: a loop in Python that copies frames between two TAP interfaces. It
shows the maximum rate of such a loop on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from tools.bench.measure import Kind, Row, Target, compared, in_turns
from tools.bench.programs import PYTHON, RCDRV

HOST, BOARD = "10.9.0.1", "10.9.0.2"
MTU = 65510
_LONGEST = 120.0
"""Seconds that a program may take."""
PRESETS = {"polled": "rcar-s4-vntb-polled", "embedded": "rcar-s4-vntb"}
INTERVAL = "0.223"
"""Seconds between pings, in whole ms as ping has them. With the endpoint's tick, 12 ms, it has no
divisor in common, so that pings fall into each of the 12."""

COPIER = f"""
import os, select, subprocess, sys
from ipaddress import IPv4Interface
from rcdrv.tap import Tap
near, far = Tap("ntb0"), Tap("far")
near.set_mtu({MTU}); near.set_address(IPv4Interface("{HOST}/24")); near.up(); far.set_mtu({MTU})
subprocess.run(["ip", "link", "set", "far", "netns", sys.argv[1]], check=True)
for command in (["addr", "add", "{BOARD}/24", "dev", "far"], ["link", "set", "far", "up"]):
    subprocess.run(["ip", "-n", sys.argv[1], *command], check=True)
print("link up", flush=True)
fds = [tap.queues[0].fd for tap in (near, far)]
other = dict(zip(fds, reversed(fds)))
while True:
    for fd in select.select(list(other), [], [])[0]:
        try:
            for _ in range(15):
                os.write(other[fd], os.read(fd, 70000))
        except BlockingIOError:
            pass
"""


class Figures(NamedTuple):
    """Results of one connection between two network stacks."""

    ping: list[float]
    """Round trips in ms."""
    there: list[float]
    """Seconds per GB by TCP to the board; the minimum counts."""
    back: list[float]
    """The same from the board."""


def rows(*, quick: bool) -> Iterator[Row]:
    """Compare round trips and TCP rates of each doorbell with the other one or the copier.

    :raises SystemExit: a program or a permission is missing
    """
    check_host()
    found = {name: Figures([], [], []) for name in ("copier", *PRESETS)}

    def contestant(name: str) -> float:
        with namespaces() as (host, board), joined(name, host, board):
            figures = found[name]
            figures.ping.extend(ping(host, 10 if quick else 40))
            for into, reverse in ((figures.there, ()), (figures.back, ("-R",))):
                into.append(_iperf(host, board, 2 if quick else 5, reverse))
        return 0.0

    in_turns({name: partial(contestant, name) for name in found}, 1 if quick else 3)
    polled, embedded, copier = (found[name] for name in ("polled", "embedded", "copier"))
    medians = [[statistics.median(one.ping)] for one in (polled, embedded, copier)]
    yield compared("ping, doorbell polled", "ms", medians[0], "doorbell embedded", medians[1])
    yield compared("ping, doorbell embedded", "ms", medians[1], "plain copier", medians[2])
    # The rate of a polled endpoint is limited to a ring of 1 MiB per tick of 12 ms.
    for name, ours, target in (
        ("embedded", embedded, Target(Kind.RATE, 0.5)),
        ("polled", polled, None),
    ):
        for way, mine, theirs in (
            ("to", ours.there, copier.there),
            ("from", ours.back, copier.back),
        ):
            what = f"1 GB by TCP {way} the endpoint, {name}"
            yield compared(what, "s", mine, "plain copier", theirs, target)


def check_host() -> None:
    """:raises SystemExit: something that it takes is missing"""
    missing = [name for name in ("ip", "ping", "iperf3") if shutil.which(name) is None]
    if missing or os.geteuid():
        raise SystemExit(f"bench: ntb needs root and the programs {', '.join(missing) or 'it has'}")


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    names = f"rcdrv-host-{os.getpid()}", f"rcdrv-board-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        yield names


@contextlib.contextmanager
def joined(name: str, host: str, board: str, *, served: bool = False) -> Iterator[list[int]]:
    """Connect two network stacks by the copier, or by a vNTB of a preset; yield the processes.

    :param served: serve the endpoint on a socket, instead of leaving its start to the command
    """
    command: Sequence[str] = (PYTHON, "-c", COPIER, board)
    with contextlib.ExitStack() as stack:
        processes = []
        if name in PRESETS:
            layout = f"{PRESETS[name]},vntb.peer=tap,vntb.peer_netns={board},vntb.peer_ip={BOARD}"
            device = f"sim:{layout}"
            if served:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rcdrv-bench-"))
                device = f"vfio-user:{folder}/ep.sock"
                serve = (*RCDRV, "sim", layout, "--socket", f"{folder}/ep.sock")
                processes.append(stack.enter_context(running(serve, "serving")))
            command = (*RCDRV, "-d", device, "ntb", "tap", "--address", f"{HOST}/24")
        processes.append(stack.enter_context(running(inside(host, *command), "link up")))
        yield [process.pid for process in processes]


@contextlib.contextmanager
def running(command: Sequence[str], ready: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program; enter when it prints a line with ``ready`` in it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            if ready in line:
                break
            said.append(line)
        else:
            print("".join(said), end="", file=sys.stderr)
            raise SystemExit(f"bench: {' '.join(command)} ended with {process.wait()}")
        yield process
    finally:
        process.terminate()
        process.communicate()


def inside(namespace: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *command]


def ping(host: str, count: int) -> list[float]:
    """Round trips in ms; the first, which waits for ARP, is left out."""
    command = inside(host, "ping", "-n", "-c", str(count + 1), "-i", INTERVAL, "-W", "5", BOARD)
    return [float(time) for time in re.findall(r"time=([\d.]+) ms", output(command))][1:]


def _iperf(host: str, board: str, seconds: int, options: Sequence[str]) -> float:
    """Seconds for a GB."""
    end = iperf(host, board, ("-t", str(seconds), *options))
    return 8e9 / float(end["sum_received"]["bits_per_second"])


def iperf(host: str, board: str, options: Sequence[str]) -> dict[str, Any]:
    """What iperf3 says at the end of a run; its server is the board."""
    with running(inside(board, "iperf3", "-s", "-1", "--forceflush"), "listening"):
        said = json.loads(output(inside(host, "iperf3", "-c", BOARD, "-J", *options)))
    end: dict[str, Any] = said["end"]
    return end


def output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, timeout=_LONGEST
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(
            f"bench: {' '.join(command)} did not end in {_LONGEST:g} s: the traffic stands still,"
            " or what else runs on this machine leaves it no processor"
        ) from None
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"bench: {' '.join(command)} ended with {done.returncode}")
    return done.stdout
