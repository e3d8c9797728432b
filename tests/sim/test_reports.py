"""Public reports of endpoint faults: the command that shows each, and what it has to say.

docs/reference/reports.md lists the same; each report has its line there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sim.conftest import Endpoint, rcdrv

PAGE = Path(__file__).parents[2] / "docs/reference/reports.md"

# (report, command, exit status, what it says)
REPORTS = [
    # RK3588: a doorbell works once, as DISABLE cleared the BAR
    (
        "20250908161942.534799-2",
        "ring --cycles 2 --timeout 0.3 --device sim:rk3588,fault=disable-clears-bar",
        1,
        "1 of 2 rings failed, first ring 2: doorbell: no answer in time: BAR4 was lost at DISABLE",
    ),
    # a BAR that the part has is missing, and its tests are skipped
    *(
        (report, command, status, "a BAR4 of 256 bytes")
        for report in (
            "20250904023753.494147-1",
            "20250123124043.96112-1",
            "20241216073941.2572407-2",
        )
        for command, status in (
            ("test pci_ep_bar.BAR4.BAR_TEST --device sim:rcar-s4,fault=bar-empty=4", 0),
            ("info --device sim:rcar-s4,fault=bar-empty=4", 0),
        )
    ),
    # a big-endian endpoint
    (
        "ZxYHoi4mv-4eg0TK@ryzen.lan",
        "ring --device sim:generic,caps=0x07000000",
        4,
        "CAPS look byte-swapped: 0x07000000 for 0x00000007 MSIX|MSI|UNALIGNED_ACCESS",
    ),
    # a Resizable BAR capability without a size
    *(
        (
            report,
            "info --device sim:rk3588,fault=rebar-empty",
            1,
            "the Resizable BAR capability advertises no size for BAR0",
        )
        for report in ("20240229131313.1199101-1", "20241116005950.2480427-2")
    ),
    # RK3588 announces ATS
    (
        "20250221202646.395252-4",
        "info --device sim:rk3588,ats=true",
        0,
        "Rockchip RK3588 announces ATS, which does not work: IOTLB invalidations time out",
    ),
    # RK3588's MSI-X table
    (
        "aVubPUphGP59bH09@ryzen",
        "ring --irq msix --device sim:rk3588,fault=msix-dead",
        1,
        "the MSI-X table is at BAR0+0x80, but the hardware of Rockchip RK3588 sends MSI-X only from"
        " one at BAR4+0x4000",
    ),
    # what a port reset takes
    (
        "abk3rU2EDKjkefUD@ryzen",
        "reset --device sim:rk3588,fault=reset-loses=bars",
        1,
        "lost by the reset: BAR0, BAR1, BAR2, BAR3, BAR4, BAR5",
    ),
    (
        "abk3rU2EDKjkefUD@ryzen",
        "reset --device sim:rk3588,fault=reset-loses=msi",
        1,
        "lost by the reset: MSI",
    ),
]


@pytest.mark.parametrize(
    ("report", "command", "status", "says"), REPORTS, ids=[f"{one[0]}-{one[1]}" for one in REPORTS]
)
def test_a_report_is_named(report: str, command: str, status: int, says: str) -> None:
    result = rcdrv(*shlex.split(command))
    assert result.status == status, result
    assert says in result.out + result.err
    assert f"`{report}`" in PAGE.read_text()
    assert re.search(rf"^\$ rcdrv {re.escape(command)}( \| |$)", PAGE.read_text(), re.MULTILINE)


def test_a_healthy_endpoint_has_none_of_them() -> None:
    for preset in ("rk3588", "rcar-s4", "generic"):
        device = ("--device", f"sim:{preset}")
        assert rcdrv("info", "--json", *device).document["notes"] == []
        assert rcdrv("ring", "--cycles", "2", *device).status == 0
        assert rcdrv("reset", *device).status == 0


def test_ats_of_another_part_is_no_fault() -> None:
    document = rcdrv("info", "--json", "--device", "sim:generic,ats=true").document
    assert document["notes"] == []
    assert "Address Translation" in [one["name"] for one in document["capabilities"]]


@pytest.mark.parametrize("device", [0x1AD4, 0x229B], ids=["tegra194", "tegra234"])
def test_an_older_tegra_keeps_its_msix_ram_and_dma_registers(
    endpoint: Callable[..., Endpoint], device: int
) -> None:
    """Without BARn_RESERVED in CAPS nothing may be written to BAR2 and BAR4 all the same. That
    ``rcdrv fuzz device`` keeps to it too, tests/unit/fuzz/test_device.py shows."""
    board = endpoint(f"tegra194,caps=3,device={device:#x}")
    here = ("--device", board.address)
    result = rcdrv("test", "BAR2", "BAR4", "CONSECUTIVE_BAR_TEST", *here)
    assert result.out.count("BAR is reserved on NVIDIA Tegra") == 2 * 4  # said, and as its result
    assert result.status == 0
    assert rcdrv("pcitest", "-b", "4", *here).out == "BAR4:\t\tNOT OKAY\n"
    rcdrv("bench", "mmio", "--count", "10", *here)
    assert rcdrv("bench", "mmio", "--bar", "2", *here).status == 4
    written = {line.get("region") for line in board.log() if line.get("op") == "write"}
    assert "BAR0" in written
    assert not written & {"BAR2", "BAR4"}
    assert rcdrv("poke", "2", "0", "1", *here).status == 0  # who names it may
