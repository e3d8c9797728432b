"""rcdrv ntb tap: network stacks in two network namespaces, joined by a software vNTB."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.namespaces import (
    BOARD,
    HOST,
    PROGRAM,
    Namespaces,
    inside,
    ping,
    read_until,
    two_namespaces,
)
from tools.bench.traffic import http

from .conftest import LIMIT, Endpoint, Result, finish, listening

QUICK = "rcar-s4-vntb-polled,hz=1000"
SIZE = 4 << 20


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    with two_namespaces() as names:
        yield names


class Running:
    """rcdrv ntb tap in the host's namespace."""

    def __init__(self, namespaces: Namespaces, device: str, *options: str) -> None:
        self.namespaces = namespaces
        command = [*PROGRAM, "-d", device, "ntb", "tap", "--address", f"{HOST}/24", *options]
        self.process = inside(namespaces.host, command)

    def until(self, pattern: str) -> str:
        """Read lines up to one that matches."""
        return read_until(self.process, self.process.stdout, pattern)

    def stop(self, number: int = signal.SIGTERM) -> Result:
        self.process.send_signal(number)
        return finish(self.process)


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


def transfer(namespaces: Namespaces) -> None:
    """Some MB each way over one TCP connection; both ends compare the digests."""
    server = inside(namespaces.board, [sys.executable, "-c", SERVER])
    read_until(server, server.stdout, "ready")
    client = finish(inside(namespaces.host, [sys.executable, "-c", CLIENT]))
    served = finish(server)
    assert (client.status, served.status, served.out) == (0, 0, "both ways\n"), (client, served)


ECHO = """
import hashlib, socket, sys
address, client = sys.argv[1], len(sys.argv) > 2
s = socket.socket(type=socket.SOCK_DGRAM)
s.settimeout(1)
if not client:
    s.bind((address, 5002))
    s.settimeout(None)
    print("ready", flush=True)
    while True:
        data, peer = s.recvfrom(70000)
        s.sendto(data, peer)
for size in (1, 1472, 9000, 60000):
    data = hashlib.shake_256(b"%d" % size).digest(size)
    for attempt in range(100):
        s.sendto(data, (address, 5002))
        try:
            if s.recv(70000) == data:
                break
        except TimeoutError:
            pass
    else:
        sys.exit("%d bytes do not come back" % size)
"""


def datagrams(server: str, address: str, client: str) -> None:
    """UDP there and back; a datagram that is lost, as any may be, is sent again."""
    echo = inside(server, [sys.executable, "-c", ECHO, address])
    read_until(echo, echo.stdout, "ready")
    done = finish(inside(client, [sys.executable, "-c", ECHO, address, "client"]))
    echo.kill()
    finish(echo)
    assert (done.status, done.err) == (0, "")


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
    datagrams(namespaces.board, BOARD, namespaces.host)
    datagrams(namespaces.host, HOST, namespaces.board)
    http(namespaces.board, BOARD, namespaces.host, SIZE)
    http(namespaces.host, HOST, namespaces.board, SIZE)
    running.process.send_signal(signal.SIGUSR1)
    read_until(running.process, running.process.stderr, "ntb0 statistics")
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


DATAGRAMS = f"""
import socket, time
s = socket.socket(type=socket.SOCK_DGRAM)
while True:
    s.sendto(b"x", ("{BOARD}", 9))
    time.sleep(0.02)
"""
"""A packet every 20 ms, which nobody answers but by ICMP."""


def test_a_link_that_comes_again(namespaces: Namespaces) -> None:
    """The endpoint's function is set up anew now and then: pci-epf-vntb is unbound and bound."""
    device = "sim:" + namespaces.layout(f"{QUICK},fault=link-drops=20")
    running = Running(namespaces, device)
    running.until("link up")
    sending = inside(namespaces.host, [sys.executable, "-c", DATAGRAMS])
    running.until("link down: .*")
    running.until("link up")
    sending.kill()
    finish(sending)
    result = running.stop()
    assert (result.status, "link up 2 times" in result.out) == (128 + signal.SIGTERM, True), result


def serve(namespaces: Namespaces, path: Path) -> subprocess.Popen[str]:
    command = [*PROGRAM, "sim", namespaces.layout(QUICK), "--socket", str(path)]
    process = inside(namespaces.board, command)
    deadline = time.monotonic() + LIMIT
    while not listening(path):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_an_endpoint_that_stands_still_is_named(namespaces: Namespaces, tmp_path: Path) -> None:
    """Nothing else tells of it: the link stays up, and a ring has no answer."""
    path = tmp_path / "ep.sock"
    server = serve(namespaces, path)
    running = Running(namespaces, f"vfio-user:{path}")
    running.until("link up")
    ping(namespaces.host, BOARD, 56)  # the board's address is known: frames go out at once
    server.send_signal(signal.SIGSTOP)
    sending = inside(namespaces.host, [sys.executable, "-c", DATAGRAMS])
    running.until("ntb0: the endpoint takes no frames")
    server.send_signal(signal.SIGCONT)
    running.until("ntb0: it takes frames again")
    sending.kill()
    finish(sending)
    assert running.stop().status == 128 + signal.SIGTERM
    server.kill()
    finish(server)


@pytest.mark.parametrize("again", [False, True])
def test_a_server_that_dies(namespaces: Namespaces, tmp_path: Path, again: bool) -> None:
    path = tmp_path / "ep.sock"

    server = serve(namespaces, path)
    running = Running(namespaces, f"vfio-user:{path}", *(["--reconnect"] if again else []))
    running.until("link up")
    server.kill()
    finish(server)
    if again:
        path.unlink()
        server = serve(namespaces, path)
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
        (("--mtu", "67"), (), 2, "an MTU of 68 at least, not 67"),
        (("--transport-mtu", "93"), (), 2, "94 bytes at least, not 93"),
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
    result = finish(inside(namespaces.host, command))
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
    process = inside(namespaces.host, command)
    assert "MTU 1400" in read_until(process, process.stdout, "link up")
    ping(namespaces.host, BOARD, 56)
    in_use = finish(inside(namespaces.host, command))
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
