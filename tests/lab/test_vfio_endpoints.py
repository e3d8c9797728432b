"""Ring and test software endpoints through iommufd, without an IOMMU, and however they reset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import udev
from tests.lab.test_vfio_device import booted
from tests.verdicts import EXPECTED
from tools.lab.channel import Result
from tools.lab.endpoint import Endpoint
from tools.lab.guest import Guest

SPECS = ("rk3588", "generic", "generic,reset=bus", "generic,reset=none")
ALLOW = """
echo 1 >/sys/module/vfio/parameters/enable_unsafe_noiommu_mode
echo 8 >/proc/sys/vm/nr_hugepages
for address; do
    echo vfio-pci >/sys/bus/pci/devices/$address/driver_override
    echo $address >/sys/bus/pci/drivers_probe
done
"""


@pytest.fixture(scope="module")
def translated() -> Iterator[Guest]:
    """A guest whose kernel has both group and iommufd."""
    files = udev.udev_files()
    with booted(endpoints=SPECS, iommufd=True, files=files) as guest:
        yield guest


@pytest.fixture(scope="module")
def untranslated() -> Iterator[Guest]:
    """A guest without an IOMMU."""
    options = ["intel_iommu=off"]
    with booted(endpoints=SPECS[:2], append=options, bind=False, iommufd=True) as guest:
        addresses = [endpoint.address for endpoint in guest.endpoints]
        result = guest.run(["sh", "-e", "-c", ALLOW, "allow", *addresses])
        assert result.status == 0, result
        yield guest


def ring(guest: Guest, endpoint: Endpoint, backend: str) -> None:
    document, result = rcdrv(guest, endpoint, backend, "ring", "--count", "2")
    assert result.status == 0, result
    assert document["irq"] == "msi"
    assert [one["acknowledged"] for one in document["rings"]] == [True, True]


def check(guest: Guest, endpoint: Endpoint, backend: str) -> None:
    document, result = rcdrv(guest, endpoint, backend, "test")
    found = {
        one["name"]: (one["verdict"], one["reason"])
        for one in document["results"]
        if one["verdict"] != "pass"
    }
    assert found == EXPECTED[endpoint.spec.partition(",")[0]], result.stderr


def rcdrv(
    guest: Guest, endpoint: Endpoint, backend: str, *arguments: str
) -> tuple[dict[str, Any], Result]:
    result = guest.run(
        ["rcdrv", "--device", endpoint.address, *arguments, "--json"],
        env={"RCDRV_BACKEND": backend},
        timeout=240,
    )
    assert result.stdout, result
    warned = "can read and write all of this host's memory" in result.stderr
    assert warned == (backend == "noiommu")
    return json.loads(result.stdout), result


def by_spec(guest: Guest, spec: str) -> Endpoint:
    (found,) = [endpoint for endpoint in guest.endpoints if endpoint.spec == spec]
    return found


# What is left out here is in other files: the group backend with function level resets.
@pytest.mark.parametrize(
    ("backend", "spec"),
    [
        ("iommufd", "rk3588"),
        ("iommufd", "generic"),
        ("iommufd", "generic,reset=bus"),
        ("iommufd", "generic,reset=none"),
        ("group", "generic,reset=bus"),
        ("group", "generic,reset=none"),
    ],
)
def test_ring_test_and_ring_again(translated: Guest, backend: str, spec: str) -> None:
    endpoint = by_spec(translated, spec)
    methods = translated.get(f"/sys/bus/pci/devices/{endpoint.address}/reset_method").split()
    assert (methods[0] == b"flr") == ("reset" not in spec)
    ring(translated, endpoint, backend)
    check(translated, endpoint, backend)
    ring(translated, endpoint, backend)


def test_iommufd_is_the_default(translated: Guest) -> None:
    endpoint = translated.endpoints[0]
    result = translated.run(["rcdrv", "--device", endpoint.address, "info", "--json"])
    assert json.loads(result.stdout)["backend"] == "iommufd"


def test_a_user_of_the_rules_group(translated: Guest) -> None:
    address = by_spec(translated, "rk3588").address
    refused = udev.as_user(translated, "doctor", address)
    assert refused.status == 3
    assert "user may not open /dev/vfio/devices/vfio" in refused.stdout

    udev.must(translated, f"echo {address} >/sys/bus/pci/drivers/vfio-pci/unbind")
    udev.start(translated)
    rights = udev.must(translated, "stat -c '%U %G %a' /dev/iommu /dev/vfio/devices/*")
    assert rights.splitlines() == ["root rcdrv 660"] * (1 + len(SPECS))
    healthy = udev.as_user(translated, "doctor", address)
    assert healthy.status == 0, healthy.stdout
    assert "with /dev/iommu, or /dev/vfio/" in healthy.stdout
    for backend in ("", "group"):
        ring = udev.as_user(translated, "-d", address, "ring", "--count", "3", backend=backend)
        assert ring.status == 0, ring
    info = udev.as_user(translated, "-d", address, "info", "--json")
    assert json.loads(info.stdout)["backend"] == "iommufd"
    tested = udev.as_user(translated, "-d", address, "test", "--json")
    found = {
        one["name"]: (one["verdict"], one["reason"])
        for one in json.loads(tested.stdout)["results"]
        if one["verdict"] != "pass"
    }
    assert found == EXPECTED["rk3588"], tested.stderr


@pytest.mark.parametrize("spec", ["rk3588", "generic"])
def test_without_an_iommu(untranslated: Guest, spec: str) -> None:
    endpoint = by_spec(untranslated, spec)
    ring(untranslated, endpoint, "noiommu")
    check(untranslated, endpoint, "noiommu")
    ring(untranslated, endpoint, "noiommu")
