"""The host's side on a stock kernel: bind, ring as root and as a user, lose it, get it back.

One guest for all of it. The tests leave every endpoint unbound, as they find it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.lab import udev
from tests.lab.conftest import booted
from tests.lab.udev import as_user, must
from tests.unavailable import unavailable
from tools.lab.channel import Process, Result
from tools.lab.errors import LabError
from tools.lab.guest import Guest
from tools.lab.kernel_driver import kernel_driver

RK3588, MORTAL, BUS_RESET, NO_RESET = (f"0000:{bus:02x}:00.0" for bus in range(1, 5))
SPECS = ("rk3588", "generic", "imx95,reset=bus", "imx95,reset=none")
PORT = "0000:00:10.0"  # of the first

# rcdrv, whose memory decoding goes away on the way: a real SIGBUS from the kernel.
SIGBUS = """
import sys
from rcdrv import cli
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.pci import Command

original, rings = Doorbell.ring, 0

def ring(self):
    global rings
    rings += 1
    if rings == 4:
        self._driver.function.config.command &= ~Command.MEMORY
    return original(self)

Doorbell.ring = ring
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    try:
        module = kernel_driver("x86_64")
    except LabError as error:
        unavailable(f"the kernel's driver cannot be built: {error}")
    files = {"opt/kernel": module, **udev.udev_files(rules=None)}
    with booted("x86_64", endpoints=SPECS, bind=False, files=files, log_accesses=False) as guest:
        guest.put("/opt/rcdrv/sigbus.py", SIGBUS.encode())
        yield guest


def rcdrv(guest: Guest, *arguments: str, status: int = 0) -> Result:
    result = guest.run(["rcdrv", *arguments], timeout=120)
    assert result.status == status, (arguments, result)
    return result


def ring(guest: Guest, address: str, *options: str) -> None:
    document = json.loads(rcdrv(guest, "--json", "-d", address, "ring", *options).stdout)
    assert document["verdict"] == "pass"


def driver(guest: Guest, address: str) -> str | None:
    functions = json.loads(rcdrv(guest, "list", "--all", "--json").stdout)["functions"]
    (found,) = [one["driver"] for one in functions if one["address"] == address]
    assert found is None or isinstance(found, str)
    return found


def rows(guest: Guest, *address: str, status: int) -> dict[str, dict[str, str]]:
    """The doctor's table."""
    result = rcdrv(guest, "--json", "doctor", *address, status=status)
    return {row["name"]: row for row in json.loads(result.stdout)["rows"]}


def group(guest: Guest) -> str:
    return must(guest, f"basename $(readlink /sys/bus/pci/devices/{SHARED}/iommu_group)")


def until(process: Process, condition: Callable[[Process], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition(process):
        assert process.poll() is None, bytes(process.stderr)
        assert time.monotonic() < deadline, (bytes(process.stdout), bytes(process.stderr))
        time.sleep(0.05)


def ringing(guest: Guest, address: str, *options: str, lines: int = 4) -> Process:
    """An endless ring, under way."""
    command = ["rcdrv", "-d", address, "ring", "--count", "0", "--interval", "0.1", *options]
    process = guest.start(command, timeout=120)
    until(process, lambda one: bytes(one.stdout).count(b"\n") >= lines)
    return process


def finish(guest: Guest, process: Process, status: int, *said: str) -> Result:
    result = guest.wait(process)
    assert result.status == status, result
    assert all(text in result.stderr for text in said), result.stderr
    return result


@pytest.fixture
def bound(guest: Guest) -> Iterator[str]:
    rcdrv(guest, "bind", RK3588)
    yield RK3588
    rcdrv(guest, "unbind", RK3588)


# -- bind and unbind ------------------------------------------------------------------------------


def test_from_no_driver(guest: Guest) -> None:
    shown = rcdrv(guest, "list").stdout
    assert f"{RK3588}  1d87:3588  Rockchip RK3588" in shown
    assert PORT not in shown
    closed = json.loads(rcdrv(guest, "--json", "-d", RK3588, "info", status=3).stdout)
    assert closed["host"]["driver"] is None
    assert closed["host"]["link"]["width"] == 4
    rcdrv(guest, "bind", RK3588)
    assert json.loads(rcdrv(guest, "--json", "-d", RK3588, "info").stdout)["host"]["bars"]
    ring(guest, RK3588, "--bar", "4")
    rcdrv(guest, "reset", RK3588)
    rcdrv(guest, "unbind", RK3588)
    assert driver(guest, RK3588) is None


def test_loads_what_is_missing(guest: Guest) -> None:
    must(guest, "rmmod vfio_pci")
    row = rows(guest, RK3588, status=3)["VFIO module"]
    assert (row["state"], row["cure"].partition(";")[0]) == ("not ok", "modprobe vfio-pci")
    assert "loaded vfio-pci" in rcdrv(guest, "bind", RK3588).stdout
    assert rows(guest, RK3588, status=0)["VFIO module"]["state"] == "ok"
    rcdrv(guest, "unbind", RK3588)


def test_from_the_kernels_driver_and_back(guest: Guest) -> None:
    must(guest, "insmod /opt/kernel/pci_endpoint_test.ko")
    assert driver(guest, RK3588) == "pci-endpoint-test"
    said = rcdrv(guest, "bind", RK3588).stdout
    assert "taken from pci-endpoint-test" in said
    ring(guest, RK3588, "--bar", "4")
    rcdrv(guest, "unbind", RK3588)
    assert driver(guest, RK3588) == "pci-endpoint-test"
    must(guest, "rmmod pci_endpoint_test")


@pytest.mark.parametrize("address", [RK3588, BUS_RESET, NO_RESET])
def test_rings_again_however_the_function_is_reset(guest: Guest, address: str) -> None:
    rcdrv(guest, "bind", address)
    ring(guest, address)
    rcdrv(guest, "-d", address, "test", "pci_ep_basic.CONSECUTIVE_BAR_TEST", "DOORBELL_TEST")
    ring(guest, address)
    rcdrv(guest, "bind", address, "--no-reset")
    methods = f"/sys/bus/pci/devices/{address}/reset_method"
    assert must(guest, f"cat {methods} 2>/dev/null || true") == ""
    ring(guest, address)
    rcdrv(guest, "unbind", address)
    expected = {RK3588: "flr bus", BUS_RESET: "bus"}.get(address)
    assert expected in (None, must(guest, f"cat {methods} 2>/dev/null || true"))


# -- lost and found -------------------------------------------------------------------------------


def test_the_second_is_refused_and_unbinding_waits_for_the_first(guest: Guest) -> None:
    rcdrv(guest, "bind", RK3588)
    process = ringing(guest, RK3588)
    rival = rcdrv(guest, "-d", RK3588, "ring", status=3)
    assert "is in use by python3 (pid " in rival.stderr
    assert "is in use by python3 (pid " in rcdrv(guest, "unbind", RK3588, status=3).stderr
    rcdrv(guest, "unbind", RK3588, "--force")
    result = finish(guest, process, 5, "the host wants the device back")
    assert "may still be enabled" not in result.stderr


def test_removal_and_rescan(guest: Guest, bound: str) -> None:
    process = ringing(guest, bound)
    assert "is in use" in rcdrv(guest, "rescan", bound, status=3).stderr
    said = rcdrv(guest, "rescan", bound, "--force").stdout
    assert f"{bound}: removed" in said
    finish(guest, process, 5, "the host wants the device back")

    process = ringing(guest, bound, "--reconnect")
    rcdrv(guest, "rescan", bound, "--force")
    until(process, lambda one: b"is back" in bytes(one.stderr))
    rung = bytes(process.stdout).count(b"\n")
    until(process, lambda one: bytes(one.stdout).count(b"\n") > rung + 3)
    process.signal(2)
    finish(guest, process, 130, "waiting for", "is back")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_sigbus_is_a_lost_device(guest: Guest, bound: str, options: Sequence[str]) -> None:
    command = ["python3", "sigbus.py", "-d", bound, *options, "ring", "--count", "20"]
    result = guest.run(command, cwd="/opt/rcdrv")
    assert result.status == 5, result
    if options:
        assert json.loads(result.stdout)["verdict"] == "lost"
    else:
        assert "ring 3: acknowledged" in result.stdout
        assert "the device is gone: an access to its memory failed (SIGBUS)" in result.stderr
    ring(guest, bound)


def test_ctrl_c_disables_the_doorbell(guest: Guest, bound: str) -> None:
    process = ringing(guest, bound)
    process.signal(2)
    result = finish(guest, process, 130, "stopped by SIGINT")
    assert "may still be enabled" not in result.stderr
    regs = json.loads(rcdrv(guest, "--json", "-d", bound, "regs").stdout)
    assert regs["registers"]["DB_BAR"]["value"] not in range(6)


# -- without root ---------------------------------------------------------------------------------


def test_a_user_of_the_rules_group(guest: Guest) -> None:
    rcdrv(guest, "bind", RK3588)
    refused = as_user(guest, "-d", RK3588, "ring")
    assert refused.status == 3, refused
    assert "you may not open it" in refused.stderr
    doctor = as_user(guest, "doctor", RK3588)
    assert doctor.status == 3
    assert "rcdrv setup udev" in doctor.stdout
    rcdrv(guest, "unbind", RK3588)

    must(guest, "mkdir -p /etc/udev/rules.d && cp /opt/70-rcdrv.rules /etc/udev/rules.d/")
    udev.start(guest)
    assert driver(guest, RK3588) == "vfio-pci"
    healthy = as_user(guest, "doctor", RK3588)
    assert healthy.status == 0, healthy.stdout
    assert as_user(guest, "-d", RK3588, "ring", "--count", "3").status == 0
    tested = as_user(guest, "-d", RK3588, "test", "BAR1", "MSI_TEST", "READ_TEST", "DOORBELL_TEST")
    assert tested.status == 0, tested.stdout
    # Locked memory is what a user can run out of.
    little = as_user(guest, "doctor", RK3588, setup="ulimit -l 64")
    assert little.status == 3
    assert "user may lock 64 KiB" in little.stdout
    assert as_user(guest, "unbind", RK3588).status == 3
    must(guest, "rm /etc/udev/rules.d/70-rcdrv.rules")
    for address in (RK3588, MORTAL, BUS_RESET, NO_RESET):
        rcdrv(guest, "unbind", address)


# -- the doctor -----------------------------------------------------------------------------------


def states(guest: Guest, address: str, *, status: int) -> dict[str, str]:
    return {name: row["state"] for name, row in rows(guest, address, status=status).items()}


def test_doctor_before_and_after_binding(guest: Guest) -> None:
    before = states(guest, RK3588, status=3)
    assert (before["driver"], before["device node"]) == ("not ok", "not applicable")
    rcdrv(guest, "bind", RK3588)
    assert "not ok" not in states(guest, RK3588, status=0).values()
    must(guest, "mount -t securityfs none /sys/kernel/security")
    assert states(guest, RK3588, status=0)["lockdown"] == "ok"
    config = f"/sys/bus/pci/devices/{PORT}/config"
    must(guest, f"printf '\\000' | dd of={config} bs=1 seek=4 count=1 conv=notrunc 2>/dev/null")
    assert states(guest, RK3588, status=3)["decoding"] == "not ok"
    must(guest, f"printf '\\007' | dd of={config} bs=1 seek=4 count=1 conv=notrunc 2>/dev/null")
    process = ringing(guest, RK3588)
    assert states(guest, RK3588, status=3)["in use"] == "not ok"
    process.signal(2)
    guest.wait(process)
    rcdrv(guest, "unbind", RK3588)
    rcdrv(guest, "bind", BUS_RESET)
    assert states(guest, BUS_RESET, status=3)["reset on open"] == "not ok"
    rcdrv(guest, "unbind", BUS_RESET)


def test_the_endpoints_process_ends(guest: Guest) -> None:
    """Last, as QEMU cannot reconnect to an endpoint that ended."""
    rcdrv(guest, "bind", MORTAL)
    process = ringing(guest, MORTAL)
    (endpoint,) = [one for one in guest.endpoints if one.address == MORTAL]
    endpoint.child.stop()
    finish(guest, process, 5, f"lost {MORTAL}; closing it", "the device is gone")
    found = states(guest, MORTAL, status=3)
    assert (found["power state"], found["link"], found["CAPS"]) == ("not ok",) * 3
    # Nothing answers behind the port any more, and waiting for it has an end.
    lost = rcdrv(guest, "rescan", MORTAL, "--wait", "1", status=3)
    assert f"waited 1 s for {MORTAL}" in lost.stderr


@pytest.mark.parametrize(
    ("append", "row", "cure"),
    [
        ("intel_iommu=off", "IOMMU", "take intel_iommu=off off the kernel's command line"),
        ("intremap=off", "interrupt remapping", "take intremap=off off"),
    ],
)
def test_doctor_on_a_host_without(append: str, row: str, cure: str) -> None:
    with booted("x86_64", devices=["edu"], append=[append], bind=False) as guest:
        # No function here looks like an endpoint; with one named, the row is about that.
        assert rows(guest, status=3)["endpoint"]["state"] == "not ok"
        found = rows(guest, guest.devices[0].address, status=3)[row]
    assert found["state"] == "not ok"
    assert cure in found["cure"]


# -- a group that is not viable, and a reset of all of it -----------------------------------------

SHARED, NEIGHBOUR = "0000:01:00.0", "0000:01:00.1"


@pytest.fixture(scope="module")
def shared() -> Iterator[Guest]:
    """A guest with a network device in the endpoint's slot."""
    with booted(
        "x86_64",
        endpoints=["rcar-s4"],
        devices=["+virtio-net-pci,romfile="],
        bind=False,
        log_accesses=False,
        links_up=True,
    ) as guest:
        yield guest


def test_a_group_with_a_member_in_use(shared: Guest) -> None:
    assert driver(shared, NEIGHBOUR) == "virtio-pci"
    row = rows(shared, SHARED, status=3)["IOMMU group"]
    assert row["state"] == "not ok"
    assert f"also has {NEIGHBOUR} (virtio-pci)" in row["detail"]
    assert f"rcdrv bind {SHARED} --group" in row["cure"]
    refused = rcdrv(shared, "bind", SHARED, status=3)
    assert f"shares IOMMU group {group(shared)} with {NEIGHBOUR} (virtio-pci)" in refused.stderr
    refused = rcdrv(shared, "bind", SHARED, "--group", status=3)
    assert f"{NEIGHBOUR} is a network device in use by virtio-pci" in refused.stderr
    assert driver(shared, SHARED) is None

    # Bound all the same, it is the kernel that does not give the group away.
    override = f"/sys/bus/pci/devices/{SHARED}/driver_override"
    must(shared, f"echo vfio-pci >{override}; echo {SHARED} >/sys/bus/pci/drivers_probe")
    refused = rcdrv(shared, "-d", SHARED, "ring", status=3)
    assert f"shares IOMMU group {group(shared)} with {NEIGHBOUR} (virtio-pci)" in refused.stderr
    rcdrv(shared, "unbind", SHARED)


def test_a_whole_group_and_a_hot_reset_of_it(shared: Guest) -> None:
    said = rcdrv(shared, "bind", SHARED, "--group", "--force").stdout
    assert f"{NEIGHBOUR}: taken from virtio-pci" in said
    row = rows(shared, SHARED, status=0)["IOMMU group"]
    assert (row["state"], row["detail"]) == ("ok", f"group {group(shared)} with {NEIGHBOUR}")
    process = ringing(shared, SHARED)
    refused = rcdrv(shared, "reset", "--bus", SHARED, status=3)
    assert f"resets {SHARED}" in refused.stderr
    assert f"resets {NEIGHBOUR}" in refused.stderr
    assert f"is in use: {SHARED} (python3 (pid " in refused.stderr
    process.signal(2)
    finish(shared, process, 130)

    must(shared, "dmesg -c")
    assert f"{NEIGHBOUR}: reset" in rcdrv(shared, "reset", "--bus", SHARED).stdout
    log = must(shared, "dmesg")
    assert all(f"vfio-pci {one}: reset done" in log for one in (SHARED, NEIGHBOUR)), log
    ring(shared, SHARED)
    # The port does what pcie_retrain_link() needs, but for the training itself.
    options = ("--more", "--json", "--timeout", "10", "--destructive", "link")
    tested = rcdrv(shared, "-d", SHARED, "test", *options, "RETRAIN_TEST").stdout
    (trained,) = json.loads(tested)["results"]
    assert trained["verdict"] == "pass", trained
    assert "all is there after 4 trainings by 0000:00:" in trained["message"]
    assert f"{NEIGHBOUR}: back to virtio-pci" in rcdrv(shared, "unbind", SHARED, "--group").stdout
