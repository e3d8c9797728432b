"""`rcdrv test` in an arm64 guest. The x86-64 one has the kernel's driver beside: test_compare."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.conftest import PRESETS, booted
from tests.verdicts import EXPECTED
from tools.lab.guest import Guest

# Through the group backend this machine's kernel has no MSI for anybody (facts of the lab).
NO_MSI = {
    "pci_ep_basic.MSI_TEST": ("error", "host"),
    "pci_ep_basic.MSIX_TEST": ("error", "host"),
}


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Without access logs, so that BARs are mapped as on a board."""
    with booted("aarch64", endpoints=PRESETS, log_accesses=False) as guest:
        yield guest


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_its_verdicts(guest: Guest, preset: str) -> None:
    (endpoint,) = [one for one in guest.endpoints if one.spec == preset]
    result = guest.run(
        ["rcdrv", "test", "--irq", "poll", "--json", "--device", endpoint.address], timeout=240
    )
    found = {
        one["name"]: (one["verdict"], one["reason"])
        for one in json.loads(result.stdout)["results"]
        if one["verdict"] != "pass"
    }
    expected = {**EXPECTED[preset], **NO_MSI}
    if EXPECTED[preset].get("pci_ep_basic.MSIX_TEST") and preset in (
        *("rcar-s4", "imx95", "imx8m", "tegra194"),
    ):
        expected["pci_ep_basic.MSIX_TEST"] = ("skip", "no-vectors")  # they have no MSI-X
    assert found == expected, result.stderr
