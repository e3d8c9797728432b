"""The checks before VFIO, on a made-up host; each refusal has its cure."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rcdrv.errors import HostError, RcdrvError, UsageError
from rcdrv.sysfs import (
    Paths,
    canonical_address,
    device_name,
    group_members,
    holders,
    iommu_group,
    name_a_port,
)
from rcdrv.vfio import default_backend, open_device
from rcdrv.vfio.refusals import cannot_open, no_isolation, not_given, not_viable

BDF = "0000:01:00.0"
VF, TOKEN = "0000:01:10.0", "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"


class Host:
    """A sysfs, /dev and /proc of plain files."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root / "sys", root / "dev", root / "proc")
        for folder in (self.paths.sys, self.paths.dev / "vfio", self.paths.proc):
            folder.mkdir(parents=True)

    def add(
        self,
        bdf: str = BDF,
        *,
        driver: str | None = "vfio-pci",
        group: str = "7",
        device: str = "",
        numbered: bool = True,
    ) -> None:
        function = self.paths.function(bdf)
        function.mkdir(parents=True)
        if device:
            entry = function / "vfio-dev" / device
            entry.mkdir(parents=True)
            if numbered:
                (entry / "dev").write_text("242:0\n")
        if driver:
            folder = self.paths.sys / "bus" / "pci" / "drivers" / driver
            folder.mkdir(parents=True, exist_ok=True)
            (function / "driver").symlink_to(folder)
        if group:
            members = self.paths.group(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / bdf).symlink_to(function)
            (function / "iommu_group").symlink_to(self.paths.group(group))

    def process(self, pid: int, name: str, *opened: Path) -> None:
        folder = self.paths.proc / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder.parent / "comm").write_text(name + "\n")
        for number, target in enumerate(opened):
            (folder / str(number)).symlink_to(target)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def refusal(host: Host, bdf: str = BDF, *, backend: str | None = None) -> RcdrvError:
    with pytest.raises(HostError) as caught:
        open_device(bdf, backend, paths=host.paths)
    assert caught.value.exit_status == 3
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0000:01:00.0", "0000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("1:0.0", "0000:01:00.0"),
        ("ABCD:Ff:1F.7", "abcd:ff:1f.7"),
        ("10000:e1:00.1", "10000:e1:00.1"),
    ],
)
def test_addresses(text: str, canonical: str) -> None:
    assert canonical_address(text) == canonical


@pytest.mark.parametrize(
    "text", ["", "01:00", "01:20.0", "01:00.8", "1:2:3:4.0", " 1:0.0", "1:0.0\n"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="not a PCI address"):
        canonical_address(text)


def test_no_such_device(host: Host) -> None:
    error = refusal(host, "01:00.0")
    assert error.message == f"{BDF}: no such PCI device"
    assert error.hint == "no port leads to bus 01; " + name_a_port(host.paths)
    assert "rescan" not in error.hint  # which could find nothing


def test_a_rescan_is_advised_where_it_can_find_something(host: Host) -> None:
    """Its hint named `rescan ADDRESS`, and that of `rescan` had no port for the address."""
    for port, bus in (("0000:00:1c.0", 1), ("0000:00:1d.0", 16), ("0001:00:01.0", 7)):
        folder = host.paths.function(port)
        folder.mkdir(parents=True)
        (folder / "secondary_bus_number").write_text(f"{bus}\n")
    assert refusal(host, "01:00.0").hint.endswith(f"rcdrv rescan {BDF}")
    for address in ("07:00.0", "0001:10:00.0"):
        hint = refusal(host, address).hint
        assert "rescan 0" not in hint
        assert "0000:00:1c.0 (bus 01), 0000:00:1d.0 (bus 10), 0001:00:01.0 (bus 07)" in hint


def test_no_iommu(host: Host) -> None:
    # Also when no driver is bound: binding vfio-pci could only fail.
    host.add(group="", driver=None)
    error = refusal(host)
    assert error.message == f"{BDF} is not behind an IOMMU"
    assert "intel_iommu=on" in error.hint
    assert "SMMU" in error.hint


def test_a_group_of_the_noiommu_mode_is_no_iommu(host: Host) -> None:
    host.add()
    (host.paths.group("7") / "name").write_text("vfio-noiommu\n")
    assert refusal(host).message == f"{BDF} is not behind an IOMMU"


def test_another_driver(host: Host) -> None:
    host.add(driver="pci_endpoint_test")
    error = refusal(host)
    assert error.message == f"{BDF} is bound to pci_endpoint_test, not to vfio-pci"
    function = host.paths.function(BDF)
    assert error.hint.splitlines()[1:] == [
        "  modprobe vfio-pci",
        f"  echo vfio-pci > {function}/driver_override",
        f"  echo {BDF} > {function}/driver/unbind",
        f"  echo {BDF} > {host.paths.sys}/bus/pci/drivers_probe",
    ]


def test_no_driver(host: Host) -> None:
    host.add(driver=None)
    host.add("0000:02:00.0", group="8")  # so the module is loaded
    error = refusal(host)
    assert error.message == f"{BDF} is not bound to a driver, not to vfio-pci"
    assert "unbind" not in error.hint
    assert "modprobe" not in error.hint
    assert "new_id" not in error.hint


def test_ready(host: Host) -> None:
    host.add()
    assert iommu_group(host.paths, BDF) == "7"


def test_no_nodes(host: Host) -> None:
    host.add()
    error = refusal(host)
    assert str(host.paths.container_node) in error.message
    assert "modprobe" in error.hint


def test_a_node_that_is_not_vfio(host: Host) -> None:
    host.add()
    host.paths.container_node.touch()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert "container does not answer" in refusal(host).message
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_no_permission(host: Host, code: int) -> None:
    error = cannot_open(host.paths, BDF, host.paths.group_node("7"), OSError(code, ""))
    assert "may not open" in error.message
    assert "rcdrv setup udev" in error.hint


def test_in_use(host: Host) -> None:
    host.add(device="vfio3")
    host.add("0000:01:00.1", device="vfio4")
    node = host.paths.group_node("7")
    host.process(12, "bystander", host.paths.dev / "null", host.paths.group_node("77"))
    host.process(345, "qemu-system-x86", host.paths.dev / "null", node)
    host.process(6, "rcdrv", node, node)
    # By the nodes of functions too, also of another one of the group.
    host.process(7, "first", host.paths.device_node("vfio3"))
    host.process(8, "second", host.paths.device_node("vfio4"))
    host.process(9, "iommufd", host.paths.iommufd_node, host.paths.device_node("vfio5"))
    host.process(os.getpid(), "this", host.paths.device_node("vfio3"))
    (host.paths.proc / "self").mkdir()
    assert holders(host.paths, node) == ["qemu-system-x86 (pid 345)", "rcdrv (pid 6)"]
    for one in (node, host.paths.device_node("vfio3")):
        error = cannot_open(host.paths, BDF, one, OSError(errno.EBUSY, ""))
        assert error.message == (
            f"{one} is in use by first (pid 7), qemu-system-x86 (pid 345), rcdrv (pid 6), "
            "second (pid 8)"
        )


def test_in_use_by_what_this_user_cannot_see(host: Host) -> None:
    node = host.paths.group_node("7")
    assert "fuser -v" in cannot_open(host.paths, BDF, node, OSError(errno.EBUSY, "")).message


def test_not_viable(host: Host) -> None:
    host.add()
    host.add("0000:01:00.1", driver="nvme")
    host.add("0000:01:00.2", driver=None)
    assert group_members(host.paths, "7")[1] == ("0000:01:00.1", "nvme")
    error = not_viable(host.paths, BDF, "7")
    assert error.message == (
        f"{BDF} shares IOMMU group 7 with 0000:01:00.1 (nvme), 0000:01:00.2 (no driver)"
    )
    assert "vfio-pci" in error.hint


def test_interrupts_not_isolated(host: Host) -> None:
    hint = no_isolation(host.paths, BDF, "iommufd").hint
    assert hint.endswith("iommufd/parameters/allow_unsafe_interrupts")
    assert "echo 1 >" in hint


# -- which backend ------------------------------------------------------------------------------


def nodes(host: Host, *names: str) -> None:
    for name in names:
        node = host.paths.dev / name
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()


def test_iommufd_is_chosen_where_it_can_be_used(host: Host) -> None:
    host.add(device="vfio3")
    nodes(host, "iommu", "vfio/devices/vfio3")
    assert default_backend(BDF, host.paths) == "iommufd"
    # The node is not iommufd's, which shows that it was asked.
    assert "iommufd cannot allocate an address space" in refusal(host).message


@pytest.mark.parametrize("name", ["iommu", "vfio/devices/vfio3"])
def test_group_where_a_node_is_missing(host: Host, name: str) -> None:
    host.add(device="vfio3")
    nodes(host, name)
    assert default_backend(BDF, host.paths) == "group"
    assert str(host.paths.container_node) in refusal(host).message


@pytest.mark.parametrize("name", ["iommu", "vfio/devices/vfio3"])
def test_group_where_a_node_may_not_be_opened(
    host: Host, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add(device="vfio3")
    nodes(host, "iommu", "vfio/devices/vfio3")
    access = os.access
    closed = host.paths.dev / name

    def no_access(node: Path, mode: int, *, effective_ids: bool = False) -> bool:
        return node != closed and access(node, mode, effective_ids=effective_ids)

    monkeypatch.setattr(os, "access", no_access)
    assert default_backend(BDF, host.paths) == "group"


def test_group_where_vfio_has_no_nodes_for_functions(host: Host) -> None:
    # Since Linux 6.1 VFIO shows the function in sysfs also without VFIO_DEVICE_CDEV.
    host.add(device="vfio3", numbered=False)
    nodes(host, "iommu", "vfio/devices/vfio3")
    assert device_name(host.paths, BDF) is None
    assert default_backend(BDF, host.paths) == "group"
    error = refusal(host, backend="iommufd")
    assert "no device node" in error.message
    assert "RCDRV_BACKEND=group" in error.hint


def test_iommufd_by_name_says_what_is_missing(host: Host) -> None:
    host.add(device="vfio3")
    error = refusal(host, backend="iommufd")
    assert error.message == f"{host.paths.iommufd_node}: there is no such device"
    assert "modprobe iommufd" in error.hint


@pytest.mark.parametrize("backend", ["group", "iommufd"])
def test_each_backend_checks_the_function_first(host: Host, backend: str) -> None:
    assert "no such PCI device" in refusal(host, backend=backend).message
    host.add(driver="nvme")
    assert "bound to nvme" in refusal(host, backend=backend).message


def test_an_unknown_backend(host: Host) -> None:
    with pytest.raises(UsageError, match="unknown") as caught:
        open_device(BDF, "vfio", paths=host.paths)
    assert "group, iommufd, noiommu" in caught.value.hint


@pytest.mark.parametrize("driver", ["vfio-pci", "pci-pf-stub"])
def test_a_virtual_function_whose_physical_one_is_on_vfio(tmp_path: Path, driver: str) -> None:
    """Only then does the kernel want a token, and answer EACCES."""
    host = Host(tmp_path)
    host.add()
    host.add(VF)
    host.add("0000:01:00.1", driver=driver)
    physical = host.paths.function("0000:01:00.1")
    (host.paths.function(VF) / "physfn").symlink_to(physical)
    denied = OSError(errno.EACCES, "")
    wants_token = "requires 0000:01:00.1's token" in not_given(host.paths, VF, denied).message
    assert wants_token == (driver == "vfio-pci")
    wrong = not_given(host.paths, VF, denied, TOKEN)
    assert "which differs from the given one" in wrong.message
    assert "`vf_token`" in wrong.hint
    other = OSError(errno.EIO, "")
    assert "token" not in not_given(host.paths, VF, other, TOKEN).message
    # What has SR-IOV itself, and virtual functions in use.
    used = not_given(host.paths, BDF, denied)
    assert "virtual functions are in use" in used.message
    assert "none was given" in used.message
    unwanted = not_given(host.paths, BDF, OSError(errno.EINVAL, ""), TOKEN)
    assert "accepts no VF token" in unwanted.message
