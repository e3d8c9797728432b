"""`rcdrv test --more` on software endpoints: no healthy one fails."""

from __future__ import annotations

import pytest

from rcdrv.epf_test.more import DESTRUCTIVE_MORE, MORE
from rcdrv.sim.layout import load_layout, preset_names
from tests.sim.conftest import rcdrv

PRESETS = [name for name in preset_names() if load_layout(name).function == "epf_test"]


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_fails(preset: str) -> None:
    # A timeout only bounds what a busy host makes late.
    result = rcdrv("test", "--more", "--timeout", "10", "--json", "--device", f"sim:{preset}")
    assert result.status == 0, result
    assert [one["name"] for one in result.document["results"]] == [str(c.name) for c in MORE]


def test_what_is_destructive_runs_when_asked_for() -> None:
    options = [word for name in DESTRUCTIVE_MORE for word in ("--destructive", name)]
    result = rcdrv(
        *("test", "--more", "-f", "more_destructive", *options, "--json"),
        *("--timeout", "10", "--device", "sim:generic"),
    )
    assert result.status == 0, result
    results = {one["name"]: one["verdict"] for one in result.document["results"]}
    # vfio-user has one kind of reset only, and no port.
    for name in ("BUS_RESET_TEST", "RETRAIN_TEST"):
        assert results.pop(f"more_destructive.{name}") == "skip"
    assert set(results.values()) == {"pass"}
    assert len(result.document["results"]) == sum(map(len, DESTRUCTIVE_MORE.values()))
    without = rcdrv("test", "--more", "-f", "more_destructive", "--device", "sim:generic")
    assert without.status == 2


def test_a_fault_is_an_exit_status() -> None:
    spec = "sim:generic,fault=byte-enables"
    result = rcdrv("test", "--more", "WIDTH_TEST", "--json", "--device", spec)
    assert result.status == 1


def test_endpoints_transfer_at_a_time() -> None:
    devices = ("sim:rk3588", "sim:j721e", "sim:generic,fault=dst-invalid")
    result = rcdrv(
        *("test", "--more", "*SEVERAL_TEST", "--json", "--timeout", "10"),
        *(word for device in devices for word in ("--device", device)),
    )
    assert result.status == 0, result
    first, second, unable = (one["results"][0] for one in result.document["devices"])
    for one in (first, second):  # and nobody waits for the third
        assert one["verdict"] == "pass"
        assert one["message"].endswith("while 1 more transferred")
    assert unable["verdict"] == "skip"
    assert "READ_SIZES_TEST judges" in unable["message"]
