"""Numbers and layouts against the kernel's header: as literals, and as the C compiler sees it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from rcdrv.function import CONFIG_REGION, IrqKind, RegionFlag, SetIrqs
from rcdrv.vfio import uapi

# Name in vfio.h, ours, the number of it in Linux 7.3.
NUMBERS = [
    ("VFIO_API_VERSION", uapi.API_VERSION, 0),
    ("VFIO_TYPE1v2_IOMMU", uapi.TYPE1V2_IOMMU, 3),
    ("VFIO_GET_API_VERSION", uapi.GET_API_VERSION, 0x3B64),
    ("VFIO_CHECK_EXTENSION", uapi.CHECK_EXTENSION, 0x3B65),
    ("VFIO_SET_IOMMU", uapi.SET_IOMMU, 0x3B66),
    ("VFIO_GROUP_GET_STATUS", uapi.GROUP_GET_STATUS, 0x3B67),
    ("VFIO_GROUP_SET_CONTAINER", uapi.GROUP_SET_CONTAINER, 0x3B68),
    ("VFIO_GROUP_GET_DEVICE_FD", uapi.GROUP_GET_DEVICE_FD, 0x3B6A),
    ("VFIO_DEVICE_GET_INFO", uapi.DEVICE_GET_INFO, 0x3B6B),
    ("VFIO_DEVICE_GET_REGION_INFO", uapi.DEVICE_GET_REGION_INFO, 0x3B6C),
    ("VFIO_DEVICE_GET_IRQ_INFO", uapi.DEVICE_GET_IRQ_INFO, 0x3B6D),
    ("VFIO_DEVICE_SET_IRQS", uapi.DEVICE_SET_IRQS, 0x3B6E),
    ("VFIO_DEVICE_RESET", uapi.DEVICE_RESET, 0x3B6F),
    ("VFIO_IOMMU_GET_INFO", uapi.IOMMU_GET_INFO, 0x3B70),
    ("VFIO_IOMMU_MAP_DMA", uapi.IOMMU_MAP_DMA, 0x3B71),
    ("VFIO_IOMMU_UNMAP_DMA", uapi.IOMMU_UNMAP_DMA, 0x3B72),
    ("VFIO_GROUP_FLAGS_VIABLE", uapi.GroupFlag.VIABLE, 1),
    ("VFIO_GROUP_FLAGS_CONTAINER_SET", uapi.GroupFlag.CONTAINER_SET, 2),
    ("VFIO_DEVICE_FLAGS_RESET", uapi.DeviceFlag.RESET, 1),
    ("VFIO_DEVICE_FLAGS_PCI", uapi.DeviceFlag.PCI, 2),
    ("VFIO_IOMMU_INFO_PGSIZES", uapi.IommuFlag.PGSIZES, 1),
    ("VFIO_IOMMU_INFO_CAPS", uapi.IommuFlag.CAPS, 2),
    ("VFIO_DMA_MAP_FLAG_READ", uapi.DmaFlag.READ, 1),
    ("VFIO_DMA_MAP_FLAG_WRITE", uapi.DmaFlag.WRITE, 2),
    ("VFIO_IRQ_INFO_EVENTFD", uapi.IrqFlag.EVENTFD, 1),
    ("VFIO_REGION_INFO_CAP_SPARSE_MMAP", uapi.RegionCap.SPARSE_MMAP, 1),
    ("VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE", uapi.IommuCap.IOVA_RANGE, 1),
    ("VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL", uapi.IommuCap.DMA_AVAIL, 3),
    ("VFIO_PCI_CONFIG_REGION_INDEX", CONFIG_REGION, 7),
    ("VFIO_PCI_INTX_IRQ_INDEX", IrqKind.INTX, 0),
    ("VFIO_PCI_MSI_IRQ_INDEX", IrqKind.MSI, 1),
    ("VFIO_PCI_MSIX_IRQ_INDEX", IrqKind.MSIX, 2),
    ("VFIO_PCI_ERR_IRQ_INDEX", IrqKind.ERR, 3),
    ("VFIO_PCI_REQ_IRQ_INDEX", IrqKind.REQ, 4),
    ("VFIO_REGION_INFO_FLAG_READ", RegionFlag.READ, 1),
    ("VFIO_REGION_INFO_FLAG_WRITE", RegionFlag.WRITE, 2),
    ("VFIO_REGION_INFO_FLAG_MMAP", RegionFlag.MMAP, 4),
    ("VFIO_REGION_INFO_FLAG_CAPS", RegionFlag.CAPS, 8),
    ("VFIO_IRQ_SET_DATA_NONE", SetIrqs.DATA_NONE, 1),
    ("VFIO_IRQ_SET_DATA_BOOL", SetIrqs.DATA_BOOL, 2),
    ("VFIO_IRQ_SET_DATA_EVENTFD", SetIrqs.DATA_EVENTFD, 4),
    ("VFIO_IRQ_SET_ACTION_MASK", SetIrqs.ACTION_MASK, 8),
    ("VFIO_IRQ_SET_ACTION_UNMASK", SetIrqs.ACTION_UNMASK, 16),
    ("VFIO_IRQ_SET_ACTION_TRIGGER", SetIrqs.ACTION_TRIGGER, 32),
]
# Name in vfio.h, ours, bytes. Of vfio_device_info only the first version is used.
STRUCTURES = [
    ("vfio_group_status", uapi.GroupStatus, 8),
    ("vfio_device_info", uapi.DeviceInfo, 16),
    ("vfio_region_info", uapi.RegionInfo, 32),
    ("vfio_irq_info", uapi.IrqInfo, 16),
    ("vfio_irq_set", uapi.IrqSet, 20),
    ("vfio_iommu_type1_info", uapi.IommuInfo, 24),
    ("vfio_iommu_type1_dma_map", uapi.DmaMap, 32),
    ("vfio_iommu_type1_dma_unmap", uapi.DmaUnmap, 24),
]


def fields(structure: type[uapi.Argument]) -> list[str]:
    own = [name for name, _ in structure._fields_]
    return own if structure._fields_ is uapi.Argument._fields_ else ["argsz", "flags", *own]


def ends(structure: type[uapi.Argument]) -> list[int]:
    """Where each field ends."""
    descriptors = [getattr(structure, name) for name in fields(structure)]
    return [one.offset + one.size for one in descriptors]


@pytest.mark.parametrize(("name", "ours", "theirs"), NUMBERS)
def test_number(name: str, ours: int, theirs: int) -> None:
    assert ours == theirs


@pytest.mark.parametrize(("name", "structure", "size"), STRUCTURES)
def test_size(name: str, structure: type[uapi.Argument], size: int) -> None:
    assert ctypes.sizeof(structure) == size


def test_the_header_of_this_machine_agrees(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = [f'printf("%llu\\n", (unsigned long long){name});' for name, _, _ in NUMBERS]
    expected = [int(ours) for _, ours, _ in NUMBERS]
    for name, structure, _ in STRUCTURES:
        for field, end in zip(fields(structure), ends(structure), strict=True):
            lines.append(f'printf("%zu\\n", END(struct {name}, {field}));')
            expected.append(end)
    source = tmp_path / "numbers.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/vfio.h>\n"
        "#define END(type, field) (offsetof(type, field) + sizeof(((type *)0)->field))\n"
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    program = tmp_path / "numbers"
    built = subprocess.run(
        [compiler, str(source), "-o", str(program)], capture_output=True, text=True, check=False
    )
    if "linux/vfio.h: No such file" in built.stderr:
        pytest.skip("no linux/vfio.h")
    assert built.returncode == 0, built.stderr
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    assert [int(line) for line in printed.split()] == expected
