"""The backend ``sysfs``, on a made-up host: what it does to the files, and what it refuses."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdrv.device import CONFIG_REGION, Area, IrqKind, SetIrqs
from rcdrv.errors import AccessError, DeviceLost, HostError, RcdrvError
from rcdrv.function import Function
from rcdrv.verdict import NotPassed, Verdict
from rcdrv.vfio import open_device, sysfs
from rcdrv.vfio.sysfs import SysfsDevice
from tests.unit.test_sysfs import BDF, Host, refusal

BAR0, IO_BAR, SHARED = 0x1000_0000, 0xC000, 0x2000_0800
PAGE = mmap.PAGESIZE


class Function0:
    """A function with BAR0 of a page, BAR1 of I/O ports, and BAR2 in the middle of a page."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.add(driver=None, group="")
        self.folder = host.paths.function(BDF)
        rows = [(BAR0, BAR0 + PAGE - 1, 0x40200), (IO_BAR, IO_BAR + 0xFF, 0x40101)]
        rows += [(SHARED, SHARED + 0x7FF, 0x40200), *[(0, 0, 0)] * 10]
        text = "".join("".join(f"{value:#018x} " for value in row) + "\n" for row in rows)
        (self.folder / "resource").write_text(text)
        (self.folder / "resource0").write_bytes(bytes(PAGE))
        (self.folder / "enable").write_text("0")
        config = bytearray(256)
        config[:4] = bytes.fromhex("871d8835")
        config[0x10:0x1C] = b"".join(
            address.to_bytes(4, "little") for address in (BAR0, IO_BAR | 1, SHARED)
        )
        (self.folder / "config").write_bytes(config)

    @property
    def command(self) -> int:
        return int.from_bytes((self.folder / "config").read_bytes()[4:6], "little")

    def enabled(self) -> str:
        return (self.folder / "enable").read_text()

    def open(self) -> SysfsDevice:
        device = open_device(BDF, "sysfs", paths=self.host.paths)
        assert isinstance(device, SysfsDevice)
        return device


@pytest.fixture
def made_up(tmp_path: Path) -> Function0:
    return Function0(Host(tmp_path))


@pytest.fixture
def device(made_up: Function0) -> Iterator[SysfsDevice]:
    opened = made_up.open()
    yield opened
    opened.close()


def test_a_function_is_given_back_as_it_was(made_up: Function0) -> None:
    with Function(made_up.open()) as function:
        assert made_up.enabled() == "1"
        assert made_up.command & 0x6 == 0x6
        assert [bar and bar.size for bar in function.bars[:3]] == [PAGE, 0x100, 0x800]
        function.bar(0).write32(8, 0x1234)
    assert made_up.enabled() == "0"
    assert made_up.command == 0
    assert (made_up.folder / "resource0").read_bytes()[8:12] == bytes.fromhex("34120000")


def test_nothing_is_decoded_while_a_bar_is_sized(
    made_up: Function0, monkeypatch: pytest.MonkeyPatch
) -> None:
    """__pci_read_base() turns PCI_COMMAND_DECODE_ENABLE off meanwhile."""
    seen = []
    write = os.pwrite

    def noted(fd: int, data: bytes, offset: int) -> int:
        if 0x10 <= offset < 0x28:
            seen.append((data == b"\xff" * 4, made_up.command & 3))
        return write(fd, data, offset)

    with Function(made_up.open()) as function:
        before = made_up.command
        monkeypatch.setattr(os, "pwrite", noted)
        for is_64bit in (False, True):
            function.config.bar_mask(0, is_64bit=is_64bit)
            assert made_up.command == before
    assert seen == [(True, 0), (False, 0)] * 3


def test_what_a_device_that_is_gone_reads_as_is_not_written_back(made_up: Function0) -> None:
    (made_up.folder / "config").write_bytes(b"\xff" * 256)
    device = made_up.open()
    (made_up.folder / "config").write_bytes(bytes(256))
    device.close()
    assert made_up.command == 0


def test_an_access_has_its_width(device: SysfsDevice, made_up: Function0) -> None:
    device.write(0, 4, b"\x01\x02\x03\x04")
    assert device.read(0, 4, 2) == b"\x01\x02"
    assert device.read(CONFIG_REGION, 0, 4) == bytes.fromhex("871d8835")
    for region, offset in ((0, PAGE), (0, -4), (CONFIG_REGION, 254), (3, 0)):
        with pytest.raises(AccessError):
            device.read(region, offset, 4)


def test_no_interrupts(device: SysfsDevice) -> None:
    assert [device.irq_count(kind) for kind in IrqKind] == [0] * len(IrqKind)
    assert device.set_irqs(IrqKind.MSI, SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER, 0, 0) == 0
    with pytest.raises(HostError, match="delivers no MSI"):
        device.set_irqs(IrqKind.MSI, SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER, 0, 1, [0])


def test_reset_is_that_of_sysfs(device: SysfsDevice, made_up: Function0) -> None:
    assert not device.can_reset()
    (made_up.folder / "reset").write_text("")
    assert device.can_reset()
    device.reset()
    assert (made_up.folder / "reset").read_text() == "1"


@pytest.mark.parametrize(
    ("bar", "message", "cure"),
    [(1, "an I/O BAR", "memory BAR"), (2, "is not aligned to a page", "pci=resource_alignment=")],
)
def test_a_bar_that_cannot_be_mapped(
    device: SysfsDevice, bar: int, message: str, cure: str
) -> None:
    with pytest.raises(HostError, match=message) as caught:
        device.read(bar, 0, 4)
    assert cure in caught.value.hint


def test_an_architecture_without_mmap(device: SysfsDevice, made_up: Function0) -> None:
    (made_up.folder / "resource0").unlink()
    with pytest.raises(HostError, match="no file in sysfs for mapping BAR0"):
        device.map(0, Area(0, PAGE))


def test_another_rcdrv(device: SysfsDevice, made_up: Function0) -> None:
    assert "in use by another rcdrv" in refusal(made_up.host, backend="sysfs").message


def test_the_other_one_has_gone(made_up: Function0) -> None:
    made_up.open().close()
    made_up.open().close()


@pytest.mark.parametrize("driver", ["vfio-pci", "pci-endpoint-test"])
def test_a_driver_is_bound(made_up: Function0, driver: str) -> None:
    (made_up.folder / "driver").symlink_to(made_up.host.paths.sys / "bus/pci/drivers" / driver)
    error = refusal(made_up.host, backend="sysfs")
    assert f"bound to {driver}" in error.message
    cure = "unset RCDRV_BACKEND" if driver == "vfio-pci" else f"echo {BDF} > "
    assert cure in error.hint


@pytest.mark.parametrize("state", ["D3hot", "D3cold"])
def test_it_sleeps(made_up: Function0, state: str) -> None:
    (made_up.folder / "power_state").write_text(state + "\n")
    error = refusal(made_up.host, backend="sysfs")
    assert error.message == f"{BDF} is suspended in {state}"
    assert "power/control" in error.hint


@pytest.mark.parametrize(
    ("lockdown", "number", "kind", "message"),
    [
        ("none [integrity] confidentiality", errno.EPERM, HostError, "the kernel is locked down"),
        ("[none] integrity confidentiality", errno.EPERM, HostError, "only root may"),
        ("", errno.EACCES, HostError, "only root may"),
        ("", errno.EBUSY, HostError, "it has just been bound to a driver"),
        ("", errno.EIO, HostError, os.strerror(errno.EIO)),
        ("", errno.ENODEV, DeviceLost, "the device is gone"),
    ],
)
def test_what_the_kernel_refuses(
    made_up: Function0, lockdown: str, number: int, kind: type[RcdrvError], message: str
) -> None:
    if lockdown:
        path = made_up.host.paths.sys / "kernel/security/lockdown"
        path.parent.mkdir(parents=True)
        path.write_text(lockdown + "\n")
    error = sysfs._failure(made_up.host.paths, BDF, "cannot be enabled", OSError(number, ""))
    assert type(error) is kind
    assert message in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("domain", "skipped"), [("", False), ("identity", False), ("DMA-FQ", True), ("DMA", True)]
)
def test_dma_is_skipped_where_an_iommu_stops_it(
    made_up: Function0, domain: str, skipped: bool
) -> None:
    if domain:
        group = made_up.host.paths.group("7")
        group.mkdir(parents=True)
        (group / "type").write_text(domain + "\n")
        (made_up.folder / "iommu_group").symlink_to(group)
    device = made_up.open()
    try:
        assert bool(device.dma_ranges()) is not skipped
        if skipped:
            with pytest.raises(NotPassed, match=r"an IOMMU \(group 7\) blocks it") as caught:
                device.dma_allocate(PAGE, PAGE, 1 << 64)
            assert caught.value.verdict is Verdict.SKIP
    finally:
        device.close()
