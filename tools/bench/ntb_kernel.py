"""A network to the kernel's pci-epf-vntb and ntb_netdev, in the lab's endpoint.

Once with ``rcdrv ntb tap`` on this machine, over vfio-user. And once in a root complex's guest, by
turns with the kernel's ntb_hw_epf and ntb_netdev there: both have the same endpoint and the same
link, and ``rcdrv`` is on kernel VFIO. The guests are emulated, so only ratios say something.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from tools.bench.network import BOARD, HOST, PRESETS, inside, namespaces, output, ping, running
from tools.bench.programs import PYTHON, RCDRV
from tools.bench.traffic import FETCH, checked, serving
from tools.lab.errors import LabError
from tools.lab.guest import KERNEL_PREFIX, Guest
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint
from tools.lab.kernel_ntb import kernel_ntb

SIZE = 1_000_000
"""Bytes by HTTP: each word that the endpoint writes into a window is a message here."""
_LIMIT = 300.0
_SERVE = "cd /tmp && head -c {size} /dev/urandom >data && httpd -p 8000 && sha256sum data"

_NETDEV = f"""
cd /opt/ntb
echo >/sys/bus/pci/devices/$1/driver_override
for module in ntb ntb_transport ntb_hw_epf ntb_netdev; do insmod $module.ko || exit; done
echo $1 >/sys/bus/pci/drivers_probe
for try in $(seq 300); do
    interface=$(ls /sys/class/net | grep '^eth')
    test -n "$interface" && break
    sleep 0.1
done
ip link set $interface up && ip addr add {HOST}/24 dev $interface
"""
_NETDEV_ENDS = """
rmmod ntb_netdev; rmmod ntb_transport; rmmod ntb_hw_epf; rmmod ntb
"""
_TAP = f"""
test -d /sys/module/tun || insmod /opt/ntb/tun.ko || exit
echo vfio-pci >/sys/bus/pci/devices/$1/driver_override
echo $1 >/sys/bus/pci/drivers_probe
rcdrv -d $1 ntb tap --address {HOST}/24 --timeout 30 >/tmp/tap 2>&1 &
echo $! >/tmp/tap.pid
for try in $(seq 300); do grep -q 'link up' /tmp/tap && exit; sleep 0.1; done
cat /tmp/tap
exit 1
"""
_TAP_ENDS = """
kill $(cat /tmp/tap.pid)
for try in $(seq 300); do test -d /proc/$(cat /tmp/tap.pid) || break; sleep 0.1; done
echo $1 >/sys/bus/pci/drivers/vfio-pci/unbind
"""
_PING = f"""
for try in $(seq 60); do ping -c 1 -W 1 {BOARD} >/dev/null && break; done
ping -c $1 -i 0.223 {BOARD}
"""
# The time of a guest's clock, around what is timed and nothing else.
_TIMED = """
start=$(cut -d ' ' -f 1 /proc/uptime)
wget -q -O - $1 | sha256sum
echo "took $start $(cut -d ' ' -f 1 /proc/uptime)"
"""


def over_vfio_user(preset: str, size: int) -> dict[str, str]:
    """Figures between this machine and the kernel's endpoint."""
    figures = {}
    spec = f"{preset},vntb.peer=netdev,vntb.peer_ip={BOARD}"
    with KernelEndpoint(spec) as endpoint, namespaces() as (host, _):
        tap = (*RCDRV, "-d", f"vfio-user:{endpoint.socket}", "ntb", "tap", "--timeout", "30")
        with running(inside(host, *tap, "--address", f"{HOST}/24"), "link up"):
            times = ping(host, 40)
            figures["ping, median of 40"] = (
                f"{statistics.median(times):.2f} ms, {40 - len(times)} lost"
            )
            what = f"HTTP of {size // 1_000_000} MB"
            with serving(host, HOST, size) as (url, digest):
                fetch = f"wget -q -O - {url} | sha256sum"
                took = checked(lambda: endpoint.shell(fetch, timeout=_LIMIT).stdout, digest)
            figures[f"{what} to the endpoint"] = f"{took:.2f} s, SHA-256 right"
            digest = endpoint.shell(_SERVE.format(size=size)).stdout.split()[0]
            get = inside(host, PYTHON, "-c", FETCH, f"http://{BOARD}:8000/data")
            took = checked(lambda: output(get), digest)
            figures[f"{what} from the endpoint"] = f"{took:.2f} s, SHA-256 right"
    return figures


def in_guests(rounds: int, count: int, size: int) -> dict[str, str]:
    """Figures of the kernel's ntb_netdev and of ``rcdrv ntb tap``, by turns, on one endpoint."""
    spec = f"{KERNEL_PREFIX}{PRESETS['embedded']},vntb.peer=netdev,vntb.peer_ip={BOARD}"
    figures: dict[str, dict[str, list[float]]] = {"kernel": {}, "rcdrv": {}}
    with Guest(endpoints=[spec], files={"opt/ntb": kernel_ntb()}, bind=False) as guest:
        endpoint = guest.endpoints[0]
        assert isinstance(endpoint, KernelEndpoint)
        there = endpoint.shell(_SERVE.format(size=size)).stdout.split()[0]
        here = _run(guest, _SERVE.format(size=size), []).split()[0]
        for _ in range(rounds):
            for name, up, down in (
                ("kernel", _NETDEV, _NETDEV_ENDS),
                ("rcdrv", _TAP, _TAP_ENDS),
            ):
                _run(guest, up, [endpoint.address])
                found = _measure(guest, endpoint, count, size, here, there)
                for what, value in found.items():
                    figures[name].setdefault(what, []).extend(value)
                _run(guest, down, [endpoint.address])
    shown = {}
    for what, times in figures["kernel"].items():
        kernel, ours = statistics.median(times), statistics.median(figures["rcdrv"][what])
        shown[what] = f"{kernel:.3g}, {ours:.3g}: {ours / kernel:.2f}"
    return shown


def _measure(
    guest: Guest, endpoint: KernelEndpoint, count: int, size: int, here: str, there: str
) -> dict[str, list[float]]:
    said = _run(guest, _PING, [str(count)])
    times = [float(time) for time in re.findall(r"time=([\d.]+) ms", said)]
    if len(times) != count:
        raise SystemExit(f"bench: {len(times)} of {count} pings answered")
    fetched = _run(guest, _TIMED, [f"http://{BOARD}:8000/data"])
    done = endpoint.guest.run(
        ["sh", "-c", _TIMED, "fetch", f"http://{HOST}:8000/data"], timeout=_LIMIT
    )
    megabytes = f"{size // 1_000_000} MB by HTTP"
    return {
        "ping, in ms": times,
        f"{megabytes} from the endpoint, in s": [_took(fetched, there)],
        f"{megabytes} to the endpoint, in s": [_took(done.stdout, here)],
    }


def _took(said: str, digest: str) -> float:
    found = re.search(r"took ([\d.]+) ([\d.]+)", said)
    if found is None or not said.startswith(digest):
        raise SystemExit(f"bench: not {digest}, but {said!r}")
    return float(found[2]) - float(found[1])


def _run(guest: Guest, script: str, arguments: Sequence[str]) -> str:
    done = guest.run(["sh", "-c", script, "bench", *arguments], timeout=_LIMIT)
    if done.status:
        raise LabError(f"{script.strip()}: {done.stdout}{done.stderr}")
    return done.stdout


def run(*, quick: bool) -> int:
    """Print both tables."""
    found = {name: over_vfio_user(preset, SIZE) for name, preset in PRESETS.items()}
    print(f"{'rcdrv, over vfio-user':34}" + "".join(f"{way:>24}" for way in found))
    for what in next(iter(found.values())):
        print(f"{what:34}" + "".join(f"{figures[what]:>24}" for figures in found.values()))
    print(f"\n{'in a guest, medians':40} ntb_netdev, rcdrv ntb tap: ratio")
    for what, figure in in_guests(1 if quick else 3, 10 if quick else 40, SIZE).items():
        print(f"{what:40} {figure}")
    return 0
