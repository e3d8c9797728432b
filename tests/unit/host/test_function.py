"""What sysfs says of functions, and which of them may be endpoints."""

from __future__ import annotations

import pytest

from rcdrv.errors import HostError
from rcdrv.host.function import HostFunction, candidates, functions
from rcdrv.pci import Bar, Command, Link
from tests.unit.host.tree import ENDPOINT, IO, MEM, MEM_64, PORT, UNSET, Tree


def test_an_endpoint(tree: Tree) -> None:
    function = tree.add(driver="vfio-pci", group="26")
    assert (function.vendor, function.device, function.class_code) == (0x1D87, 0x3588, 0xFF0000)
    assert (function.driver, function.group, function.ports) == ("vfio-pci", "26", [PORT])
    assert function.part.name == "Rockchip RK3588"
    assert function.link == Link(8.0, 4, 8.0, 4)
    assert function.reset_methods == ("flr", "bus")
    assert function.command == Command.MEMORY | Command.BUS_MASTER
    assert str(function) == f"{ENDPOINT}  1d87:3588  Rockchip RK3588, driver vfio-pci"


def test_bars(tree: Tree) -> None:
    function = tree.add(
        bars=(
            (0xFE000000, 128, MEM),
            (0, 0x20000, MEM | UNSET),
            (0x3800000000, 1 << 20, MEM | MEM_64 | 0x2000),
            (0, 0, 0),
            (0xE000, 32, IO),
        )
    )
    assert function.bars == (
        Bar(0, 128, True, False, False, 0xFE000000),
        Bar(1, 0x20000, True, False, False, 0),
        Bar(2, 1 << 20, True, True, True, 0x3800000000),
        Bar(4, 32, False, False, False, 0xE000),
    )


def test_a_link_that_is_down(tree: Tree) -> None:
    function = tree.add(current_link_speed="Unknown", current_link_width="0")
    assert function.link is not None
    assert (str(function.link), function.link.most) == ("down", "8 GT/s x4")


def test_what_went_away(tree: Tree) -> None:
    function = tree.add()
    tree.paths.function(ENDPOINT).unlink()
    assert (function.bars, function.link, function.command, function.driver) == (
        (),
        None,
        None,
        None,
    )
    with pytest.raises(HostError, match="no such PCI device") as caught:
        HostFunction(ENDPOINT, tree.paths)
    assert "no port leads to bus 01" in caught.value.hint  # so a rescan would find nothing


def test_who_shares_the_group(tree: Tree) -> None:
    function = tree.add()
    tree.add("0000:01:00.1", driver="nvme")
    tree.add("0000:01:00.2", driver=None)
    tree.add("0000:01:00.3", driver="vfio-pci")
    assert [address[-1] for address, _ in function.others_in_group] == ["0", "1", "2", "3"]
    assert function.others_in_group[0] == (PORT, "pcieport")
    assert function.blocking == [("0000:01:00.1", "nvme")]


def test_holders_of_the_group_and_of_the_device_node(tree: Tree) -> None:
    function = tree.add(driver="vfio-pci")
    (function.path / "vfio-dev" / "vfio3").mkdir(parents=True)
    cdev = tree.paths.dev / "vfio" / "devices" / "vfio3"
    cdev.touch()
    tree.process(12, "qemu", tree.paths.group_node("7"))
    tree.process(13, "rcdrv", cdev)
    assert function.holders == ["qemu (pid 12)", "rcdrv (pid 13)"]


def test_endpoints_are_found_and_bridges_are_not(tree: Tree) -> None:
    tree.add()
    tree.add("0000:02:00.0", ids=(0x1234, 0x5678), class_code=0x050000)
    tree.add("0000:03:00.0", ids=(0x8086, 0x10D3), class_code=0x020000, driver="e1000e")
    tree.add("0000:04:00.0", ids=(0x8086, 0x10D3), class_code=0x020000, driver="vfio-pci")
    tree.add("0000:00:02.0", ids=(0x104C, 0xB00D), class_code=0x060400, parent=None)
    gone = tree.add("0000:05:00.0")
    (gone.path / "vendor").unlink()
    assert [one.address for one in candidates(tree.paths)] == [
        *(ENDPOINT, "0000:02:00.0", "0000:04:00.0")
    ]
    assert [one.address[5:7] for one in functions(tree.paths)] == ["01", "02", "03", "04"]
