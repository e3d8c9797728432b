"""Constants and structures of VFIO's user API that rcdrv uses.

From ``include/uapi/linux/vfio.h`` and ``include/uapi/linux/iommufd.h``, written by hand. ctypes
describes memory of this process only; device memory is never accessed through it.
"""

from __future__ import annotations

from ctypes import Structure, c_int32, c_uint32, c_uint64
from enum import IntEnum, IntFlag

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import TypeVar

    S32 = int
    U32 = int
    U64 = int
    S = TypeVar("S", bound=Structure)

_TYPES = {"S32": c_int32, "U32": c_uint32, "U64": c_uint64}

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


class IommuFlag(IntFlag):
    """VFIO_IOMMU_INFO_*."""

    PGSIZES = 1
    CAPS = 2


class IommuCap(IntEnum):
    """VFIO_IOMMU_TYPE1_INFO_CAP_* and VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL."""

    IOVA_RANGE = 1
    DMA_AVAIL = 3


def _structure(cls: type[S]) -> type[S]:
    """Make the annotated fields of a class, strings by PEP 563, those of its C structure."""
    cls._fields_ = [(name, _TYPES[kind]) for name, kind in cls.__annotations__.items()]
    return cls


@_structure
class Argument(Structure):
    """First fields of every VFIO structure.

    ``argsz`` is the size that the caller provides, so that later kernels can add fields. The
    request numbers carry no size (``_IO``, not ``_IOWR``).
    """

    argsz: U32
    flags: U32


class GroupStatus(Argument):
    """struct vfio_group_status."""


@_structure
class DeviceInfo(Argument):
    """struct vfio_device_info, as in its first version."""

    num_regions: U32
    num_irqs: U32


@_structure
class RegionInfo(Argument):
    """struct vfio_region_info."""

    index: U32
    cap_offset: U32
    size: U64
    offset: U64


@_structure
class IrqInfo(Argument):
    """struct vfio_irq_info."""

    index: U32
    count: U32


@_structure
class IrqSet(Argument):
    """struct vfio_irq_set, followed by its ``data``: ``count`` eventfds as __s32."""

    index: U32
    start: U32
    count: U32


@_structure
class IommuInfo(Argument):
    """struct vfio_iommu_type1_info."""

    iova_pgsizes: U64
    cap_offset: U32


@_structure
class DmaMap(Argument):
    """struct vfio_iommu_type1_dma_map."""

    vaddr: U64
    iova: U64
    size: U64


@_structure
class DmaUnmap(Argument):
    """struct vfio_iommu_type1_dma_unmap."""

    iova: U64
    size: U64


@_structure
class BindIommufd(Argument):
    """struct vfio_device_bind_iommufd, as in its first version."""

    iommufd: S32
    out_devid: U32


BIND_FLAG_TOKEN = 1
"""VFIO_DEVICE_BIND_FLAG_TOKEN."""


@_structure
class BindIommufdToken(Argument):
    """struct vfio_device_bind_iommufd with a VF token, for newer kernels."""

    iommufd: S32
    out_devid: U32
    token_uuid_ptr: U64


@_structure
class AttachIommufdPt(Argument):
    """struct vfio_device_attach_iommufd_pt, as in its first version."""

    pt_id: U32


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


@_structure
class IommufdArgument(Structure):
    """First field of every iommufd structure."""

    size: U32


@_structure
class IoasAlloc(IommufdArgument):
    """struct iommu_ioas_alloc."""

    flags: U32
    out_ioas_id: U32


@_structure
class IoasIovaRanges(IommufdArgument):
    """struct iommu_ioas_iova_ranges; ``allowed_iovas`` points to pairs of __u64."""

    ioas_id: U32
    num_iovas: U32
    reserved: U32
    allowed_iovas: U64
    out_iova_alignment: U64


@_structure
class IoasMap(IommufdArgument):
    """struct iommu_ioas_map."""

    flags: U32
    ioas_id: U32
    reserved: U32
    user_va: U64
    length: U64
    iova: U64


@_structure
class IoasUnmap(IommufdArgument):
    """struct iommu_ioas_unmap."""

    ioas_id: U32
    iova: U64
    length: U64


@_structure
class IoasNoiommuGetPa(IommufdArgument):
    """struct iommu_ioas_noiommu_get_pa, since Linux 7.3."""

    flags: U32
    ioas_id: U32
    reserved: U32
    iova: U64
    length: U64
    out_phys: U64
