"""Numbers and layouts against the kernel's headers: as literals, and as the C compiler sees them.

The compiler knows only what this machine's headers have, which may be older than ours.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from rcdrv import device
from rcdrv.device import CONFIG_REGION, IrqKind, RegionFlag, SetIrqs
from rcdrv.vfio import uapi
from tests.programs import needed
from tests.unavailable import unavailable

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
    ("VFIO_NOIOMMU_IOMMU", uapi.NOIOMMU_IOMMU, 8),
    ("VFIO_DEVICE_BIND_IOMMUFD", uapi.DEVICE_BIND_IOMMUFD, 0x3B76),
    ("VFIO_DEVICE_BIND_FLAG_TOKEN", uapi.BIND_FLAG_TOKEN, 1),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", uapi.DEVICE_ATTACH_IOMMUFD_PT, 0x3B77),
    ("IOMMU_IOAS_ALLOC", uapi.IOAS_ALLOC, 0x3B81),
    ("IOMMU_IOAS_IOVA_RANGES", uapi.IOAS_IOVA_RANGES, 0x3B84),
    ("IOMMU_IOAS_MAP", uapi.IOAS_MAP, 0x3B85),
    ("IOMMU_IOAS_UNMAP", uapi.IOAS_UNMAP, 0x3B86),
    ("IOMMU_IOAS_NOIOMMU_GET_PA", uapi.IOAS_NOIOMMU_GET_PA, 0x3B95),
    ("IOMMU_IOAS_MAP_FIXED_IOVA", uapi.MapFlag.FIXED_IOVA, 1),
    ("IOMMU_IOAS_MAP_WRITEABLE", uapi.MapFlag.WRITEABLE, 2),
    ("IOMMU_IOAS_MAP_READABLE", uapi.MapFlag.READABLE, 4),
    ("VFIO_IOMMU_GET_INFO", uapi.IOMMU_GET_INFO, 0x3B70),
    ("VFIO_IOMMU_MAP_DMA", uapi.IOMMU_MAP_DMA, 0x3B71),
    ("VFIO_IOMMU_UNMAP_DMA", uapi.IOMMU_UNMAP_DMA, 0x3B72),
    ("VFIO_GROUP_FLAGS_VIABLE", uapi.GroupFlag.VIABLE, 1),
    ("VFIO_GROUP_FLAGS_CONTAINER_SET", uapi.GroupFlag.CONTAINER_SET, 2),
    ("VFIO_DEVICE_FLAGS_RESET", device.DeviceFlag.RESET, 1),
    ("VFIO_DEVICE_FLAGS_PCI", device.DeviceFlag.PCI, 2),
    ("VFIO_IOMMU_INFO_PGSIZES", uapi.IommuFlag.PGSIZES, 1),
    ("VFIO_IOMMU_INFO_CAPS", uapi.IommuFlag.CAPS, 2),
    ("VFIO_DMA_MAP_FLAG_READ", device.DmaFlag.READ, 1),
    ("VFIO_DMA_MAP_FLAG_WRITE", device.DmaFlag.WRITE, 2),
    ("VFIO_IRQ_INFO_EVENTFD", device.IrqFlag.EVENTFD, 1),
    ("VFIO_REGION_INFO_CAP_SPARSE_MMAP", device.CAP_SPARSE_MMAP, 1),
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
# Name in the header, ours, bytes. Of those that grew only the first version is used.
STRUCTURES: list[tuple[str, type[uapi.Argument] | type[uapi.IommufdArgument], int]] = [
    ("vfio_group_status", uapi.GroupStatus, 8),
    ("vfio_device_info", uapi.DeviceInfo, 16),
    ("vfio_region_info", uapi.RegionInfo, 32),
    ("vfio_irq_info", uapi.IrqInfo, 16),
    ("vfio_irq_set", uapi.IrqSet, 20),
    ("vfio_iommu_type1_info", uapi.IommuInfo, 24),
    ("vfio_iommu_type1_dma_map", uapi.DmaMap, 32),
    ("vfio_iommu_type1_dma_unmap", uapi.DmaUnmap, 24),
    ("vfio_device_bind_iommufd", uapi.BindIommufd, 16),
    ("vfio_device_bind_iommufd", uapi.BindIommufdToken, 24),
    ("vfio_device_attach_iommufd_pt", uapi.AttachIommufdPt, 12),
    ("iommu_ioas_alloc", uapi.IoasAlloc, 12),
    ("iommu_ioas_iova_ranges", uapi.IoasIovaRanges, 32),
    ("iommu_ioas_map", uapi.IoasMap, 40),
    ("iommu_ioas_unmap", uapi.IoasUnmap, 24),
    ("iommu_ioas_noiommu_get_pa", uapi.IoasNoiommuGetPa, 40),
]


def fields(structure: type[uapi.Argument] | type[uapi.IommufdArgument]) -> list[str]:
    base = uapi.Argument if issubclass(structure, uapi.Argument) else uapi.IommufdArgument
    inherited = [field[0] for field in base._fields_]
    own = [field[0] for field in structure._fields_]
    return own if structure._fields_ is base._fields_ else [*inherited, *own]


def ends(structure: type[uapi.Argument] | type[uapi.IommufdArgument]) -> list[int]:
    """Where each field ends."""
    descriptors = [getattr(structure, name) for name in fields(structure)]
    return [one.offset + one.size for one in descriptors]


@pytest.mark.parametrize(("name", "ours", "theirs"), NUMBERS)
def test_number(name: str, ours: int, theirs: int) -> None:
    assert ours == theirs


@pytest.mark.parametrize(("name", "structure", "size"), STRUCTURES)
def test_size(
    name: str, structure: type[uapi.Argument] | type[uapi.IommufdArgument], size: int
) -> None:
    assert ctypes.sizeof(structure) == size


NEWER = ("IOMMUFD", "BIND_FLAG_TOKEN", "iommufd", "IOMMU_IOAS", "iommu_ioas")
"""In parts of the names: what the headers of a supported system may not have yet."""


def test_the_headers_of_this_machine_agree(tmp_path: Path) -> None:
    compiler = needed("cc")
    headers = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/vfio.h>\n"
    if not compiles(compiler, tmp_path, headers):
        unavailable("no linux/vfio.h: apt-get install libc6-dev")
    if compiles(compiler, tmp_path, headers + "#include <linux/iommufd.h>\n"):
        headers += "#include <linux/iommufd.h>\n"
    headers += "#define END(type, field) (offsetof(type, field) + sizeof(((type *)0)->field))\n"

    lines, expected = [], []
    for name, ours, _ in NUMBERS:
        line = f'printf("%llu\\n", (unsigned long long){name});'
        if known(compiler, tmp_path, headers, name, line):
            lines.append(line)
            expected.append(int(ours))
    for name, structure, _ in STRUCTURES:
        for field, end in zip(fields(structure), ends(structure), strict=True):
            line = f'printf("%zu\\n", END(struct {name}, {field}));'
            if known(compiler, tmp_path, headers, name, line):
                lines.append(line)
                expected.append(end)
    program = compiles(compiler, tmp_path, headers, *lines)
    assert program
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    assert [int(line) for line in printed.split()] == expected


def known(compiler: str, folder: Path, headers: str, name: str, line: str) -> bool:
    """Whether these headers have it; what every supported system has, they must have."""
    return not any(part in name for part in NEWER) or bool(
        compiles(compiler, folder, headers, line)
    )


def compiles(compiler: str, folder: Path, headers: str, *lines: str) -> Path | None:
    """The program, or None if it cannot be compiled."""
    source, program = folder / "numbers.c", folder / "numbers"
    source.write_text(f"{headers}int main(void) {{\n" + "\n".join(lines) + "\nreturn 0; }\n")
    command = [compiler, str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if built.returncode else program
