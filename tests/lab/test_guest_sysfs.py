"""Without VFIO: a stock kernel with none of its modules loaded, and the backend ``sysfs``."""

from __future__ import annotations

from tools.lab.channel import Result
from tools.lab.guest import Guest

MODULES = ("vfio_pci", "vfio_pci_core", "vfio_iommu_type1", "vfio")
BAR_CASES = 11
"""BAR tests, subranges and the consecutive BARs that pass on an RK3588, and the doorbell."""


def unload(guest: Guest) -> None:
    guest.run(["sh", "-c", f"for one in {' '.join(MODULES)}; do rmmod $one; done"])
    assert "vfio" not in guest.run(["ls", "/sys/bus/pci/drivers", "/dev"]).stdout


def test_an_arm64_guest_without_vfio_rings() -> None:
    with Guest("aarch64", endpoints=("rk3588",), bind=False) as guest:
        unload(guest)
        (endpoint,) = guest.endpoints
        command = ["rcdrv", "--device", endpoint.address, "ring", "--bar", "4", "--count", "3"]
        ring = guest.run(command, env={"RCDRV_BACKEND": "sysfs"}, timeout=300)
        assert ring.status == 0, ring
        assert "3 rings, 3 acknowledged" in ring.stdout


def test_a_guest_without_vfio() -> None:
    """Behind an IOMMU, so that transfers are skipped."""
    with Guest("x86_64", endpoints=("rk3588", "rk3588-vntb"), bind=False) as guest:
        endpoint, vntb = guest.endpoints
        folder = f"/sys/bus/pci/devices/{endpoint.address}"

        def rcdrv(*arguments: str, device: str = endpoint.address) -> Result:
            return guest.run(
                ["rcdrv", "--device", device, *arguments],
                env={"RCDRV_BACKEND": "sysfs"},
                timeout=300,
            )

        def state() -> str:
            command = f"cat {folder}/enable; od -An -tx2 -j4 -N2 {folder}/config"
            return guest.run(["sh", "-c", command]).stdout

        unload(guest)
        before = state()

        doctor = guest.run(["rcdrv", "doctor", endpoint.address])
        assert "RCDRV_BACKEND=sysfs" in doctor.stdout
        ring = rcdrv("ring", "--bar", "4", "--count", "10")
        assert ring.status == 0, ring
        assert "ring 10: acknowledged" in ring.stdout
        for command in (("info",), ("regs",), ("peek", "0", "0"), ("poke", "1", "0", "0x5a")):
            result = rcdrv(*command)
            assert result.status == 0, result
        info = rcdrv("ntb", "info", device=vntb.address)
        assert info.status == 0, info
        assert "doorbells    2 in BAR4" in info.stdout
        skipped = rcdrv("test")
        assert skipped.status == 0, skipped
        assert f"pass:{BAR_CASES} fail:0" in skipped.stdout
        assert "SKIP      no DMA through sysfs: an IOMMU (group" in skipped.stdout

        assert state() == before
