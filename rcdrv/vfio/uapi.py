"""The part of the VFIO user API that rcdrv speaks, by hand.

From ``include/uapi/linux/vfio.h``, and at the end from ``include/uapi/linux/iommufd.h``.

ctypes only describes memory of this process here; device memory is never accessed through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_int32, c_uint32, c_uint64
from enum import IntEnum, IntFlag

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import ClassVar

API_VERSION = 0
TYPE1V2_IOMMU = 3
NOIOMMU_IOMMU = 8


def _request(number: int) -> int:
    """``_IO(VFIO_TYPE, VFIO_BASE + number)``."""
    return ord(";") << 8 | 100 + number


# On the container, /dev/vfio/vfio. The IOMMU requests share their numbers with device requests.
GET_API_VERSION = _request(0)
CHECK_EXTENSION = _request(1)
SET_IOMMU = _request(2)
IOMMU_GET_INFO = _request(12)
IOMMU_MAP_DMA = _request(13)
IOMMU_UNMAP_DMA = _request(14)

# On a group, /dev/vfio/<group>.
GROUP_GET_STATUS = _request(3)
GROUP_SET_CONTAINER = _request(4)
GROUP_GET_DEVICE_FD = _request(6)

# On a device.
DEVICE_GET_INFO = _request(7)
DEVICE_GET_REGION_INFO = _request(8)
DEVICE_GET_IRQ_INFO = _request(9)
DEVICE_SET_IRQS = _request(10)
DEVICE_RESET = _request(11)
DEVICE_BIND_IOMMUFD = _request(18)
DEVICE_ATTACH_IOMMUFD_PT = _request(19)


class GroupFlag(IntFlag):
    """VFIO_GROUP_FLAGS_*."""

    VIABLE = 1
    CONTAINER_SET = 2


class DeviceFlag(IntFlag):
    """VFIO_DEVICE_FLAGS_*."""

    RESET = 1
    PCI = 2


class IommuFlag(IntFlag):
    """VFIO_IOMMU_INFO_*."""

    PGSIZES = 1
    CAPS = 2


class DmaFlag(IntFlag):
    """VFIO_DMA_MAP_FLAG_*, as the device sees it."""

    READ = 1
    WRITE = 2


class IrqFlag(IntFlag):
    """VFIO_IRQ_INFO_*."""

    EVENTFD = 1


class RegionCap(IntEnum):
    """VFIO_REGION_INFO_CAP_*."""

    SPARSE_MMAP = 1


class IommuCap(IntEnum):
    """VFIO_IOMMU_TYPE1_INFO_CAP_* and VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL."""

    IOVA_RANGE = 1
    DMA_AVAIL = 3


class Argument(Structure):
    """Start of each structure: the size that the caller provides.

    So a later kernel can add fields, and the request numbers carry no size (``_IO``, not
    ``_IOWR``).
    """

    _fields_: ClassVar[Sequence[tuple[str, type[c_int32 | c_uint32 | c_uint64]]]] = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
    )

    argsz: int
    flags: int


class GroupStatus(Argument):
    """struct vfio_group_status."""


class DeviceInfo(Argument):
    """struct vfio_device_info, up to what the first version of it had."""

    _fields_ = (
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
    )

    num_regions: int
    num_irqs: int


class RegionInfo(Argument):
    """struct vfio_region_info."""

    _fields_ = (
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    )

    index: int
    cap_offset: int
    size: int
    offset: int


class IrqInfo(Argument):
    """struct vfio_irq_info."""

    _fields_ = (
        ("index", c_uint32),
        ("count", c_uint32),
    )

    index: int
    count: int


class IrqSet(Argument):
    """struct vfio_irq_set; its ``data``, ``count`` eventfds as __s32, follows it."""

    _fields_ = (
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    )

    index: int
    start: int
    count: int


class IommuInfo(Argument):
    """struct vfio_iommu_type1_info."""

    _fields_ = (
        ("iova_pgsizes", c_uint64),
        ("cap_offset", c_uint32),
    )

    iova_pgsizes: int
    cap_offset: int


class DmaMap(Argument):
    """struct vfio_iommu_type1_dma_map."""

    _fields_ = (
        ("vaddr", c_uint64),
        ("iova", c_uint64),
        ("size", c_uint64),
    )

    vaddr: int
    iova: int
    size: int


class DmaUnmap(Argument):
    """struct vfio_iommu_type1_dma_unmap."""

    _fields_ = (
        ("iova", c_uint64),
        ("size", c_uint64),
    )

    iova: int
    size: int


class BindIommufd(Argument):
    """struct vfio_device_bind_iommufd, up to what the first version of it had."""

    _fields_ = (
        ("iommufd", c_int32),
        ("out_devid", c_uint32),
    )

    iommufd: int
    out_devid: int


BIND_FLAG_TOKEN = 1
"""VFIO_DEVICE_BIND_FLAG_TOKEN."""


class BindIommufdToken(Argument):
    """struct vfio_device_bind_iommufd with a VF token, which newer kernels take."""

    _fields_ = (
        ("iommufd", c_int32),
        ("out_devid", c_uint32),
        ("token_uuid_ptr", c_uint64),
    )

    iommufd: int
    out_devid: int
    token_uuid_ptr: int


class AttachIommufdPt(Argument):
    """struct vfio_device_attach_iommufd_pt, up to what the first version of it had."""

    _fields_ = (("pt_id", c_uint32),)

    pt_id: int


# -- iommufd, on /dev/iommu ----------------------------------------------------------------------


def _iommufd_request(number: int) -> int:
    """``_IO(IOMMUFD_TYPE, number)``."""
    return ord(";") << 8 | number


IOAS_ALLOC = _iommufd_request(0x81)
IOAS_IOVA_RANGES = _iommufd_request(0x84)
IOAS_MAP = _iommufd_request(0x85)
IOAS_UNMAP = _iommufd_request(0x86)
IOAS_NOIOMMU_GET_PA = _iommufd_request(0x95)


class MapFlag(IntFlag):
    """IOMMU_IOAS_MAP_*."""

    FIXED_IOVA = 1
    WRITEABLE = 2
    READABLE = 4


class Command(Structure):
    """Start of each of iommufd's structures."""

    _fields_: ClassVar[Sequence[tuple[str, type[c_uint32 | c_uint64]]]] = (("size", c_uint32),)

    size: int


class IoasAlloc(Command):
    """struct iommu_ioas_alloc."""

    _fields_ = (
        ("flags", c_uint32),
        ("out_ioas_id", c_uint32),
    )

    flags: int
    out_ioas_id: int


class IoasIovaRanges(Command):
    """struct iommu_ioas_iova_ranges; ``allowed_iovas`` points to pairs of __u64."""

    _fields_ = (
        ("ioas_id", c_uint32),
        ("num_iovas", c_uint32),
        ("__reserved", c_uint32),
        ("allowed_iovas", c_uint64),
        ("out_iova_alignment", c_uint64),
    )

    ioas_id: int
    num_iovas: int
    allowed_iovas: int
    out_iova_alignment: int


class IoasMap(Command):
    """struct iommu_ioas_map."""

    _fields_ = (
        ("flags", c_uint32),
        ("ioas_id", c_uint32),
        ("__reserved", c_uint32),
        ("user_va", c_uint64),
        ("length", c_uint64),
        ("iova", c_uint64),
    )

    flags: int
    ioas_id: int
    user_va: int
    length: int
    iova: int


class IoasUnmap(Command):
    """struct iommu_ioas_unmap."""

    _fields_ = (
        ("ioas_id", c_uint32),
        ("iova", c_uint64),
        ("length", c_uint64),
    )

    ioas_id: int
    iova: int
    length: int


class IoasNoiommuGetPa(Command):
    """struct iommu_ioas_noiommu_get_pa, in Linux 7.3 and later."""

    _fields_ = (
        ("flags", c_uint32),
        ("ioas_id", c_uint32),
        ("__reserved", c_uint32),
        ("iova", c_uint64),
        ("length", c_uint64),
        ("out_phys", c_uint64),
    )

    flags: int
    ioas_id: int
    iova: int
    length: int
    out_phys: int
