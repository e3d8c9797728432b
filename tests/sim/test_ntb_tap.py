"""rcdrv ntb tap: network stacks in two network namespaces, joined by a software vNTB."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from tests.programs import needed
from tests.unavailable import unavailable

from .conftest import LIMIT, Endpoint, Result, finish, listening

HOST, BOARD = "10.9.0.1", "10.9.0.2"
QUICK = "rcar-s4-vntb-polled,hz=1000"
SIZE = 4 << 20

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


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    for program in ("ip", "setpriv"):
        needed(program)
    if os.geteuid() or not Path("/dev/net/tun").exists():
        unavailable("network namespaces need root, and interfaces /dev/net/tun: modprobe tun")
    names = Namespaces(f"rcdrv-host-{os.getpid()}", f"rcdrv-board-{os.getpid()}")
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    yield names
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Running:
    """rcdrv ntb tap in the host's namespace."""

    def __init__(self, namespaces: Namespaces, device: str, *options: str) -> None:
        self.namespaces = namespaces
        command = [*PROGRAM, "-d", device, "ntb", "tap", "--address", f"{HOST}/24", *options]
        self.process = _inside(namespaces.host, command)

    def until(self, pattern: str) -> str:
        """Read lines up to one that matches."""
        return _read_until(self.process, self.process.stdout, pattern)

    def stop(self, number: int = signal.SIGTERM) -> Result:
        self.process.send_signal(number)
        return finish(self.process)


def _inside(namespace: str, command: list[str]) -> subprocess.Popen[str]:
    """Start a program there; it is the process itself that ``ip`` becomes."""
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("RCDRV_")},
    )


def _read_until(process: subprocess.Popen[str], stream: IO[str] | None, pattern: str) -> str:
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
    pytest.fail(f"ended before {pattern!r}: {finish(process)}")


PEER = f"""
import hashlib, socket, sys
SIZE = {SIZE}
def receive(s):
    data = hashlib.sha256(); left = SIZE
    while left:
        part = s.recv(min(left, 1 << 20))
        if not part:
            sys.exit("the connection ended %d bytes early" % left)
        data.update(part); left -= len(part)
    return data.digest()
def send(s, seed):
    part = hashlib.shake_256(seed).digest(SIZE)
    s.sendall(part)
    return hashlib.sha256(part).digest()
def exactly(s, n):
    data = b""
    while len(data) < n:
        data += s.recv(n - len(data)) or sys.exit("no digest")
    return data
"""

SERVER = f"""{PEER}
server = socket.create_server(("{BOARD}", 5001))
server.settimeout({LIMIT})
print("ready", flush=True)
s, _ = server.accept()
s.settimeout({LIMIT})
s.sendall(receive(s))
digest = send(s, b"board")
assert exactly(s, 32) == digest, "board to host"
print("both ways", flush=True)
"""

CLIENT = f"""{PEER}
s = socket.create_connection(("{BOARD}", 5001), {LIMIT})
digest = send(s, b"host")
assert exactly(s, 32) == digest, "host to board"
s.sendall(receive(s))
"""

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
    process = _inside(namespace, [sys.executable, "-c", PING, str(size), address])
    assert finish(process).status == 0


def transfer(namespaces: Namespaces) -> None:
    """Some MB each way over one TCP connection; both ends compare the digests."""
    server = _inside(namespaces.board, [sys.executable, "-c", SERVER])
    _read_until(server, server.stdout, "ready")
    client = finish(_inside(namespaces.host, [sys.executable, "-c", CLIENT]))
    served = finish(server)
    assert (client.status, served.status, served.out) == (0, 0, "both ways\n"), (client, served)


def test_two_network_stacks_over_a_served_endpoint(
    namespaces: Namespaces, endpoint: Callable[..., Endpoint]
) -> None:
    served = endpoint(namespaces.layout("rcar-s4-vntb,trap=sparse"))
    running = Running(namespaces, served.address)
    assert "MTU 65510, 15 slots of 0x10000 bytes" in running.until("link up")
    assert namespaces.interfaces() == (["ntb0"], ["ntb-ep"])
    for size in (56, 60000):
        ping(namespaces.host, BOARD, size)
        ping(namespaces.board, HOST, size)
    transfer(namespaces)
    running.process.send_signal(signal.SIGUSR1)
    _read_until(running.process, running.process.stderr, "ntb0 statistics")
    result = running.stop()
    assert result.status == 128 + signal.SIGTERM, result
    assert "dropped 0 too long, 0 not taken by this host, 0 out of order, 0 of a bad" in result.out
    sent = re.search(r"sent (\d+) packets, (\d+) bytes, with (\d+) doorbells", result.out)
    assert sent is not None
    assert int(sent[2]) > SIZE
    assert int(sent[3]) < int(sent[1])  # one for many
    assert namespaces.interfaces() == ([], ["ntb-ep"])
    bad = ("stray", "harm", "dma-fault", "doorbell-unheard")
    assert not [line for line in served.log() if line.get("event") in bad]


def test_an_endpoint_of_the_commands_own(namespaces: Namespaces) -> None:
    device = "sim:" + namespaces.layout(QUICK)
    running = Running(namespaces, device, "--json", "--mtu", "1500", "--name", "board0")
    deadline = time.monotonic() + LIMIT
    while "board0" not in namespaces.interfaces()[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    transfer(namespaces)
    result = running.stop(signal.SIGINT)
    assert result.status == 130, result
    document = result.document
    assert (document["verdict"], document["interface"]) == ("pass", "board0")
    assert document["counts"]["received_bytes"] > SIZE
    assert document["counts"]["dropped"] == 0
    assert namespaces.interfaces() == ([], [])


def test_a_link_that_comes_again(namespaces: Namespaces) -> None:
    """The endpoint's function is set up anew now and then: pci-epf-vntb is unbound and bound."""
    device = "sim:" + namespaces.layout(f"{QUICK},fault=link-drops=20")
    running = Running(namespaces, device)
    running.until("link up")
    pinging = _inside(
        namespaces.host,
        [
            sys.executable,
            "-c",
            f"import socket, time\ns = socket.socket(type=socket.SOCK_DGRAM)\n"
            f"while True:\n s.sendto(b'x', ('{BOARD}', 9)); time.sleep(0.02)",
        ],
    )
    running.until("link down: .*")
    running.until("link up")
    pinging.kill()
    finish(pinging)
    result = running.stop()
    assert (result.status, "link up 2 times" in result.out) == (128 + signal.SIGTERM, True), result


@pytest.mark.parametrize("again", [False, True])
def test_a_server_that_dies(namespaces: Namespaces, tmp_path: Path, again: bool) -> None:
    path = tmp_path / "ep.sock"

    def serve() -> subprocess.Popen[str]:
        command = [*PROGRAM, "sim", namespaces.layout(QUICK), "--socket", str(path)]
        process = _inside(namespaces.board, command)
        deadline = time.monotonic() + LIMIT
        while not listening(path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    server = serve()
    running = Running(namespaces, f"vfio-user:{path}", *(["--reconnect"] if again else []))
    running.until("link up")
    server.kill()
    finish(server)
    if again:
        path.unlink()
        server = serve()
        running.until("link up")
        ping(namespaces.host, BOARD, 56)
        assert running.stop().status == 128 + signal.SIGTERM
        server.kill()
        finish(server)
    else:
        result = finish(running.process)
        assert (result.status, "statistics" in result.out) == (5, True), result
    assert namespaces.interfaces() == ([], [])


NO_CAPABILITY = ("setpriv", "--bounding-set=-net_admin")
NO_DRIVER = ("sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")


@pytest.mark.parametrize(
    ("options", "around", "status", "message"),
    [
        (("--name", "lo"), (), 2, "the name lo is taken by an interface that is no TAP"),
        (("--name", "a/b"), (), 2, "'a/b' cannot be the name of an interface"),
        (("--name", "sixteen-letters-"), (), 2, "cannot be the name"),
        (("--address", "10.0.0.1.1"), (), 2, "is not an IPv4 address with its prefix"),
        (("--address", "fe80::1/64"), (), 2, "is not an IPv4 address with its prefix"),
        (("--mtu", "65511"), (), 2, "the window carries an MTU of 65510, not 65511"),
        ((), NO_CAPABILITY, 3, "the interface ntb0 cannot be made: no CAP_NET_ADMIN"),
        ((), NO_DRIVER, 3, "/dev/net/tun: No such file or directory"),
    ],
)
def test_what_is_in_the_way_is_named(
    namespaces: Namespaces,
    options: tuple[str, ...],
    around: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    command = [*around, *PROGRAM, "-d", f"sim:{QUICK},vntb.peer=netdev", "ntb", "tap", *options]
    result = finish(_inside(namespaces.host, command))
    assert (result.status, message in result.err) == (status, True), result
    assert result.err.startswith("rcdrv: ")
    assert "hint: " in result.err
    assert namespaces.interfaces() == ([], [])


def test_an_interface_of_the_users_own_needs_no_privilege(namespaces: Namespaces) -> None:
    """As ``ip tuntap add mode tap user`` makes it; what is set stays, and so does it."""
    for command in (
        ["tuntap", "add", "mine", "mode", "tap", "user", "root"],
        ["link", "set", "mine", "mtu", "1400", "up"],
        ["addr", "add", f"{HOST}/24", "dev", "mine"],
    ):
        subprocess.run(["ip", "-n", namespaces.host, *command], check=True)
    device = f"sim:{QUICK},vntb.peer=netdev,vntb.peer_ip={BOARD}"
    command = [*NO_CAPABILITY, *PROGRAM, "-d", device, "ntb", "tap", "--name", "mine"]
    process = _inside(namespaces.host, command)
    assert "MTU 1400" in _read_until(process, process.stdout, "link up")
    ping(namespaces.host, BOARD, 56)
    in_use = finish(_inside(namespaces.host, command))
    assert (in_use.status, "mine is in use by another program" in in_use.err) == (3, True), in_use
    process.terminate()
    assert finish(process).status == 128 + signal.SIGTERM
    assert namespaces.interfaces() == (["mine"], [])


def test_an_interface_that_is_deleted(namespaces: Namespaces) -> None:
    running = Running(namespaces, f"sim:{QUICK},vntb.peer=netdev")
    running.until("link up")
    subprocess.run(["ip", "-n", namespaces.host, "link", "del", "ntb0"], check=True)
    result = finish(running.process)
    assert (result.status, "ntb0 was deleted" in result.err) == (3, True), result
