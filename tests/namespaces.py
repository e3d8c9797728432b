"""Two network namespaces of this machine, and programs inside them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from tests.programs import needed
from tests.unavailable import unavailable

HOST, BOARD = "10.9.0.1", "10.9.0.2"
LIMIT = 120.0
"""Seconds; far beyond what anything here takes, so that a hang is a failure."""
PROGRAM = [sys.executable, "-m", "rcdrv"]


class Namespaces(NamedTuple):
    """Of the host, and of the board."""

    host: str
    board: str

    def layout(self, spec: str) -> str:
        return f"{spec},vntb.peer=tap,vntb.peer_netns={self.board},vntb.peer_ip={BOARD}"

    def interfaces(self) -> tuple[list[str], list[str]]:
        """Those of both, but for loopback."""
        return _interfaces(self.host), _interfaces(self.board)


def _interfaces(namespace: str) -> list[str]:
    shown = subprocess.run(
        ["ip", "-n", namespace, "-j", "link"], stdout=subprocess.PIPE, text=True, check=True
    )
    return [one["ifname"] for one in json.loads(shown.stdout) if one["ifname"] != "lo"]


@contextlib.contextmanager
def two_namespaces() -> Iterator[Namespaces]:
    """Two that nothing joins, for as long; see :func:`unavailable`."""
    for program in ("ip", "setpriv"):
        needed(program)
    if os.geteuid() or not Path("/dev/net/tun").exists():
        unavailable("network namespaces need root, and interfaces /dev/net/tun: modprobe tun")
    names = Namespaces(f"rcdrv-host-{os.getpid()}", f"rcdrv-board-{os.getpid()}")
    with contextlib.ExitStack() as stack:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=True)
        yield names


def inside(namespace: str, command: list[str]) -> subprocess.Popen[str]:
    """Start a program there; it is the process itself that ``ip`` becomes."""
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("RCDRV_")},
    )


def read_until(process: subprocess.Popen[str], stream: IO[str] | None, pattern: str) -> str:
    """Read lines up to one that matches."""
    assert stream is not None
    end = threading.Timer(LIMIT, process.kill)
    end.start()
    try:
        for line in stream:
            if re.search(pattern, line):
                return line
    finally:
        end.cancel()
    pytest.fail(f"ended before {pattern!r}: {process.communicate()}")


PING = f"""
import socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout({LIMIT})
for sequence in range(3):
    body = struct.pack(">BBHHH", 8, 0, 0, 77, sequence) + bytes(int(sys.argv[1]))
    total = sum(struct.unpack(">%dH" % (len(body) // 2), body))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    s.sendto(body[:2] + struct.pack(">H", total ^ 0xffff) + body[4:], (sys.argv[2], 0))
    while True:
        answer = s.recv(70000)[20:]
        if answer[0] == 0 and answer[4:] == body[4:]:
            break
"""


def ping(namespace: str, address: str, size: int) -> None:
    """Three echoes there and back, of ``size`` bytes of data."""
    process = inside(namespace, [sys.executable, "-c", PING, str(size), address])
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out + err
