"""Rescan and hot reset, on a made-up host."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from rcdrv.errors import HostError, Interrupted, UsageError
from rcdrv.host import kernel
from rcdrv.host.binding import Binder
from rcdrv.host.function import HostFunction
from rcdrv.host.replug import behind, bus_reset, link_is_up, port_above, rescan
from rcdrv.wait import Cancel
from tests.unit.host.tree import ENDPOINT, PORT, Tree


class Bench:
    """A port whose scan brings a function back."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.said: list[str] = []
        self.comes_back: Callable[[], object] = lambda: tree.add()
        self.scans = 0
        tree.driver("vfio-pci")
        tree.put("sys/bus/pci/devices/" + PORT + "/pci_bus/0000:01/rescan", "")
        tree.put("sys/bus/pci/devices/" + PORT + "/secondary_bus_number", "1\n")
        self.binder = Binder(tree.paths, self.said.append)
        self.port = HostFunction(PORT, tree.paths)

    def write(self, path: Path, text: str) -> None:
        if path.name == "remove":
            self.tree.remove(path.parent.name)
        elif path.name != "rescan":
            self.tree.write(path, text)
        else:
            assert text == "1"
            assert path.parent.parent.parent == self.port.path
            self.scans += 1
            self.comes_back()

    def run(self, wanted: str | None = ENDPOINT, *, force: bool = False) -> list[HostFunction]:
        return self.rescan(wanted, 0.01, Cancel(), force=force)

    def rescan(
        self, wanted: str | None, within: float, cancel: Cancel, *, force: bool = False
    ) -> list[HostFunction]:
        say = self.said.append
        return rescan(
            self.port, self.binder, say, wanted, within=within, cancel=cancel, force=force
        )


@pytest.fixture
def bench(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(tree)
    monkeypatch.setattr(kernel, "write", bench.write)
    monkeypatch.setattr(kernel, "write_within", bench.write)
    return bench


def test_removed_found_and_bound_again(bench: Bench) -> None:
    bench.binder.bind(bench.tree.add(), no_reset=True)
    (found,) = bench.run()
    assert (found.address, found.driver, found.reset_methods) == (ENDPOINT, "vfio-pci", ())
    assert f"{ENDPOINT}: removed" in bench.said
    assert f"{ENDPOINT}: found, 1d87:3588 Rockchip RK3588" in bench.said
    bench.binder.unbind(found)
    assert found.driver is None


def test_the_old_driver_is_still_known_afterwards(bench: Bench) -> None:
    bench.binder.bind(bench.tree.add(driver="pci_endpoint_test"))
    bench.comes_back = lambda: bench.tree.add(driver="pci_endpoint_test")
    (found,) = bench.run()
    assert found.driver == "vfio-pci"
    bench.binder.unbind(found)
    assert found.driver == "pci_endpoint_test"


def test_what_vanished_by_itself_is_bound_again(bench: Bench) -> None:
    bench.binder.bind(bench.tree.add())
    bench.tree.remove(ENDPOINT)
    (found,) = bench.run()
    assert found.driver == "vfio-pci"


def test_what_was_not_bound_stays_so(bench: Bench) -> None:
    bench.tree.add()
    (found,) = bench.run()
    assert found.driver is None


def test_any_function_behind_a_port(bench: Bench) -> None:
    bench.comes_back = lambda: bench.tree.add("0000:01:00.1")
    assert [one.address for one in bench.run(None)] == ["0000:01:00.1"]


def test_scans_until_it_is_there(bench: Bench) -> None:
    def late() -> None:
        if bench.scans == 2:
            bench.tree.add()

    bench.comes_back = late
    assert bench.rescan(ENDPOINT, 5, Cancel())
    assert bench.scans == 2


def test_nothing_answers(bench: Bench) -> None:
    bench.comes_back = lambda: None
    with pytest.raises(HostError, match=f"waited 0.01 s for {ENDPOINT}: the link of .* is up"):
        bench.run()


def test_the_link_stays_down(bench: Bench) -> None:
    (bench.port.path / "current_link_width").write_text("0\n")
    assert not link_is_up(bench.port)
    with pytest.raises(HostError, match="is down") as caught:
        bench.run()
    assert bench.scans == 0
    assert "`within`" in caught.value.hint


def test_stops_when_asked_to(bench: Bench) -> None:
    bench.comes_back = lambda: None
    cancel = Cancel()
    cancel.request()
    with pytest.raises(Interrupted):
        bench.rescan(ENDPOINT, 60, cancel)


def test_what_is_in_use_stays(bench: Bench) -> None:
    bench.tree.add(driver="vfio-pci")
    bench.tree.process(345, "rcdrv", bench.tree.paths.group_node("7"))
    bench.tree.add("0000:01:00.1", driver="nvme", group="8")
    with pytest.raises(HostError) as caught:
        bench.run()
    assert f"{ENDPOINT} (rcdrv (pid 345))" in caught.value.message
    assert "0000:01:00.1 (driver nvme)" in caught.value.message
    assert bench.scans == 0
    assert bench.run(force=True)


def test_a_removal_that_blocks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.tree.add(driver="vfio-pci")

    def blocked(path: Path, text: str) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "")

    monkeypatch.setattr(kernel, "write_within", blocked)
    with pytest.raises(HostError, match="still in use"):
        bench.rescan(ENDPOINT, 1, Cancel())


def test_ports(bench: Bench) -> None:
    paths = bench.tree.paths
    assert port_above("0000:01:00.0", paths).address == PORT  # by its bus number
    assert port_above(PORT, paths).address == PORT
    function = bench.tree.add()
    assert port_above(ENDPOINT, paths).address == PORT
    assert [one.address for one in behind(bench.port)] == [function.address]
    with pytest.raises(HostError, match="no port with bus 09"):
        port_above("0000:09:00.0", paths)
    bench.tree.add("0000:00:02.0", parent=None)
    with pytest.raises(UsageError, match="root complex"):
        port_above("0000:00:02.0", paths)


# -- hot reset ------------------------------------------------------------------------------------


def test_hot_reset_shows_first_and_refuses_what_is_in_use(bench: Bench) -> None:
    tree = bench.tree
    function = tree.add(driver="vfio-pci")
    tree.add("0000:01:00.1", driver="nvme", group="8")
    tree.put(f"sys/bus/pci/devices/{PORT}/reset_subordinate", "")
    shown: list[str] = []

    def show(members: list[HostFunction]) -> None:
        assert not tree.writes
        shown.extend(one.address for one in members)

    with pytest.raises(HostError, match=r"0000:01:00.1 \(driver nvme\)"):
        bus_reset(function, tree.paths, show=show)
    assert shown == [ENDPOINT, "0000:01:00.1"]
    bus_reset(function, tree.paths, show=show, force=True)
    assert tree.writes == [(f"bus/pci/devices/{PORT}/reset_subordinate", "1")]


def test_hot_reset_on_an_old_kernel(tree: Tree) -> None:
    with pytest.raises(HostError, match="cannot reset the bus") as caught:
        bus_reset(tree.add(), tree.paths, show=lambda _members: None)
    assert "Linux 6" in caught.value.hint


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOTTY, "its link did not come back"), (errno.EACCES, "permission denied")],
)
def test_hot_reset_that_the_kernel_refuses(bench: Bench, code: int, message: str) -> None:
    tree = bench.tree
    tree.put(f"sys/bus/pci/devices/{PORT}/reset_subordinate", "")
    tree.refused["reset_subordinate"] = OSError(code, "")
    with pytest.raises(HostError, match=message):
        bus_reset(tree.add(), tree.paths, show=lambda _members: None)
