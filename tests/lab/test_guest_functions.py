"""Several functions of one device, virtual functions, many vectors: through the kernel's VFIO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.access_log import count, entries
from tests.lab.conftest import FAULTY, VECTORS_64
from tests.lab.test_guest_fuzz import by_spec
from tools.lab.channel import Result
from tools.lab.guest import Guest


def rcdrv(guest: Guest, address: str, *arguments: str) -> Result:
    return guest.run(["rcdrv", *arguments, "--device", address], timeout=120)


def verdicts(result: Result) -> dict[str, str]:
    return {one["name"]: one["verdict"] for one in json.loads(result.stdout)["results"]}


def test_functions_of_one_device_are_driven_one_by_one(guest_x86_64: Guest) -> None:
    """They share an IOMMU group, and each answers for itself: only one of them has the fault."""
    first, second = by_spec(guest_x86_64, VECTORS_64), by_spec(guest_x86_64, FAULTY)
    assert first.address.rpartition(".")[0] == second.address.rpartition(".")[0]
    assert (first.address[-1], second.address[-1]) == ("0", "1")
    assert first.group == second.group
    halves = "pci_ep_bar.BAR1.BAR_SUBRANGE_TEST"
    good = dict.fromkeys(
        [halves, "pci_ep_basic.MSI_TEST", "pcie_ep_doorbell.DOORBELL_TEST"], "pass"
    )
    for endpoint, wanted in ((first, good), (second, {**good, halves: "fail"})):
        start = count(endpoint.access_log)
        other = second if endpoint is first else first
        before = count(other.access_log)
        result = rcdrv(guest_x86_64, endpoint.address, "test", "--json", *good)
        assert verdicts(result) == wanted, result.stderr
        assert [
            line for line in entries(endpoint.access_log, start) if line.get("event") == "doorbell"
        ]
        touched = [line for line in entries(other.access_log, before) if "region" in line]
        assert not [line for line in touched if line["region"].startswith("BAR")]
    listed = json.loads(guest_x86_64.run(["rcdrv", "list", "--json"]).stdout)
    shown = json.dumps(listed)
    assert first.address in shown
    assert second.address in shown


def test_64_vectors_fire_each(guest_x86_64: Guest) -> None:
    endpoint = by_spec(guest_x86_64, VECTORS_64)
    start = count(endpoint.access_log)
    result = rcdrv(guest_x86_64, endpoint.address, "test", "MSIX_TEST", "--json")
    (only,) = json.loads(result.stdout)["results"]
    # A skip, as the kselftest does at the first vector that is not there.
    assert (only["verdict"], only["reason"]) == ("skip", "no-vectors"), result
    assert only["message"] == "MSI-X65 is disabled; all 64 before it passed"
    log = entries(endpoint.access_log, start)
    raised = [line["number"] for line in log if line.get("event") == "interrupt"]
    assert raised == list(range(1, 65))


# -- SR-IOV ----------------------------------------------------------------------------------------

# The kernel's own driver makes the virtual function, as a driver of a real endpoint would
# (pci_endpoint_test, pci-pf-stub); $2 names it, or vfio-pci.
ENABLE = """
cd /sys/bus/pci/devices/$1
if [ -e driver ]; then echo $1 >driver/unbind; fi
case $2 in
vfio-pci) echo 1 >/sys/module/vfio_pci/parameters/enable_sriov; echo vfio-pci >driver_override ;;
*) modprobe $2; echo >driver_override ;;
esac
echo $1 >/sys/bus/pci/drivers_probe
echo 1 >sriov_numvfs
virtual=$(basename $(readlink virtfn0))
echo vfio-pci >/sys/bus/pci/devices/$virtual/driver_override
if [ ! -e /sys/bus/pci/devices/$virtual/driver ]; then
    echo $virtual >/sys/bus/pci/drivers_probe
fi
echo $virtual
"""
DISABLE = """
cd /sys/bus/pci/devices/$1
echo 0 >sriov_numvfs
echo $1 >driver/unbind
echo vfio-pci >driver_override
echo $1 >/sys/bus/pci/drivers_probe
"""
USE = """
import sys
from rcdrv.address import open_function
from rcdrv.device import IrqKind

with open_function(sys.argv[1]) as function:
    # VTCTRL and VTSTATUS of an 82576: full duplex, link up.
    assert function.bar(0).read32(8) & 3 == 3
    with function.interrupts(IrqKind.MSIX, 3) as interrupts:
        assert interrupts.take() == {}
    with function.dma_buffer(8192) as buffer:
        assert buffer.iova
    function.reset()
print("done")
"""
TOKEN = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
TOKENS = f"""
import sys
from rcdrv.errors import HostError
from rcdrv.vfio import open

physical, virtual, backend = sys.argv[1:]
token, other = "{TOKEN}", "0{TOKEN[1:]}"

def refused(address, token, says):
    try:
        open(address, backend, vf_token=token).close()
    except HostError as error:
        assert says in error.message, error.message
        assert "`vf_token`" in error.hint, error.hint
    else:
        raise AssertionError(says)

with open(physical, backend, vf_token=token):
    with open(virtual, backend, vf_token=token) as function:
        assert function.bars[0].size == 16 << 10
    refused(virtual, other, "'s token, which differs from the given one")
    refused(virtual, None, "'s token")
with open(virtual, backend, vf_token=token):
    refused(physical, None, "virtual functions are in use")
    refused(physical, other, "which differs from the given one")
print("done")
"""


@pytest.fixture(params=["igb", "vfio-pci"])
def virtual(request: pytest.FixtureRequest, guest_x86_64: Guest) -> Iterator[tuple[str, str]]:
    """A virtual function that is bound to vfio-pci, and the driver of the physical one."""
    (physical,) = [one.address for one in guest_x86_64.devices if one.spec == "igb"]
    result = guest_x86_64.run(["sh", "-e", "-c", ENABLE, "enable", physical, request.param])
    assert result.status == 0, result
    yield result.stdout.strip(), request.param
    result = guest_x86_64.run(["sh", "-e", "-c", DISABLE, "disable", physical])
    assert result.status == 0, result


def test_a_virtual_function_is_a_function(guest_x86_64: Guest, virtual: tuple[str, str]) -> None:
    address, driver = virtual
    result = rcdrv(guest_x86_64, address, "info", "--json")
    if driver == "vfio-pci":
        # The kernel wants a token of the physical function's user.
        assert result.status == 3
        said: dict[str, Any] = json.loads(result.stdout)
        assert "is a virtual function of" in said["message"], said
        assert "--vf-token" in said["hint"]
        assert "sriov_numvfs" in said["hint"]
        (physical,) = [one.address for one in guest_x86_64.devices if one.spec == "igb"]
        shared = guest_x86_64.run(["python3", "-c", TOKENS, physical, address, "group"])
        assert (shared.status, shared.stdout) == (0, "done\n"), shared
        token = ["--vf-token", TOKEN]
        assert rcdrv(guest_x86_64, address, *token, "peek", "0", "8").status == 0
        return
    assert result.status == 0, result
    document = json.loads(result.stdout)
    # Config space of a virtual function has no IDs of its own: VFIO supplies them.
    assert (document["vendor_id"], document["device_id"]) == (0x8086, 0x10CA), document
    assert {bar["bar"]: bar["size"] for bar in document["bars"]} == {0: 16 << 10, 3: 16 << 10}
    assert document["interrupts"]["msix"] == 3
    guest_x86_64.put("/tmp/use.py", USE.encode())
    used = guest_x86_64.run(["python3", "/tmp/use.py", address])
    assert (used.status, used.stdout) == (0, "done\n"), used
    assert address in guest_x86_64.run(["rcdrv", "list"]).stdout
