"""Without an IOMMU: what has to be allowed first, on a made-up host, and memory by its address."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdrv.errors import HostError, UsageError
from rcdrv.vfio import noiommu
from rcdrv.vfio.noiommu import PhysicalMemory, look_up
from tests.unavailable import unavailable
from tests.unit.test_sysfs import BDF, Host, refusal

PAGE = mmap.PAGESIZE


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def allow(host: Host, value: str) -> Path:
    parameter = host.paths.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode"
    parameter.parent.mkdir(parents=True)
    parameter.write_text(value + "\n")
    return parameter


def made_up_group(host: Host) -> None:
    (host.paths.group("7") / "name").write_text("vfio-noiommu\n")


def test_a_function_behind_an_iommu_is_not_for_it(host: Host) -> None:
    host.add()
    error = refusal(host, backend="noiommu")
    assert "is behind an IOMMU" in error.message
    assert "RCDRV_BACKEND" in error.hint


def test_the_module_is_not_loaded(host: Host) -> None:
    host.add(group="", driver=None)
    steps = refusal(host, backend="noiommu").hint.splitlines()
    assert steps[1] == "  modprobe vfio enable_unsafe_noiommu_mode=1"
    assert steps[-1] == f"  echo {BDF} > {host.paths.sys}/bus/pci/drivers_probe"


def test_the_kernel_cannot(host: Host) -> None:
    host.add(group="", driver=None)
    (host.paths.sys / "module/vfio").mkdir(parents=True)
    assert "CONFIG_VFIO_NOIOMMU" in refusal(host, backend="noiommu").hint


def test_it_is_not_allowed(host: Host) -> None:
    host.add(group="", driver=None)
    parameter = allow(host, "N")
    error = refusal(host, backend="noiommu")
    assert error.message == f"{BDF}: VFIO does not offer it without an IOMMU"
    assert error.hint.splitlines()[1] == f"  echo 1 > {parameter}"


def test_it_is_allowed_and_not_bound(host: Host) -> None:
    host.add(group="", driver=None)
    parameter = allow(host, "Y")
    error = refusal(host, backend="noiommu")
    assert error.message == f"{BDF} is not bound to vfio-pci"
    assert str(parameter) not in error.hint


def test_a_user_without_rights(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add(device="noiommu-vfio0")
    made_up_group(host)
    read = Path.read_text

    def without_capabilities(path: Path) -> str:
        return "CapEff:\t0000000000000000\n" if path.name == "status" else read(path)

    monkeypatch.setattr(Path, "read_text", without_capabilities)
    assert "only root" in refusal(host, backend="noiommu").message


@pytest.mark.parametrize("iommufd", [True, False])
def test_which_node_is_opened(host: Host, iommufd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noiommu, "has_capability", lambda _bit: True)  # whoever runs this
    host.add(device="noiommu-vfio0")
    made_up_group(host)
    if iommufd:
        host.paths.iommufd_node.touch()
    host.paths.container_node.touch()
    expected = (
        "iommufd cannot allocate an address space" if iommufd else "container does not answer"
    )
    assert expected in refusal(host, backend="noiommu").message


# -- memory -------------------------------------------------------------------------------------


class Somewhere:
    """Places blocks at made-up addresses, one behind the other."""

    def __init__(self, first: int) -> None:
        self.next = first
        self.pieces = 1 << 40
        self.closed = 0

    def locate(self, memory: mmap.mmap) -> tuple[int, int]:
        address = self.next
        self.next += len(memory)
        return address, min(len(memory), self.pieces)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def place() -> Somewhere:
    return Somewhere(0x10000)


@pytest.fixture
def memory(place: Somewhere) -> Iterator[PhysicalMemory]:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    pool = PhysicalMemory(place.locate, place.close, huge_only=False)
    yield pool
    pool.close()
    pool.close()
    assert place.closed == 1
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_memory_is_lent_and_reused_but_never_given_up(
    memory: PhysicalMemory, place: Somewhere
) -> None:
    address, first = memory.allocate(PAGE, PAGE, 1 << 48)
    other_address, other = memory.allocate(100, PAGE, 1 << 48)
    assert (address, other_address) == (0x10000, 0x10000 + PAGE)
    first[:] = b"\xff" * PAGE
    first.close()
    memory.unmap(address, PAGE)
    again_address, again = memory.allocate(PAGE, PAGE, 1 << 48)
    assert again_address == address
    assert not any(again[:])
    assert place.next == 0x10000 + 2 * PAGE
    again.close()
    other.close()


def test_what_does_not_fit_is_not_reused(memory: PhysicalMemory) -> None:
    address, mapping = memory.allocate(PAGE, PAGE, 1 << 48)
    mapping.close()
    memory.unmap(address, PAGE)
    with pytest.raises(HostError, match="not below 0x8000"):
        memory.allocate(PAGE, PAGE, 0x8000)


def test_unmap_knows_its_blocks(memory: PhysicalMemory) -> None:
    address, mapping = memory.allocate(PAGE, PAGE, 1 << 48)
    mapping.close()
    for wrong in ((address, 2 * PAGE), (address + PAGE, PAGE)):
        with pytest.raises(UsageError, match="no DMA buffer"):
            memory.unmap(*wrong)
    memory.unmap(address, PAGE)
    with pytest.raises(UsageError, match="no DMA buffer"):
        memory.unmap(address, PAGE)


def test_nothing_is_mapped_to_an_address(memory: PhysicalMemory) -> None:
    with pytest.raises(UsageError, match="use dma_allocate"):
        memory.map(0x10000, 0, PAGE)
    assert memory.ranges() == [(0, 2**64 - 1)]


def test_pieces_are_refused(
    memory: PhysicalMemory, place: Somewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if ordinary pages were huge ones, of which a test may not find any.
    monkeypatch.setattr(noiommu, "huge_page_size", lambda: PAGE)
    place.pieces = PAGE
    with pytest.raises(HostError, match="only 0x1000" if PAGE == 4096 else "contiguous") as caught:
        memory.allocate(2 * PAGE, PAGE, 1 << 48)
    assert "hugepagesz" in caught.value.hint


def test_the_page_map_of_this_process() -> None:
    with mmap.mmap(-1, 2 * PAGE) as mapping:
        mapping[0] = mapping[PAGE] = 1
        try:
            address, contiguous = look_up(mapping)
        except HostError:
            unavailable("the page map needs root")
        assert address % PAGE == 0
        assert address
        assert contiguous in (PAGE, 2 * PAGE)
