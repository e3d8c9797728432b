"""rcdrv in a guest: the stock kernel's VFIO, and endpoints that the kernel takes for hardware."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.access_log import count, entries
from tests.lab.conftest import FAULTY, VECTORS_64
from tools.lab.channel import Result
from tools.lab.endpoint import Endpoint
from tools.lab.guest import Guest

REGISTERS = 0x40


def by_spec(guest: Guest, spec: str) -> Endpoint:
    (found,) = [endpoint for endpoint in guest.endpoints if endpoint.spec == spec]
    return found


def rcdrv(guest: Guest, endpoint: Endpoint, *arguments: str) -> Result:
    return guest.run(["rcdrv", "--device", endpoint.address, *arguments], timeout=120)


def log_of(endpoint: Endpoint, start: int) -> list[dict[str, Any]]:
    return entries(endpoint.access_log, start)


def log_length(endpoint: Endpoint) -> int:
    return count(endpoint.access_log)


def accesses(log: list[dict[str, Any]], region: str, op: str) -> list[dict[str, Any]]:
    return [line for line in log if line.get("region") == region and line.get("op") == op]


def ring_and_check(guest: Guest, spec: str, irq: str, *arguments: str) -> None:
    """100 rings, all acknowledged, and each of them one 32-bit write at the endpoint."""
    endpoint = by_spec(guest, spec)
    start = log_length(endpoint)
    result = rcdrv(guest, endpoint, "ring", "--count", "100", "--irq", irq, "--json", *arguments)
    assert result.status == 0, (result.stdout[-2000:], result.stderr)
    document = json.loads(result.stdout)
    assert document["irq"] == irq
    assert [one["acknowledged"] for one in document["rings"]] == [True] * 100
    where = document["doorbell"]
    log = log_of(endpoint, start)
    rung = accesses(log, f"BAR{where['bar']}", "write")
    assert [(line["offset"], line["size"], line["value"]) for line in rung] == [
        (where["offset"], 4, where["data"])
    ] * 100
    # Registers are read and written one by one; the kernel's MSI-X table writes lie behind them.
    touched = accesses(log, "BAR0", "read") + accesses(log, "BAR0", "write")
    assert {line["size"] for line in touched if line["offset"] < REGISTERS} == {4}


def test_a_recorded_session_makes_the_same_accesses(guest_x86_64: Guest) -> None:
    """Through the kernel's VFIO, with BARs that are mapped below the recorder."""
    ring_and_check(guest_x86_64, "rk3588", "msi", "--record", "/tmp/board.gz")
    replay = ("rcdrv", "--device", "replay:/tmp/board.gz", "ring", "--count", "100", "--irq", "msi")
    again = guest_x86_64.run(replay, timeout=120)
    assert again.status == 0, again.stderr
    assert "100 rings, 100 acknowledged" in again.stdout


@pytest.mark.parametrize("irq", ["msi", "msix", "poll"])
def test_rk3588_rings_100_of_100(guest_x86_64: Guest, irq: str) -> None:
    ring_and_check(guest_x86_64, "rk3588", irq, "--bar", "4")


@pytest.mark.parametrize("irq", ["intx", "msi", "msix", "poll"])
def test_generic_rings_by_every_interrupt(guest_x86_64: Guest, irq: str) -> None:
    ring_and_check(guest_x86_64, "generic", irq)


@pytest.mark.parametrize("spec", ["rcar-s4", "imx95", "imx8m"])
def test_on_demand_doorbells(guest_x86_64: Guest, spec: str) -> None:
    ring_and_check(guest_x86_64, spec, "msi")


@pytest.mark.parametrize(
    ("spec", "status", "reason"),
    [("am654", 1, "enable-failed"), ("tegra194", 1, "enable-failed"), ("j721e", 4, "no-caps")],
)
def test_endpoints_without_a_doorbell(
    guest_x86_64: Guest, spec: str, status: int, reason: str
) -> None:
    result = rcdrv(guest_x86_64, by_spec(guest_x86_64, spec), "ring", "--json")
    assert (result.status, json.loads(result.stdout)["reason"]) == (status, reason), result


def test_intx_that_the_controller_cannot_raise_is_lost(guest_x86_64: Guest) -> None:
    result = rcdrv(guest_x86_64, by_spec(guest_x86_64, "rk3588"), "ring", "--irq", "intx", "--json")
    assert (result.status, json.loads(result.stdout)["reason"]) == (1, "irq-lost"), result


def test_check_finds_nothing_broken(guest_x86_64: Guest) -> None:
    endpoint = by_spec(guest_x86_64, VECTORS_64)  # whose BARs are mapped: others log each access
    result = rcdrv(guest_x86_64, endpoint, "check", "--json", "--timeout", "10")
    document = json.loads(result.stdout)
    assert (result.status, document["broken"]) == (0, None), result
    verdicts = [layer["verdict"] for layer in document["layers"]]
    assert verdicts == ["pass"] * 7 + ["skip"]


def test_functions_of_one_group_take_turns_beside_another_device(guest_x86_64: Guest) -> None:
    """iommu_device_claim_dma_owner() gives a group to one process."""
    several = [by_spec(guest_x86_64, spec) for spec in (VECTORS_64, FAULTY, "rk3588")]
    assert several[0].group == several[1].group != several[2].group
    devices = [word for one in several for word in ("--device", one.address)]
    command = ["rcdrv", "ring", "--count", "5", "--timeout", "10", "--json", *devices]
    result = guest_x86_64.run(command, timeout=120)
    document = json.loads(result.stdout)
    assert (result.status, document["verdict"]) == (0, "pass"), result
    assert [one["device"] for one in document["devices"]] == [one.address for one in several]
    assert [len(one["rings"]) for one in document["devices"]] == [5, 5, 5]


@pytest.mark.parametrize("irq", ["intx", "poll"])
def test_arm64_rings_100_of_100(guest_aarch64: Guest, irq: str) -> None:
    ring_and_check(guest_aarch64, "generic", irq)


def test_arm64_polls_rk3588(guest_aarch64: Guest) -> None:
    ring_and_check(guest_aarch64, "rk3588", "poll", "--bar", "4")


@pytest.fixture(params=["x86_64", "aarch64"])
def guest(request: pytest.FixtureRequest) -> Guest:
    guest: Guest = request.getfixturevalue(f"guest_{request.param}")
    return guest


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_peek_and_poke_are_one_access_each(guest: Guest, width: int) -> None:
    endpoint = by_spec(guest, "generic")
    start = log_length(endpoint)
    value = 0x1122334455667788 >> (64 - width)
    poke = rcdrv(guest, endpoint, "poke", "1", "0x2008", hex(value), "--width", str(width))
    peek = rcdrv(guest, endpoint, "peek", "1", "0x2008", "--width", str(width), "--json")
    assert (poke.status, peek.status) == (0, 0), (poke, peek)
    assert json.loads(peek.stdout)["values"] == [value]
    log = log_of(endpoint, start)
    for op in ("read", "write"):
        (only,) = accesses(log, "BAR1", op)
        assert (only["offset"], only["size"], only["value"]) == (0x2008, width // 8, value)


@pytest.mark.parametrize("spec", ["rk3588", "imx95"])
def test_info_describes_the_function(guest: Guest, spec: str) -> None:
    result = rcdrv(guest, by_spec(guest, spec), "info", "--json")
    assert result.status == 0, result
    document = json.loads(result.stdout)
    assert document["backend"] == "group"
    assert document["interrupts"]["msi"] == 32
    assert {bar["bar"] for bar in document["bars"]} >= {0, 1, 2, 3, 4, 5}
    # The kernel maps no BAR that is smaller than a page and shares one.
    registers = document["bars"][0]
    assert registers["size"] == (1 << 20 if spec == "rk3588" else 128)


BULK = """
import sys
from rcdrv.address import open_function

with open_function(sys.argv[1]) as function:
    window = function.bar(1)
    assert len(sys.argv) == 2 or window.widen(8192)
    for offset, size in ((0, 1), (1, 33), (3, 1), (2, 2), (5, 1025), (6, 1026), (0, 4096), (7, 999),
                         (4, 4004), (4095, 3), (1021, 2051)):
        data = bytes((offset + index * 7) & 0xff for index in range(size))
        window.fill(0, 8192, 0xee)
        window.write_block(offset, data)
        assert window.read_block(offset, size) == data, (offset, size)
        around = window.read_block(0, 8192)
        assert around == b"\\xee" * offset + data + b"\\xee" * (8192 - offset - size)
print("done")
"""


@pytest.mark.parametrize("width", [32, 64])
def test_bulk_operations_touch_every_byte_once_and_aligned(guest: Guest, width: int) -> None:
    """On arm64 BARs are device memory: an unaligned or doubled access would be a SIGBUS."""
    endpoint = by_spec(guest, "generic")
    guest.put("/tmp/bulk.py", BULK.encode())
    start = log_length(endpoint)
    widened = ["widened"] if width == 64 else []
    result = guest.run(["python3", "/tmp/bulk.py", endpoint.address, *widened], timeout=300)
    assert (result.status, result.stdout) == (0, "done\n"), result
    log = [line for line in log_of(endpoint, start) if line.get("offset") not in (8192, 8196)]
    touched = accesses(log, "BAR1", "read") + accesses(log, "BAR1", "write")
    assert {line["size"] for line in touched} == ({1, 2, 4, 8} if widened else {1, 2, 4})
    assert all(line["offset"] % line["size"] == 0 for line in touched)
    sizes = (1, 33, 1, 2, 1025, 1026, 4096, 999, 4004, 3, 2051)
    written = sum(line["size"] for line in accesses(log, "BAR1", "write"))
    read = sum(line["size"] for line in accesses(log, "BAR1", "read"))
    assert written == sum(8192 + size for size in sizes)
    assert read == written


BURSTS = """
import sys
from rcdrv.address import open_function

with open_function(sys.argv[1]) as function:
    window = function.bar(1)
    for count in (0, 1, 7, 8, 27):
        window.burst32(0x2000 + 4 * count, 0x1000 + count, count)
    register = window.register32(0x2200)
    for value in range(5):
        register[0] = value
        assert register[0] == value
print("done")
"""


def test_bursts_and_registers_are_one_access_for_each_item(guest: Guest) -> None:
    endpoint = by_spec(guest, "generic")
    guest.put("/tmp/bursts.py", BURSTS.encode())
    start = log_length(endpoint)
    result = guest.run(["python3", "/tmp/bursts.py", endpoint.address], timeout=60)
    assert (result.status, result.stdout) == (0, "done\n"), result
    log = log_of(endpoint, start)
    written = [
        (line["offset"], line["size"], line["value"]) for line in accesses(log, "BAR1", "write")
    ]
    bursts = [
        (0x2000 + 4 * count, 4, 0x1000 + count) for count in (0, 1, 7, 8, 27) for _ in range(count)
    ]
    assert written == bursts + [(0x2200, 4, value) for value in range(5)]
    read = [(line["offset"], line["size"], line["value"]) for line in accesses(log, "BAR1", "read")]
    assert read == [(0x2200, 4, value) for value in range(5)]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["ring"], ["interrupt", "spin", "poll", "write", "burst"]),
        (["irq", "--irq", "msix"], ["msix on this host", "msix of the endpoint"]),
        (["dma", "--size", "1K", "--direction", "READ"], ["memcpy READ 1024"]),
    ],
)
def test_benchmarks_measure_through_the_kernel_too(
    guest_x86_64: Guest, arguments: list[str], names: list[str]
) -> None:
    endpoint = by_spec(guest_x86_64, "generic")
    result = rcdrv(guest_x86_64, endpoint, "bench", "--json", *arguments, "--count", "3")
    assert result.status == 0, result
    document = json.loads(result.stdout)
    assert [series["name"] for series in document["series"]] == names
    assert document["setup"]["backend"] == "group"
