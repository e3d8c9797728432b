"""`rcdrv fuzz device` through the kernel's VFIO."""

from __future__ import annotations

import json

import pytest

from tests.access_log import count, entries
from tests.lab.conftest import FAULTY
from tools.lab.channel import Result
from tools.lab.endpoint import Endpoint
from tools.lab.guest import Guest


def by_spec(guest: Guest, spec: str) -> Endpoint:
    (found,) = [endpoint for endpoint in guest.endpoints if endpoint.spec == spec]
    return found


def fuzz(guest: Guest, endpoint: Endpoint, *arguments: str) -> Result:
    return guest.run(
        ["rcdrv", "fuzz", "device", "--device", endpoint.address, "--json", *arguments],
        timeout=300,
    )


def check_nothing_is_found(guest: Guest, spec: str, examples: int, *arguments: str) -> None:
    """Nor anything done that could harm, nor anything left behind."""
    endpoint = by_spec(guest, spec)
    start = count(endpoint.access_log)
    result = fuzz(guest, endpoint, "--examples", str(examples), *arguments)
    document = json.loads(result.stdout)
    assert (result.status, document["finding"]) == (0, None), result
    assert document["steps"] > 30 * examples
    log = entries(endpoint.access_log, start)
    events = [line["event"] for line in log if "event" in line]
    assert events.count("command") > 15 * examples
    assert not {"harm", "oops", "stray"} & set(events)
    shows = {line["bar"]: line["shows"] for line in log if line.get("event") == "inbound"}
    assert set(shows.values()) <= {"memory"}


@pytest.mark.parametrize("spec", ["rk3588", "generic"])
def test_nothing_is_found(guest_x86_64: Guest, spec: str) -> None:
    check_nothing_is_found(guest_x86_64, spec, 2)


def test_nothing_is_found_on_arm64(guest_aarch64: Guest) -> None:
    check_nothing_is_found(guest_aarch64, "generic", 1, "--irq", "poll")


def test_a_fault_is_found_and_its_script_shows_it(guest_x86_64: Guest) -> None:
    result = fuzz(guest_x86_64, by_spec(guest_x86_64, FAULTY), "--steps", "4")
    document = json.loads(result.stdout)
    assert result.status == 1, result
    lines = document["script"].splitlines()
    assert [line.strip().partition(",")[0] for line in lines[-2:]] == ["setup", "peek"]
    guest_x86_64.put("/tmp/finding.sh", document["script"].encode())
    shown = guest_x86_64.run(["sh", "/tmp/finding.sh"])
    assert shown.status == 1, shown
    assert document["finding"] in shown.stdout
    healthy = by_spec(guest_x86_64, "generic").address
    again = guest_x86_64.run(["sh", "/tmp/finding.sh"], env={"RCDRV_DEVICE": healthy})
    assert again.status == 0, again
