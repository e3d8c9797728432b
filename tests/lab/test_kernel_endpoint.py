"""The kernel's own endpoint functions: what is built, and that rcdrv finds them as it should.

The software endpoint of the same layout is the other judge: the verdicts of both are equal.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import TypeVar

import pytest

from rcdrv.api import case_names
from rcdrv.device import CONFIG_REGION
from rcdrv.vfio_user.client import Client
from tests.namespaces import (
    BOARD,
    HOST,
    LIMIT,
    PROGRAM,
    inside,
    ping,
    read_until,
    two_namespaces,
)
from tests.unavailable import unavailable
from tools.bench.traffic import serving
from tools.lab.endpoint import environment
from tools.lab.errors import LabError
from tools.lab.guest import Guest, json_device
from tools.lab.image import image
from tools.lab.kernel_endpoint.build import (
    CHANGED,
    DRIVER,
    SOURCES,
    UNCHANGED,
    kernel_endpoint_modules,
)
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint
from tools.lab.kernel_endpoint.setup import CONFIGFS
from tools.lab.kernel_endpoint.shell import shell_server, shell_socket
from tools.lab.kernel_source import series, source

DOORBELL_BAR = {"rk3588": "4", "rcar-s4": "2"}
"""Of a register that a reserved BAR always shows, and of one that is mapped on demand."""


T = TypeVar("T", KernelEndpoint, Guest)


@contextlib.contextmanager
def started(one: T) -> Iterator[T]:
    """Where it does not start, the test fails in CI and is skipped elsewhere."""
    try:
        one.__enter__()
    except LabError as error:
        unavailable(f"the lab does not start: {error}")
    with contextlib.closing(one):
        yield one


@pytest.fixture(scope="module", params=list(DOORBELL_BAR))
def endpoint(request: pytest.FixtureRequest) -> Iterator[KernelEndpoint]:
    with started(KernelEndpoint(request.param)) as one:
        yield one


@pytest.fixture(scope="module")
def vntb() -> Iterator[KernelEndpoint]:
    with started(KernelEndpoint("rcar-s4-vntb,vntb.peer_delay_ms=0")) as one:
        yield one


def rcdrv(
    device: str | KernelEndpoint, *arguments: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    if isinstance(device, KernelEndpoint):
        device = f"vfio-user:{device.socket}"
    return subprocess.run(
        [sys.executable, "-m", "rcdrv", "--device", device, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def verdicts(device: str | KernelEndpoint) -> dict[str, tuple[str, str]]:
    done = rcdrv(device, "--json", "test", "--timeout", "10")
    results = json.loads(done.stdout)["results"]
    return {case["name"]: (case["verdict"], case["reason"]) for case in results}


# -- what is built ------------------------------------------------------------------------------


def test_sources_are_the_kernels_but_for_the_initcalls() -> None:
    built = kernel_endpoint_modules()
    whole = source(series(image("x86_64").release))
    compared = set()
    for path in whole.rglob("*.c"):
        if not SOURCES.fullmatch(str(path.relative_to(whole))):
            continue
        name = "ntb_core.c" if path.match("ntb/core.c") else path.name
        compared.add(name)
        before = path.read_text().splitlines()
        after = (built / name).read_text().splitlines()
        if name in CHANGED:
            kept = [line for line in before if not re.match(r"module_(init|exit)\(pci_ep", line)]
            assert len(before) - len(kept) == 2
            pairs = [pair for pair in zip(kept, after, strict=True) if pair[0] != pair[1]]
            assert len(pairs) == 2
            assert all(one == f"static {other}" for one, other in pairs)
        else:
            assert before == after, name
    assert compared == {*CHANGED, *UNCHANGED}


def test_driver_is_in_the_kernels_style() -> None:
    perl = shutil.which("perl")
    if perl is None:
        unavailable("checkpatch.pl needs perl")
    script = source(series(image("x86_64").release)) / "scripts" / "checkpatch.pl"
    for path in sorted(DRIVER.glob("*.[ch]")):
        done = subprocess.run(
            [perl, str(script), "--no-tree", "--terse", "-f", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


# -- pci-epf-test -------------------------------------------------------------------------------


def test_ring_is_acknowledged_and_cycles_leave_nothing_behind(endpoint: KernelEndpoint) -> None:
    """pci_epf_test_enable_doorbell() and its end: a doorbell, an interrupt and a mapping each."""
    bar = DOORBELL_BAR[endpoint.spec]
    done = rcdrv(endpoint, "ring", "--timeout", "10", "--bar", bar)
    assert done.returncode == 0, done.stdout + done.stderr
    cycles = 500

    def ring(count: int) -> dict[str, int]:
        # Polled: rcdrv waits 0.1 s for the interrupt behind an answer, which two emulated machines
        # may take on a busy host.
        options = ("--irq", "poll", "--timeout", "60", "--bar", bar, "--cycles", str(count))
        done = rcdrv(endpoint, "ring", *options, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{count} rings, {count} acknowledged" in done.stdout
        return endpoint.usage()

    windows = endpoint.windows()
    assert windows[1] == 0
    memory = [ring(100)]
    before = handlers(endpoint)
    memory += [ring(cycles), ring(cycles)]
    assert handlers(endpoint) == before
    assert endpoint.windows() == windows
    assert {"pages", "vmalloc", "kmalloc-64"} <= set(memory[0])
    # One of anything a cycle is as many as there are cycles, both times.
    grown = {
        name: min(second - first, third - second)
        for name, (first, second, third) in {
            name: [count.get(name, 0) for count in memory] for name in memory[0]
        }.items()
    }
    assert not {name: count for name, count in grown.items() if count > cycles // 2}
    assert not endpoint.crash()


def test_a_reset_leaves_no_window_behind(endpoint: KernelEndpoint) -> None:
    """And a subrange has one until it is cleared: pci_epf_test_bar_subrange_setup()."""
    inbound, outbound = endpoint.windows()
    assert (outbound, inbound) == (0, {"rk3588": 5, "rcar-s4": 3}[endpoint.spec])
    for command, done_bit, more in (("0x100", 1 << 14, 1), ("0x200", 1 << 16, 0)):
        for register, value in (("0x8", "0"), ("0x1c", "2"), ("0x4", command)):
            rcdrv(endpoint, "poke", "0", register, value)
        for _ in range(60):
            if int(rcdrv(endpoint, "peek", "0", "0x8").stdout.split()[-1], 16) & done_bit:
                break
        assert endpoint.windows() == (inbound + more, 0)
    done = rcdrv(endpoint, "reset")
    assert done.returncode == 0, done.stderr
    assert endpoint.windows() == (inbound, 0)


def handlers(endpoint: KernelEndpoint) -> list[str]:
    """Who handles interrupts in the endpoint's kernel."""
    lines = endpoint.shell("cat /proc/interrupts").stdout.splitlines()
    return [line.split()[-1] for line in lines if re.match(r" *\d+:", line)]


def test_cases_end_as_on_the_software_endpoint(endpoint: KernelEndpoint) -> None:
    windows = endpoint.windows()
    found = verdicts(endpoint)
    assert endpoint.windows() == windows
    assert len(found) == len(case_names())
    assert found == verdicts(f"sim:{endpoint.spec}")
    failed = {name for name, (verdict, _) in found.items() if verdict == "fail"}
    # Neither controller can raise INTx, and an eDMA cannot copy (pcie-designware-ep.c, dw-edma).
    assert {name.partition(".")[2] for name in failed} >= {"LEGACY_IRQ_TEST", "dma.COPY_TEST"}


def test_check_finds_nothing_broken(endpoint: KernelEndpoint) -> None:
    done = rcdrv(endpoint, "check", "--json", "--timeout", "10")
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"], found["broken"]) == (0, "pass", None), found


def test_stopped_endpoint_has_no_socket_and_reads_all_ones(endpoint: KernelEndpoint) -> None:
    """Nothing answers then, as behind a link that is down; the client may stay."""
    with contextlib.closing(Client.connect(endpoint.socket)) as client:
        ids = client.read(CONFIG_REGION, 0, 4)
        assert ids == struct.pack("<HH", endpoint.layout.vendor, endpoint.layout.device)
        endpoint.stop()
        assert not endpoint.socket.exists()
        assert client.read(CONFIG_REGION, 0, 4) == b"\xff" * 4
        endpoint.start()
        assert client.read(CONFIG_REGION, 0, 4) == ids
    assert rcdrv(endpoint, "info").returncode == 0


def test_layouts_are_set_by_its_shell() -> None:
    """Its socket goes and comes back with each; and at the end it is as it was."""
    with started(KernelEndpoint("generic")) as one:
        where = shell_socket(one.socket)
        show = f"cd {CONFIGFS}/functions/pci_epf_test/func1; cat msi* pci_epf_test.0/*"
        before = one.shell(show).stdout
        with shell_server(one.guest, where):
            shell = f"{sys.executable} -m tools.lab exec {one.socket}"
            options = ("--json", "--timeout", "10", "--examples", "2", "--seed", "1")
            done = rcdrv(one, "fuzz", "layout", "--ep", shell, *options, timeout=300)
        found = json.loads(done.stdout or "{}")
        assert (found.get("examples"), found.get("findings")) == (2, []), done.stderr
        assert one.shell(show).stdout == before
        assert rcdrv(one, "info").returncode == 0
        assert not one.crash()


def test_attributes_can_be_set() -> None:
    with pytest.raises(LabError, match="has no msi_interrupt:"):
        KernelEndpoint("rk3588", settings={"msi_interrupt": "8"}).__enter__()


# -- pci-epf-vntb -------------------------------------------------------------------------------


def test_vntb_is_found_and_answers(vntb: KernelEndpoint) -> None:
    info = rcdrv(vntb, "ntb", "info")
    assert "doorbells    2 in BAR4, interrupt-driven" in info.stdout, info.stderr
    ping = rcdrv(vntb, "ntb", "ping", "--timeout", "10", "--count", "3")
    assert ping.returncode == 0, ping.stdout + ping.stderr
    assert " 3 received" in ping.stdout
    assert not vntb.crash()


NTB_NETDEV = """
cd /opt/endpoint
rmmod ntb_pingpong && insmod ntb_transport.ko && insmod ntb_netdev.ko || exit
(
    until interface=$(ls /sys/class/net | grep -v '^lo$'); do sleep 0.1; done
    ip addr add {address}/24 dev $interface
    ip link set $interface up
) </dev/null >/dev/null 2>&1 &
"""


CHANNELS = """
import array, fcntl, socket, struct, sys
channels = array.array("I", bytes(36))  # struct ethtool_channels
ifreq = struct.pack("16sP16x", b"eth0", channels.buffer_info()[0])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    channels[0] = 0x3C  # ETHTOOL_GCHANNELS
    fcntl.ioctl(s, 0x8946, ifreq)  # SIOCETHTOOL
    channels[0], channels[8] = 0x3D, int(sys.argv[1])  # ETHTOOL_SCHANNELS
    fcntl.ioctl(s, 0x8946, ifreq)
"""
"""``ethtool -L eth0 combined N``; the guest has neither ethtool nor ctypes."""


def test_vntb_is_a_network_to_ntb_netdev(vntb: KernelEndpoint) -> None:
    """The kernel's stack behind the kernel's ntb_netdev answers, in frames of up to its MTU."""
    loaded = vntb.guest.run(["sh", "-c", NTB_NETDEV.format(address=BOARD)])
    assert loaded.status == 0, loaded.stderr
    with two_namespaces() as namespaces:
        command = [*PROGRAM, "-d", f"vfio-user:{vntb.socket}", "ntb", "tap", "--timeout", "30"]
        process = inside(namespaces.host, [*command, "--address", f"{HOST}/24"])
        try:
            assert "MTU 65510" in read_until(process, process.stdout, "link up")
            assert vntb.windows() == (3, 1)  # COMMAND_CONFIGURE_MW's
            for size in (56, 60000):
                ping(namespaces.host, BOARD, size)
            with serving(namespaces.host, HOST, 1_000_000) as (url, digest):
                fetched = vntb.shell(f"wget -q -O - {url} | sha256sum")
                assert fetched.stdout.split()[:1] == [digest], fetched.stderr
        finally:
            process.terminate()
            out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 128 + signal.SIGTERM, err
        assert "0 out of order, 0 of a bad length" in out
    assert vntb.windows() == (3, 0)
    assert not vntb.crash()


def test_two_queues_of_ntb_netdev() -> None:
    """Each step of the kernel's interface is followed, and both queue pairs carry frames."""
    spec = f"rcar-s4-vntb,vntb.peer=netdev,vntb.peer_ip={BOARD}"
    one = KernelEndpoint(f"{spec},vntb.db_count=6,vntb.peer_max_clients=2")
    with started(one) as endpoint, two_namespaces() as namespaces:
        endpoint.guest.put("/channels.py", CHANNELS.encode())

        def do(command: str, expected: str) -> None:
            done = endpoint.shell(command)
            assert done.status == 0, done.stderr
            read_until(process, process.stdout, expected)

        command = [*PROGRAM, "-d", f"vfio-user:{endpoint.socket}", "ntb", "tap", "--timeout", "30"]
        command += ["--address", f"{HOST}/24", "--queues", "2", "--name", "two"]
        process = inside(namespaces.host, command)
        both = r"queue pairs up: 0, 1 \(2 of 2\)"
        try:
            read_until(process, process.stdout, r"queue pairs up: 0 \(1 of 2\)")
            do("python3 /channels.py 2", both)
            with serving(namespaces.host, HOST, 1_000_000) as (url, digest):
                fetch = f"wget -q -O - {url} | sha256sum"
                # Four at a time: the server resets what its backlog of 5 does not hold.
                fetch = f"for i in 1 2 3 4; do for j in 1 2 3 4 5; do {fetch}; done & done; wait"
                assert endpoint.shell(fetch).stdout.split().count(digest) == 20
                # Down and up at once, after which one may only be known by its frames.
                do(f"ip link set eth0 mtu 9000; ({fetch}) >/fetched", both)
                assert endpoint.shell("cat /fetched").stdout.split().count(digest) == 20
            do("ip link set eth0 down", "link down")
            do("ip link set eth0 up", both)
            do("python3 /channels.py 1", r"queue pairs up: 0 \(1 of 2\)")
            do("python3 /channels.py 2", both)
            ping(namespaces.host, BOARD, 56)
        finally:
            process.terminate()
            out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 128 + signal.SIGTERM, err
        assert "0 out of order, 0 of a bad length" in out
        queues = re.findall(r"^queue \d: sent (\d+) .*received (\d+) ", out, re.MULTILINE)
        assert all(int(count) > 20 for queue in queues for count in queue), out
        assert endpoint.windows() == (3, 0)
        assert not endpoint.crash()


# -- in a root complex's guest, and when it crashes -----------------------------------------------


@pytest.mark.parametrize(
    ("spec", "problem"), [("{", "not JSON"), ('{"bus": "rp0"}', 'no "driver"')]
)
def test_bad_device_in_json_is_named(spec: str, problem: str) -> None:
    with pytest.raises(LabError, match=problem):
        json_device(spec)


def test_guests_have_it_as_an_endpoint() -> None:
    with started(Guest(endpoints=["kernel:rk3588"])) as guest:
        done = guest.run(["rcdrv", "-d", guest.endpoints[0].address, "ring", "--irq", "msi"])
        assert done.status == 0, done.stderr


def test_crash_of_its_kernel_is_reported() -> None:
    """DISABLE_DOORBELL without ENABLE: pci_epf_test_disable_doorbell() has no db_msg."""
    with started(KernelEndpoint("rcar-s4")) as one:
        rcdrv(one, "poke", "0", "0x4", "0x80")
        one.shell("sleep 1")
        assert "NULL pointer dereference" in one.crash()
        assert not one.crash()
        # The work item that looks for commands died with it.
        found = json.loads(rcdrv(one, "check", "--json", "--timeout", "2").stdout)
        assert (found["broken"], found["side"]) == ("commands", "endpoint"), found


def test_the_second_suite_fails_nowhere(endpoint: KernelEndpoint) -> None:
    """What the kernel's endpoint cannot do is a skip; the BARs' own cases take too long here."""
    options = ("--destructive=power", "--destructive=reset", "--timeout=30", "--json")
    done = rcdrv(endpoint, "test", "--more", "-F", "more_bar", *options, timeout=300)
    results = json.loads(done.stdout)["results"]
    verdicts = {one["name"]: (one["verdict"], one["message"]) for one in results}
    skipped = {name for name, (verdict, _) in verdicts.items() if verdict == "skip"}
    assert {verdict for verdict, _ in verdicts.values()} == {"pass", "skip"}, verdicts
    without_msix = {"more_config.MSIX_PLACE_TEST", "more_irq.MSIX_MASK_TEST"}
    expected = {
        "more_irq.INTX_DISABLE_TEST",
        "more_destructive.BUS_RESET_TEST",
        "more_transfer.SEVERAL_TEST",
    }
    assert skipped == expected | (set() if endpoint.layout.msix else without_msix)
