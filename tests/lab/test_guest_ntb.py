"""The kernel's own NTB modules on the software vNTB endpoints, then rcdrv on the same ones."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import pytest

from tests.namespaces import two_namespaces
from tests.unavailable import unavailable
from tools.bench.traffic import serving
from tools.lab.errors import LabError
from tools.lab.guest import Guest
from tools.lab.kernel_ntb import kernel_ntb

BOARD = "192.0.2.2"
NETDEVS = ("rcar-s4-vntb", "rcar-s4-vntb-polled,vntb.peer=netdev")
"""With this machine's network stack, and with one of echoes only."""
PINGPONGS = ("rcar-s4-vntb,vntb.peer_delay_ms=10", "rcar-s4-vntb-polled,vntb.peer_delay_ms=10")

# Interfaces by the endpoint that they belong to: who is eth0 depends on who linked up first.
PING = """
cd /opt/ntb
for module in ntb ntb_transport ntb_hw_epf ntb_netdev; do
    test -d /sys/module/$module || insmod $module.ko || exit 1
done
for try in $(seq 50); do
    interface=$(dmesg | sed -n "s/.* ntb_hw_epf $1: \\(eth[0-9]*\\) created.*/\\1/p")
    test -n "$interface" && break
    sleep 0.1
done
ip link set "$interface" up
ip addr add 192.0.2.1/24 dev "$interface"
for try in $(seq 20); do ping -c 1 -W 1 192.0.2.2 >/dev/null && break; done
ping -c 3 192.0.2.2
status=$?
ip addr flush dev "$interface"
ip link set "$interface" down
exit $status
"""
PINGPONG = """
cd /opt/ntb
rmmod ntb_netdev ntb_transport
insmod ntb_pingpong.ko delay_ms=10
mount -t debugfs none /sys/kernel/debug
for address; do
    count=/sys/kernel/debug/ntb_pingpong/$address/count
    for try in $(seq 50); do
        test "$(cat $count)" -ge 10 && break
        sleep 0.1
    done
    echo "$address $(cat $count)"
done
"""
TAP = """
test -d /sys/module/tun || insmod /opt/ntb/tun.ko || exit
rcdrv -d $1 ntb tap --address 192.0.2.1/24 --timeout 5 >/tmp/tap 2>&1 &
for try in $(seq 300); do grep -q 'link up' /tmp/tap && break; sleep 0.1; done
ping -c 3 -i 0.1 192.0.2.2 && ping -c 3 -i 0.1 -s 60000 192.0.2.2 && wget -q -O - $2 | sha256sum
status=$?
kill $!
wait $!
echo "ended with $?"
cat /tmp/tap
exit $status
"""
TO_VFIO = """
rmmod ntb_pingpong ntb_hw_epf
for address; do
    echo vfio-pci >/sys/bus/pci/devices/$address/driver_override
    echo $address >/sys/bus/pci/drivers_probe
done
"""


@pytest.fixture(scope="module")
def board() -> Iterator[str]:
    """The network namespace of this machine that the first endpoint is in."""
    with two_namespaces() as namespaces:
        yield namespaces.board


@pytest.fixture(scope="module")
def guest(board: str) -> Iterator[Guest]:
    """A guest with the kernel's modules, and functions without a driver."""
    with contextlib.ExitStack() as stack:
        try:
            files = {"opt/ntb": kernel_ntb()}
            tap = f"{NETDEVS[0]},vntb.peer=tap,vntb.peer_netns={board},vntb.peer_ip={BOARD}"
            guest = Guest(endpoints=(tap, *NETDEVS[1:], *PINGPONGS), files=files, bind=False)
            stack.enter_context(guest)
        except LabError as error:
            unavailable(f"the lab does not start: {error}")
        yield guest


# In this order: each hands the functions on to the next.


@pytest.mark.parametrize("number", [0, 1])
def test_the_kernel_links_up_and_pings(guest: Guest, number: int) -> None:
    result = guest.run(["sh", "-c", PING, "ping", guest.endpoints[number].address])
    assert result.status == 0, result.stdout + result.stderr
    assert "3 packets received" in result.stdout


def test_the_kernel_plays_ping_pong(guest: Guest) -> None:
    addresses = [endpoint.address for endpoint in guest.endpoints[2:]]
    result = guest.run(["sh", "-c", PINGPONG, "pingpong", *addresses])
    counts = [int(count) for count in re.findall(r"^\S+ (\d+)$", result.stdout, re.MULTILINE)]
    assert len(counts) == 2, result.stderr
    assert min(counts) >= 10


def test_rcdrv_reads_the_same_through_vfio(guest: Guest) -> None:
    addresses = [endpoint.address for endpoint in guest.endpoints]
    bound = guest.run(["sh", "-c", TO_VFIO, "vfio", *addresses])
    assert bound.status == 0, bound.stderr
    for number, address in enumerate(addresses):
        transport = ["--transport"] if number < 2 else []
        ping = ["ntb", "ping", *transport, "--count", "5", "--interval", "0.02", "--json"]
        result = guest.run(["rcdrv", "-d", address, *ping, "--timeout", "5"])
        document = json.loads(result.stdout)
        assert (document["received"], document["verdict"]) == (5, "pass"), document["message"]
        info = json.loads(guest.run(["rcdrv", "-d", address, "ntb", "info", "--json"]).stdout)
        assert (info["doorbells"], info["polled"]) == (2, number % 2 == 1)
        assert (info["scratchpads"], info["window_bars"]) == (128, [2])


def test_rcdrv_makes_a_network_through_vfio(guest: Guest, board: str) -> None:
    """What the kernel's ntb_netdev was above, by ``rcdrv ntb tap`` on VFIO and the guest's TUN."""
    with serving(board, BOARD, 1_000_000) as (url, digest):
        result = guest.run(["sh", "-c", TAP, "tap", guest.endpoints[0].address, url])
    assert result.status == 0, result.stdout + result.stderr
    assert result.stdout.count("3 packets received") == 2
    assert digest in result.stdout
    assert "ended with 143" in result.stdout
    assert "0 out of order, 0 of a bad length" in result.stdout
