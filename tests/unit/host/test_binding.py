"""Binding and unbinding, on a made-up host whose kernel obeys, or refuses midway."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rcdrv.errors import HostError, UsageError
from rcdrv.host import kernel
from rcdrv.host.binding import Binder, note_path, read_note
from rcdrv.host.function import HostFunction
from tests.unit.host.tree import ENDPOINT, PORT, Tree


class Bench:
    """A binder on a tree, and what it said."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.said: list[str] = []
        self.binder = Binder(tree.paths, self.said.append)

    def override(self, address: str = ENDPOINT) -> str | None:
        return HostFunction(address, self.tree.paths).text("driver_override")


@pytest.fixture
def bench(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name, stand_in in (
        ("write", tree.write),
        ("write_within", tree.write),
        ("modprobe", tree.driver),
    ):
        monkeypatch.setattr(kernel, name, stand_in)
    return Bench(tree)


def test_from_no_driver_and_back(bench: Bench) -> None:
    function = bench.tree.add()
    assert bench.binder.bind(function) == [function]
    assert (function.driver, bench.override()) == ("vfio-pci", "vfio-pci")
    assert bench.said == ["loaded vfio-pci", f"{ENDPOINT}: bound to vfio-pci (IOMMU group 7)"]
    assert not any("new_id" in path for path, _ in bench.tree.writes)
    bench.binder.unbind(function)
    assert (function.driver, bench.override()) == (None, "(null)")
    assert not note_path(bench.tree.paths, ENDPOINT).exists()


def test_from_a_driver_and_back_to_it(bench: Bench) -> None:
    function = bench.tree.add(driver="pci_endpoint_test")
    bench.binder.bind(function)
    assert function.driver == "vfio-pci"
    # Another process, which knows only the note, gives it back.
    Bench(bench.tree).binder.unbind(function)
    assert (function.driver, bench.override()) == ("pci_endpoint_test", "(null)")


def test_an_override_comes_back_too(bench: Bench) -> None:
    bench.tree.driver("special")
    function = bench.tree.add(driver="special", driver_override="special")
    bench.binder.bind(function)
    bench.binder.unbind(function)
    assert (function.driver, bench.override()) == ("special", "special")


def test_what_was_bound_by_somebody_else_goes_to_whom_the_kernel_chooses(bench: Bench) -> None:
    bench.tree.driver("pci_endpoint_test")
    bench.tree.matching[ENDPOINT] = "pci_endpoint_test"
    function = bench.tree.add(driver="vfio-pci", driver_override="vfio-pci")
    bench.binder.unbind(function)
    assert function.driver == "pci_endpoint_test"


def test_a_driver_that_is_gone(bench: Bench) -> None:
    function = bench.tree.add(driver="pci_endpoint_test")
    bench.binder.bind(function)
    (bench.tree.paths.sys / "bus/pci/drivers/pci_endpoint_test").rmdir()
    bench.binder.unbind(function)
    assert function.driver is None
    assert f"{ENDPOINT}: its driver pci_endpoint_test is no longer loaded" in bench.said


def test_a_group_that_is_not_viable(bench: Bench) -> None:
    function = bench.tree.add(driver="pci_endpoint_test")
    bench.tree.add("0000:01:00.1", driver="snd_hda_intel")
    with pytest.raises(HostError, match=r"group 7 with 0000:01:00\.1 \(snd_hda_intel\)$") as caught:
        bench.binder.bind(function)
    assert "`whole_group`" in caught.value.hint
    assert (bench.tree.writes, function.driver) == ([], "pci_endpoint_test")


def test_a_whole_group(bench: Bench) -> None:
    function = bench.tree.add(driver="pci_endpoint_test")
    other = bench.tree.add("0000:01:00.1", driver="snd_hda_intel")
    taken = bench.binder.bind(function, whole_group=True)
    assert [one.address for one in taken] == [ENDPOINT, "0000:01:00.1"]
    assert (function.driver, other.driver) == ("vfio-pci", "vfio-pci")
    # The port above is a member too, and stays with its driver.
    assert HostFunction(PORT, bench.tree.paths).driver == "pcieport"
    bench.binder.unbind(function, whole_group=True)
    assert (function.driver, other.driver) == ("pci_endpoint_test", "snd_hda_intel")


@pytest.mark.parametrize(("code", "kind"), [(0x010802, "storage"), (0x020000, "network")])
def test_what_the_host_may_need(bench: Bench, code: int, kind: str) -> None:
    function = bench.tree.add(driver="precious", class_code=code)
    with pytest.raises(HostError, match=f"is a {kind} device in use by precious"):
        bench.binder.bind(function)
    assert bench.tree.writes == []
    bench.binder.bind(function, force=True)
    assert function.driver == "vfio-pci"


def test_bridges_and_functions_without_iommu(bench: Bench) -> None:
    with pytest.raises(UsageError, match="is a bridge"):
        bench.binder.bind(HostFunction(PORT, bench.tree.paths))
    function = bench.tree.add(group=None)
    with pytest.raises(HostError, match="not behind an IOMMU"):
        bench.binder.bind(function)
    bench.tree.put("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    bench.binder.bind(function)
    assert function.driver == "vfio-pci"


def test_no_module(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "modprobe", lambda _module: None)
    with pytest.raises(HostError, match="has no vfio-pci driver") as caught:
        bench.binder.bind(bench.tree.add())
    assert "CONFIG_VFIO_PCI" in caught.value.hint


@pytest.mark.parametrize("failing", ["01:00.1/driver_override", "01:00.1/driver/unbind"])
def test_what_fails_midway_is_undone(bench: Bench, failing: str) -> None:
    function = bench.tree.add(driver="pci_endpoint_test")
    other = bench.tree.add("0000:01:00.1", driver="snd_hda_intel")
    bench.tree.refused[failing] = OSError(errno.EIO, "")
    with pytest.raises(HostError, match="Input/output error"):
        bench.binder.bind(function, whole_group=True, no_reset=True)
    assert (function.driver, other.driver) == ("pci_endpoint_test", "snd_hda_intel")
    assert bench.override() == "(null)"
    assert function.reset_methods == other.reset_methods == ("flr", "bus")
    assert not note_path(bench.tree.paths, ENDPOINT).exists()


def test_a_probe_that_fails_is_noticed_and_undone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = bench.tree.add(driver="pci_endpoint_test")
    bench.tree.driver("vfio-pci")
    write = bench.tree.write

    def no_probe(path: Path, text: str) -> None:
        if path.name != "drivers_probe":
            write(path, text)

    monkeypatch.setattr(kernel, "write", no_probe)
    with pytest.raises(HostError, match=f"vfio-pci does not take {ENDPOINT}"):
        bench.binder.bind(function)
    assert function.driver == "pci_endpoint_test"


def test_without_rights(bench: Bench) -> None:
    function = bench.tree.add(driver="pci_endpoint_test")
    bench.tree.refused["driver_override"] = OSError(errno.EACCES, "")
    with pytest.raises(HostError, match="permission denied") as caught:
        bench.binder.bind(function)
    assert "root" in caught.value.hint


def test_resets_off_and_on(bench: Bench) -> None:
    function = bench.tree.add(reset_method="bus")

    def methods() -> list[str]:
        return list(function.reset_methods)

    bench.binder.bind(function, no_reset=True)
    assert methods() == []
    assert f"{ENDPOINT}: resets are off (were: bus)" in bench.said
    bench.binder.bind(function, no_reset=True)
    assert methods() == []
    bench.binder.bind(function)
    assert methods() == ["bus"]
    bench.binder.bind(function, no_reset=True)
    assert methods() == []
    bench.binder.unbind(function)
    assert methods() == ["bus"]


def test_no_reset_of_a_function_without_any(bench: Bench) -> None:
    function = bench.tree.add(reset_method="")
    bench.binder.bind(function, no_reset=True)
    assert f"{ENDPOINT}: the kernel has no reset for it anyway" in bench.said


def test_unbinding_what_is_not_bound(bench: Bench) -> None:
    with pytest.raises(HostError, match="is bound to nvme, not to vfio-pci"):
        bench.binder.unbind(bench.tree.add(driver="nvme"))


def test_unbinding_what_is_in_use(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    function = bench.tree.add(driver="vfio-pci")
    bench.tree.process(345, "rcdrv", bench.tree.paths.group_node("7"))
    with pytest.raises(HostError, match=r"in use by rcdrv \(pid 345\)") as caught:
        bench.binder.unbind(function)
    assert "`force`" in caught.value.hint
    assert function.driver == "vfio-pci"

    def blocked(path: Path, text: str) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "")

    monkeypatch.setattr(kernel, "write_within", blocked)
    with pytest.raises(HostError, match=r"still in use by rcdrv \(pid 345\)"):
        bench.binder.unbind(function, force=True)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_note_is_for_all_to_read_and_for_us_to_write(bench: Bench, umask: int) -> None:
    function = bench.tree.add(driver="pci_endpoint_test")
    before = os.umask(umask)
    try:
        bench.binder.bind(function)
    finally:
        os.umask(before)
    path = note_path(bench.tree.paths, ENDPOINT)
    assert [one.stat().st_mode & 0o7777 for one in (path.parent, path)] == [0o755, 0o644]
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"driver": null}', "[" * 100_000,
        *(f'{{"driver": "{name}", "override": ""}}' for name in ("..", ".", "", "../../x", "a/b")),
        '{"driver": 1, "override": ""}', '{"driver": null, "override": 1}',
    ],
)  # fmt: skip
def test_a_note_that_makes_no_sense_is_none(tree: Tree, text: str) -> None:
    tree.put(f"run/rcdrv/{ENDPOINT}", text)
    assert read_note(tree.paths, ENDPOINT) is None


# -- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [kernel.write, kernel.write_within])
def test_writes(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    write(file, "0000:01:00.0")
    assert file.read_text() == "0000:01:00.0"
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing", "x")


def test_a_write_that_blocks_is_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # opening it for writing blocks until somebody reads
    with pytest.raises(TimeoutError):
        kernel.write_within(fifo, "now", 0.05)
    assert fifo.read_text() == "now"  # it goes on by itself
