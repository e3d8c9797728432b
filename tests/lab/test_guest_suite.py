"""`rcdrv test` and rings by MSI in arm64 guests. The x86-64 one has the kernel's driver beside:
test_compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.conftest import PRESETS, booted
from tests.verdicts import EXPECTED
from tools.lab.guest import Guest

# Through the group backend this machine's kernel has no MSI for anybody (tools/lab/README.md).
NO_MSI = {
    "pci_ep_basic.MSI_TEST": ("error", "host"),
    "pci_ep_basic.MSIX_TEST": ("error", "host"),
}
# The first have MSI-X, the others not.
BY_GROUP = ("rk3588", "generic", "rcar-s4", "tegra194")
WITHOUT_MSIX = BY_GROUP[2:]


@pytest.fixture(scope="module")
def stock() -> Iterator[Guest]:
    """Debian's kernel. Without access logs, so that BARs are mapped as on a board."""
    with booted("aarch64", endpoints=BY_GROUP, log_accesses=False) as guest:
        yield guest


@pytest.fixture(scope="module")
def with_iommufd() -> Iterator[Guest]:
    """A kernel with iommufd, which gives MSI."""
    with booted("aarch64", endpoints=PRESETS, log_accesses=False, iommufd=True) as guest:
        yield guest


def not_passed(guest: Guest, preset: str, *options: str) -> dict[str, tuple[str, str]]:
    (endpoint,) = [one for one in guest.endpoints if one.spec == preset]
    result = guest.run(
        ["rcdrv", "--device", endpoint.address, "test", "--json", *options], timeout=240
    )
    return {
        one["name"]: (one["verdict"], one["reason"])
        for one in json.loads(result.stdout)["results"]
        if one["verdict"] != "pass"
    }


@pytest.mark.parametrize("preset", BY_GROUP)
def test_verdicts_without_msi(stock: Guest, preset: str) -> None:
    expected = {**EXPECTED[preset], **NO_MSI}
    if preset in WITHOUT_MSIX:
        expected["pci_ep_basic.MSIX_TEST"] = ("skip", "no-vectors")
    assert not_passed(stock, preset, "--irq", "poll") == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_its_verdicts(with_iommufd: Guest, preset: str) -> None:
    assert not_passed(with_iommufd, preset) == EXPECTED[preset]


@pytest.mark.parametrize("preset", ["rk3588", "generic"])
@pytest.mark.parametrize("irq", ["msi", "msix"])
def test_rings_100_of_100_by_message(with_iommufd: Guest, preset: str, irq: str) -> None:
    (endpoint,) = [one for one in with_iommufd.endpoints if one.spec == preset]
    result = with_iommufd.run(
        ["rcdrv", "-d", endpoint.address, "--json", "ring", "--count", "100", "--irq", irq],
        timeout=120,
    )
    assert result.status == 0, result
    document = json.loads(result.stdout)
    assert document["irq"] == irq
    assert [one["acknowledged"] for one in document["rings"]] == [True] * 100
