"""Every row of the doctor's table, OK, not OK with its cure, and not applicable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from rcdrv.errors import DeviceLost
from rcdrv.host import doctor
from rcdrv.host.doctor import ENOUGH_LOCKED, ROWS, examine
from rcdrv.host.function import HostFunction
from rcdrv.host.subject import Diagnosis, State, Subject, User
from tests.unit.host.tree import ENDPOINT, MEM, PORT, UNSET, Tree

SETPCI = f"setpci -s {PORT} COMMAND=6:6"
RULE = 'KERNEL=="7", GROUP="rcdrv", MODE="0660"'
CDEV_RULE = f'"vfio-dev", KERNELS=="{ENDPOINT}", GROUP="rcdrv", MODE="0660"; SUBSYSTEM=="misc"'


RK3588_BARS = tuple((0xFE000000 + (index << 20), 1 << 20, MEM) for index in range(6))


@dataclass
class Patient:
    """A host in good health, before a case does something to it."""

    tree: Tree
    machine: str = "x86_64"
    locked_memory: int | None = ENOUGH_LOCKED
    closed: tuple[str, ...] = ()
    """Device nodes that the user may not open, by name."""
    caps: str = "UNALIGNED_ACCESS"
    function: dict[str, object] = field(
        default_factory=lambda: {"driver": "vfio-pci", "bars": RK3588_BARS}
    )
    present: bool = True
    config: list[tuple[int, bytes]] = field(default_factory=list)
    """What stands in its config space instead."""

    def __post_init__(self) -> None:
        self.tree.put("sys/class/iommu/dmar0/x", "")
        self.tree.put("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
        self.tree.put("proc/interrupts", " 24:  0  IR-PCI-MSIX-0000:00:10.0  0-edge  x\n")
        self.tree.put("proc/cmdline", "quiet\n")

    def subject(self) -> Subject:
        function = None
        if self.present:
            function = self.tree.add(**self.function)  # type: ignore[arg-type]
            config = bytearray((function.path / "config").read_bytes())
            for at, data in self.config:
                config[at : at + len(data)] = data
            (function.path / "config").write_bytes(config)

        def read_caps(_address: str) -> str:
            if not self.caps:
                raise DeviceLost("gone", hint="rescan")
            return self.caps

        user = User("alice", lambda node: node.name not in self.closed, self.locked_memory)
        return Subject(self.tree.paths, self.machine, user, function, read_caps)

    def row(self, name: str) -> Diagnosis:
        return ROWS[name](self.subject())


@pytest.fixture
def patient(tree: Tree) -> Patient:
    return Patient(tree)


def test_all_is_well(patient: Patient) -> None:
    rows = list(examine(patient.subject()))
    assert {found.state for _, found in rows} == {State.OK}, rows
    assert [name for name, _ in rows] == list(ROWS)
    assert not any(found.cure for _, found in rows)


def unload(patient: Patient) -> None:
    patient.function = {}


def no_iommu(patient: Patient) -> None:
    patient.function = {"group": None, "driver": "vfio-pci"}


def intel(patient: Patient) -> None:
    no_iommu(patient)
    patient.tree.put("sys/firmware/acpi/tables/DMAR", "")


def intel_off(patient: Patient) -> None:
    intel(patient)
    patient.tree.put("proc/cmdline", "quiet intel_iommu=off\n")


def vt_d_off(patient: Patient) -> None:
    no_iommu(patient)
    patient.tree.put("proc/cpuinfo", "vendor_id\t: GenuineIntel\n")


def amd_off_in_firmware(patient: Patient) -> None:
    no_iommu(patient)
    patient.tree.put("proc/cpuinfo", "vendor_id\t: AuthenticAMD\n")


def amd_failed(patient: Patient) -> None:
    no_iommu(patient)
    patient.tree.put("sys/firmware/acpi/tables/IVRS", "")


def arm_without(patient: Patient) -> None:
    no_iommu(patient)
    patient.machine = "aarch64"


def arm_device_tree(patient: Patient) -> None:
    arm_without(patient)
    patient.tree.put("sys/firmware/devicetree/base/soc/pcie@1/iommu-map", "")


def arm_acpi(patient: Patient) -> None:
    arm_without(patient)
    patient.tree.put("sys/firmware/acpi/tables/IORT", "")


def locked_down(patient: Patient) -> None:
    unload(patient)
    patient.tree.put("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")


def no_remapping(patient: Patient) -> None:
    patient.tree.put("proc/interrupts", " 24:  0  PCI-MSIX-0000:00:10.0  0-edge  x\n")


def remapping_off(patient: Patient) -> None:
    no_remapping(patient)
    patient.tree.put("proc/cmdline", "intremap=off\n")


def little_memory(patient: Patient) -> None:
    patient.locked_memory = 64 << 10


def absent(patient: Patient) -> None:
    patient.present = False


def other_driver(patient: Patient) -> None:
    patient.function = {"driver": "pci_endpoint_test"}


def shared_group(patient: Patient) -> None:
    patient.tree.add("0000:01:00.1", driver="nvme")


def no_rights(patient: Patient) -> None:
    patient.closed = ("7", "vfio0", "iommu")


def no_rights_unknown_id(patient: Patient) -> None:
    no_rights(patient)
    patient.function["ids"] = (0x1234, 0x5678)


def iommufd(patient: Patient) -> None:
    """A kernel that also has a node for each function."""
    patient.tree.put("dev/iommu", "")
    patient.tree.put("dev/vfio/devices/vfio0", "")
    patient.function["vfio-dev/vfio0/dev"] = "511:0"


def no_rights_to_iommufd(patient: Patient) -> None:
    iommufd(patient)
    no_rights_unknown_id(patient)


def half_of_iommufd(patient: Patient) -> None:
    iommufd(patient)
    patient.closed = ("7", "iommu")


def held(patient: Patient) -> None:
    patient.tree.process(345, "qemu", patient.tree.paths.group_node("7"))


def cold(patient: Patient) -> None:
    patient.function["power_state"] = "D3cold"


def asleep_without_driver(patient: Patient) -> None:
    patient.function = {"power_state": "D3hot"}


def all_ones(patient: Patient) -> None:
    patient.function["command"] = 0xFFFF


def link_down(patient: Patient) -> None:
    patient.function.update(current_link_speed="Unknown", current_link_width="0")


def slow_link(patient: Patient) -> None:
    patient.function["current_link_speed"] = "2.5 GT/s PCIe"


def narrow_link(patient: Patient) -> None:
    patient.function["current_link_width"] = "1"


def no_bars(patient: Patient) -> None:
    patient.function["bars"] = ()


def unassigned(patient: Patient) -> None:
    patient.function["bars"] = ((0xFE000000, 4096, MEM), (0, 1 << 20, MEM | UNSET))


def missing_bar(patient: Patient) -> None:
    patient.function["bars"] = (*RK3588_BARS[:4], (0, 0, 0), RK3588_BARS[5])


def lost_bars(patient: Patient) -> None:
    """abk3rU2EDKjkefUD@ryzen: a port reset disables BARs."""
    patient.config.append((0x10, bytes(8)))


def ats(patient: Patient) -> None:
    """20250221202646.395252-4: RK3588 announces ATS."""
    patient.config.append((0x100, (0x0F | 1 << 16).to_bytes(4, "little")))


def port_off(patient: Patient) -> None:
    (patient.tree.paths.function(PORT) / "config").write_bytes(bytes(64))


def port_half_off(patient: Patient) -> None:
    (patient.tree.paths.function(PORT) / "config").write_bytes(b"\0\0\0\0\x02\0" + bytes(58))


def bus_reset(patient: Patient) -> None:
    patient.function["reset_method"] = "bus"


def lost(patient: Patient) -> None:
    patient.caps = ""


@pytest.mark.parametrize(
    ("row", "illness", "detail", "cure"),
    [
        ("VFIO module", unload, "not loaded", "modprobe vfio-pci"),
        ("lockdown", locked_down, "integrity", "signed modules"),
        ("IOMMU", intel, f"none in front of {ENDPOINT}", "add intel_iommu=on to the kernel's"),
        ("IOMMU", intel_off, "none in front", "take intel_iommu=off off the kernel's"),
        ("IOMMU", vt_d_off, "none in front", "turn VT-d on in the firmware's setup; then add"),
        ("IOMMU", amd_off_in_firmware, "none in front", "(AMD-Vi) on in the firmware's setup"),
        ("IOMMU", amd_failed, "none in front", "dmesg | grep AMD-Vi"),
        ("IOMMU", arm_without, "none in front", "iommu-map; if not, there is only noiommu"),
        ("IOMMU", arm_device_tree, "none in front", "modprobe arm_smmu_v3"),
        ("IOMMU", arm_acpi, "none in front", "modprobe arm_smmu_v3"),
        ("interrupt remapping", no_remapping, "refuses", "turn it on in the firmware's setup"),
        ("interrupt remapping", remapping_off, "refuses", "take intremap=off off the kernel's"),
        ("locked memory", little_memory, "alice may lock 64 KiB", "limits.d/rcdrv.conf"),
        ("endpoint", absent, "no function", "this host has no PCI port"),
        ("driver", unload, "not bound", f"rcdrv bind {ENDPOINT}"),
        ("driver", other_driver, "bound to pci_endpoint_test", f"rcdrv bind {ENDPOINT}"),
        ("IOMMU group", shared_group, "also has 0000:01:00.1 (nvme)", "--group"),
        ("device node", no_rights, "alice may not open", "rcdrv setup udev"),
        ("device node", no_rights_unknown_id, "alice may", RULE),
        ("device node", no_rights_to_iommufd, "may not open", CDEV_RULE),
        ("device node", half_of_iommufd, "/dev/iommu", "rcdrv setup udev"),
        ("in use", held, "by qemu (pid 345)", "end it"),
        ("power state", cold, "D3cold", "power/control"),
        ("power state", asleep_without_driver, "D3hot", "power/control"),
        ("power state", all_ones, "all ones", f"rcdrv rescan {ENDPOINT}"),
        ("link", link_down, "down", f"rcdrv rescan {ENDPOINT}"),
        ("link", slow_link, "2.5 GT/s x4, although both ends can do 8 GT/s x4", "max-link-speed"),
        ("link", narrow_link, "8 GT/s x1, although", "num-lanes"),
        ("BARs", no_bars, "has none", "before this host scans it"),
        ("BARs", unassigned, "BAR1 (0x100000 bytes)", "pci=realloc"),
        ("BARs", missing_bar, "Rockchip RK3588 has a BAR4", '"Failed to set BAR4"'),
        ("BARs", lost_bars, "BAR0, BAR1 lost by a reset", f"rcdrv rescan {ENDPOINT}"),
        ("decoding", port_off, "memory decoding and bus mastering off", SETPCI),
        ("decoding", port_half_off, "bus mastering off in the port", SETPCI),
        ("reset on open", bus_reset, "bounces", f"rcdrv bind {ENDPOINT} --no-reset"),
        ("ATS", ats, "RK3588 announces ATS, which does not work", "pci=noats"),
        ("CAPS", lost, "gone", "rescan"),
    ],
)  # fmt: skip
def test_not_ok(
    patient: Patient, row: str, illness: Callable[[Patient], None], detail: str, cure: str
) -> None:
    illness(patient)
    found = patient.row(row)
    assert found.state is State.NOT_OK
    assert detail in found.detail
    assert cure in found.cure


def test_an_incomplete_python(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = ("ctypes", "html")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in lacking else object())
    found = patient.row("Python")
    assert found.state is State.NOT_OK
    assert "lacks ctypes, html" in found.detail
    assert "Yocto: python3-modules" in found.cure


def test_bound_without_a_node(patient: Patient) -> None:
    subject = patient.subject()
    patient.tree.paths.group_node("7").unlink()
    found = ROWS["device node"](subject)
    assert found.state is State.NOT_OK
    assert "container" in found.cure


def noiommu(patient: Patient) -> None:
    patient.tree.put("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n")


def unsafe_interrupts(patient: Patient) -> None:
    no_remapping(patient)
    patient.tree.put("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n")


def locked_down_but_loaded(patient: Patient) -> None:
    patient.tree.put("sys/kernel/security/lockdown", "none integrity [confidentiality]\n")


def unlimited(patient: Patient) -> None:
    patient.locked_memory = None


def asleep(patient: Patient) -> None:
    patient.function["power_state"] = "D3hot"


def only_by_group(patient: Patient) -> None:
    iommufd(patient)
    patient.closed = ("iommu",)


def only_by_iommufd(patient: Patient) -> None:
    iommufd(patient)
    patient.closed = ("7",)


def slow_port(patient: Patient) -> None:
    slow_link(patient)
    (patient.tree.paths.function(PORT) / "max_link_speed").write_text("2.5 GT/s PCIe\n")


def no_reset(patient: Patient) -> None:
    patient.function["reset_method"] = ""


@pytest.mark.parametrize(
    ("row", "condition", "detail"),
    [
        ("IOMMU", noiommu, "by this host's own choice (noiommu)"),
        ("IOMMU", absent, "dmar0"),
        ("interrupt remapping", unsafe_interrupts, "accepted"),
        ("lockdown", locked_down_but_loaded, "VFIO works"),
        ("locked memory", unlimited, "unlimited"),
        ("device node", iommufd, "/dev/iommu, or "),
        ("device node", only_by_group, "/dev/vfio/7; not "),
        ("device node", only_by_iommufd, "/dev/iommu; not "),
        ("power state", asleep, "wakes it up"),
        ("link", slow_port, "2.5 GT/s x4"),
        ("reset on open", no_reset, "none"),
    ],
)
def test_ok(patient: Patient, row: str, condition: Callable[[Patient], None], detail: str) -> None:
    condition(patient)
    found = patient.row(row)
    assert found.state is State.OK
    assert detail in found.detail


def old_kernel(patient: Patient) -> None:
    (patient.tree.paths.sys / "kernel/security/lockdown").unlink()


@pytest.mark.parametrize(
    ("row", "condition"),
    [
        ("lockdown", old_kernel),
        ("interrupt remapping", arm_without),
        ("interrupt remapping", no_iommu),
        ("IOMMU group", no_iommu),
        ("device node", unload),
        ("in use", unload),
        ("CAPS", unload),
        ("CAPS", held),
        *((name, absent) for name in list(ROWS)[7:]),
    ],
)
def test_not_applicable(patient: Patient, row: str, condition: Callable[[Patient], None]) -> None:
    condition(patient)
    assert patient.row(row).state is State.NOT_APPLICABLE


def test_a_function_that_is_not_pci_express(patient: Patient) -> None:
    subject = patient.subject()
    function = HostFunction(ENDPOINT, patient.tree.paths)
    (function.path / "current_link_speed").unlink()
    (function.path / "power_state").unlink()
    assert ROWS["link"](subject).state is State.NOT_APPLICABLE
    assert ROWS["power state"](subject).state is State.NOT_APPLICABLE


def test_no_iommu_and_no_endpoint(patient: Patient) -> None:
    absent(patient)
    for unit in (patient.tree.paths.sys / "class/iommu").iterdir():
        (unit / "x").unlink()
        unit.rmdir()
    found = patient.row("IOMMU")
    assert found.state is State.NOT_OK
    assert "VT-d" in found.cure
