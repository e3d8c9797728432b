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
    assert re.search(
        r"^a doorbell was answered in [\d.]+ ms, the median of the last", result.out, re.M
    )
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
    assert 0 < document["answer_seconds"] < LIMIT
    assert namespaces.interfaces() == ([], [])


def transfers(namespaces: Namespaces) -> None:
    """Many connections at once, which the stacks spread over the queues; each both ways."""
    echo = inside(namespaces.board, [sys.executable, "-c", ECHO_TCP])
    read_until(echo, echo.stdout, "ready")
    client = finish(inside(namespaces.host, [sys.executable, "-c", FLOWS]))
    echo.kill()
    finish(echo)
    assert (client.status, client.out) == (0, f"{CONNECTIONS} connections\n"), client


CONNECTIONS = 24
"""So many are on one of two queues once in 8 million times."""
ECHO_TCP = f"""
import socket, threading
server = socket.create_server(("{BOARD}", 5003))
print("ready", flush=True)
def echo(s):
    while data := s.recv(1 << 16):
        s.sendall(data)
while True:
    s, _ = server.accept()
    threading.Thread(target=echo, args=(s,), daemon=True).start()
"""
FLOWS = f"""
import socket, threading
done = []
def flow(number):
    data = bytes([number]) * (1 << 18)
    s = socket.create_connection(("{BOARD}", 5003), {LIMIT})
    s.settimeout({LIMIT})
    sending = threading.Thread(target=s.sendall, args=(data,))
    sending.start()
    back = bytearray()
    while len(back) < len(data):
        back += s.recv(1 << 18) or b"end" * len(data)
    sending.join()
    if back == data:
        done.append(number)
threads = [threading.Thread(target=flow, args=(number,)) for number in range({CONNECTIONS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(done), "connections")
"""
QUEUES = "vntb.db_count=6,vntb.peer_max_clients=2,vntb.peer_queues=2"
"""Two queue pairs in the one window."""
WINDOWS = (
    "vntb.db_count=5,vntb.num_mws=2,bar3.type=programmable,vntb.mw2_bar=3,vntb.mw2=512K,"
    "vntb.peer_queues=2"
)


@pytest.mark.parametrize(
    ("layout", "slots", "windows"),
    [
        (f"rcar-s4-vntb,{QUEUES}", "7 slots", ()),
        (f"{QUICK},{WINDOWS}", "15 slots", ("--mw-bar", "2", "--mw-bar", "3")),
    ],
    ids=["one-window", "two-windows"],
)
def test_two_queues_carry_frames_both_ways(
    namespaces: Namespaces, layout: str, slots: str, windows: tuple[str, ...]
) -> None:
    device = "sim:" + namespaces.layout(layout)
    running = Running(namespaces, device, "--queues", "2", *windows)
    assert slots in running.until("link up")
    running.until(r"queue pairs up: 0, 1 \(2 of 2\)")
    transfers(namespaces)
    transfer(namespaces)
    result = running.stop()
    assert result.status == 128 + signal.SIGTERM, result
    assert "dropped 0 too long, 0 not taken by this host, 0 out of order, 0 of a bad" in result.out
    queues = re.findall(r"^queue (\d): sent (\d+) .*received (\d+) .*up once$", result.out, re.M)
    assert [number for number, *_ in queues] == ["0", "1"], result.out
    assert all(int(sent) > 100 and int(received) > 100 for _, sent, received in queues), queues
    assert namespaces.interfaces() == ([], [])


def test_a_second_queue_pair_that_comes_late(namespaces: Namespaces) -> None:
    """``ethtool -L`` at the endpoint. Until then the host sends by the first queue alone."""
    device = "sim:" + namespaces.layout(f"{QUICK},{QUEUES},vntb.peer_queues_delay_ms=2500")
    running = Running(namespaces, device, "--queues", "2")
    running.until(re.escape("queue pairs up: 0 (1 of 2)"))
    transfers(namespaces)
    running.until(re.escape("queue pairs up: 0, 1 (2 of 2)"))
    transfers(namespaces)
    result = running.stop()
    assert "link up once" in result.out
    found = re.findall(r"^queue \d: sent (\d+) .*received (\d+) .*up once$", result.out, re.M)
    first, second = ((int(sent), int(received)) for sent, received in found)
    assert f"sent {first[0] + second[0]} packets" in result.out
    # The connections before are the first queue's alone.
    assert first[0] > second[0] > 50
    assert second[1] > 50
    assert "dropped 0 too long, 0 not taken by this host, 0 out of order, 0 of a bad" in result.out


def test_a_second_queue_pair_that_does_not_come(namespaces: Namespaces) -> None:
    device = "sim:" + namespaces.layout(f"{QUICK},{QUEUES},vntb.peer_queues_delay_ms=60000")
    running = Running(namespaces, device, "--queues", "2")
    running.until(r"queue pairs up: 0 \(1 of 2\)")
    running.until("queue pair 1 is down at the endpoint; ethtool -L there")
    transfers(namespaces)
    result = running.stop()
    assert "queue 1: sent 0 packets, 0 bytes, received 0 packets" in result.out, result


def test_more_queues_than_queue_pairs_are_refused(namespaces: Namespaces) -> None:
    device = "sim:" + namespaces.layout(f"{QUICK},{QUEUES}")
    result = finish(Running(namespaces, device, "--queues", "3").process)
    assert (result.status, result.out) == (2, ""), result
    assert "--queues 3: the endpoint has 2 queue pairs, by its ntb_transport's" in result.err
    assert "db_count 6 or more and num_mws 3; or db_count 7 or more and ntb_" in result.err
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


def serve(namespaces: Namespaces, path: Path, layout: str = QUICK) -> subprocess.Popen[str]:
    command = [*PROGRAM, "sim", namespaces.layout(layout), "--socket", str(path)]
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


@pytest.mark.parametrize(
    ("again", "layout", "options"),
    [
        (False, QUICK, ()),
        (True, QUICK, ("--reconnect",)),
        (True, f"{QUICK},{QUEUES}", ("--reconnect", "--queues", "2")),
    ],
    ids=["ended", "again", "again-by-two-queues"],
)
def test_a_server_that_dies(
    namespaces: Namespaces, tmp_path: Path, again: bool, layout: str, options: tuple[str, ...]
) -> None:
    path = tmp_path / "ep.sock"
    server = serve(namespaces, path, layout)
    running = Running(namespaces, f"vfio-user:{path}", *options)
    running.until("link up")
    server.kill()
    finish(server)
    if again:
        path.unlink()
        server = serve(namespaces, path, layout)
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
        (("--queues", "65"), (), 2, "ntb_netdev has 64 queues at most, not 65"),
        (("--queues", "2", "--name", "lo"), (), 2, "an interface that is no TAP of several queues"),
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


@pytest.mark.parametrize("queues", ["1", "2"])
def test_an_interface_of_another_program_is_in_use(namespaces: Namespaces, queues: str) -> None:
    """The kernel lets more programs attach to an interface of several queues."""
    device = f"sim:{QUICK},{QUEUES},vntb.peer=netdev"
    command = [*PROGRAM, "-d", device, "ntb", "tap", "--queues", queues]
    first = inside(namespaces.host, command)
    read_until(first, first.stdout, "link up")
    in_use = finish(inside(namespaces.host, command))
    assert (in_use.status, "ntb0 is in use by another program" in in_use.err) == (3, True), in_use
    first.terminate()
    assert finish(first).status == 128 + signal.SIGTERM
    assert namespaces.interfaces() == ([], [])


@pytest.mark.parametrize("queues", [1, 2])
def test_an_interface_of_the_users_own_has_one_queue_or_several(
    namespaces: Namespaces, queues: int
) -> None:
    """IFF_MULTI_QUEUE is of the interface, and whoever attaches has to say the same."""
    for name, multi_queue in (("single", ()), ("several", ("multi_queue",))):
        made = ["tuntap", "add", name, "mode", "tap", *multi_queue, "user", "root"]
        subprocess.run(["ip", "-n", namespaces.host, *made], check=True)
    device = f"sim:{QUICK},{QUEUES},vntb.peer=netdev"
    command = [*NO_CAPABILITY, *PROGRAM, "-d", device, "ntb", "tap", "--queues", str(queues)]
    fits, other = ("single", "several") if queues == 1 else ("several", "single")
    refused = finish(inside(namespaces.host, [*command, "--name", other]))
    kind = "one queue" if queues == 1 else "several queues"
    assert (refused.status, f"is no TAP of {kind}" in refused.err) == (2, True), refused
    assert ("mode tap multi_queue user" in refused.err) == (queues == 2)
    process = inside(namespaces.host, [*command, "--name", fits])
    # Nobody has set it up, which takes a privilege.
    assert "as root: ip link set" in finish(process).err
    subprocess.run(["ip", "-n", namespaces.host, "link", "set", fits, "up"], check=True)
    process = inside(namespaces.host, [*command, "--name", fits])
    read_until(process, process.stdout, "link up")
    process.terminate()
    assert finish(process).status == 128 + signal.SIGTERM
    assert sorted(namespaces.interfaces()[0]) == ["several", "single"]


@pytest.mark.parametrize(("peer", "state"), [("netdev", "link up"), ("none", "link down")])
def test_an_interface_that_is_deleted(namespaces: Namespaces, peer: str, state: str) -> None:
    """While the link is down nothing reads it, which would tell."""
    running = Running(namespaces, f"sim:{QUICK},vntb.peer={peer}")
    running.until(state)
    subprocess.run(["ip", "-n", namespaces.host, "link", "del", "ntb0"], check=True)
    result = finish(running.process)
    assert (result.status, "ntb0 was deleted" in result.err) == (3, True), result
