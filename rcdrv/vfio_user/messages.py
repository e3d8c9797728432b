"""Bodies of vfio-user messages, each a record with ``pack`` and ``unpack``.

``unpack`` checks all sizes, and raises :class:`ProtocolError` that names the field. Bytes after a
structure with ``argsz`` are ignored, as later versions may add fields; any other body must have the
exact size.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Sequence
from struct import Struct

from rcdrv.device import CAP_SPARSE_MMAP, Area, IrqKind, RegionFlag, SetIrqs, capabilities, pairs
from rcdrv.record import record
from rcdrv.vfio_user.wire import ProtocolError


def _check_size(what: str, data: bytes, size: int) -> None:
    if len(data) != size:
        raise ProtocolError(f"{what} has {len(data)} bytes instead of {size}")


def _with_argsz(what: str, data: bytes, form: Struct) -> tuple[int, ...]:
    """Return the fields of a structure that begins with argsz, after checks of length and argsz."""
    if len(data) < form.size:
        raise ProtocolError(f"{what} has {len(data)} bytes instead of {form.size}")
    fields = form.unpack_from(data)
    if fields[0] < form.size:
        raise ProtocolError(f"{what}: argsz is {fields[0]}, below {form.size}")
    return fields


_DMA_MAP = Struct("=IIQQQ")
_DMA_UNMAP = Struct("=IIQQ")
_DEVICE_INFO = Struct("=IIII")
_REGION_INFO = Struct("=IIIIQQ")
_CAP_HEADER = Struct("=HHI")
_SPARSE_MMAP = Struct("=II")
_AREA = Struct("=QQ")
_IRQ_INFO = Struct("=IIII")
_IRQ_SET = Struct("=IIIII")
_REGION_ACCESS = Struct("=QII")
_DMA_ACCESS = Struct("=QQ")
_COUNT = Struct("=Q")
_WRITE_ONE = Struct("=QII8s")

REGION_INFO_SIZE = _REGION_INFO.size
_IRQ_DATA = SetIrqs.DATA_NONE | SetIrqs.DATA_BOOL | SetIrqs.DATA_EVENTFD
_IRQ_ACTION = SetIrqs.ACTION_MASK | SetIrqs.ACTION_UNMASK | SetIrqs.ACTION_TRIGGER

MAX_VECTORS = {
    IrqKind.INTX: 1,
    IrqKind.MSI: 32,
    IrqKind.MSIX: 2048,
    IrqKind.ERR: 1,
    IrqKind.REQ: 1,
}


@record
class DmaMap:
    """DMA_MAP: ``size`` bytes at bus address ``address``, from ``offset`` of the file on."""

    flags: int
    offset: int
    address: int
    size: int

    def pack(self) -> bytes:
        return _DMA_MAP.pack(_DMA_MAP.size, self.flags, self.offset, self.address, self.size)

    @classmethod
    def unpack(cls, data: bytes) -> DmaMap:
        return cls(*_with_argsz("DMA_MAP", data, _DMA_MAP)[1:])


UNMAP_GET_DIRTY_BITMAP = 1
UNMAP_ALL = 2
"""VFIO_DMA_UNMAP_FLAG_*"""


@record
class DmaUnmap:
    """DMA_UNMAP, request and reply."""

    flags: int
    address: int
    size: int

    def pack(self) -> bytes:
        return _DMA_UNMAP.pack(_DMA_UNMAP.size, self.flags, self.address, self.size)

    @classmethod
    def unpack(cls, data: bytes) -> DmaUnmap:
        return cls(*_with_argsz("DMA_UNMAP", data, _DMA_UNMAP)[1:])


@record
class DeviceInfo:
    """DEVICE_GET_INFO, request (all zero) and reply."""

    flags: int = 0
    num_regions: int = 0
    num_irqs: int = 0

    def pack(self) -> bytes:
        return _DEVICE_INFO.pack(_DEVICE_INFO.size, self.flags, self.num_regions, self.num_irqs)

    @classmethod
    def unpack(cls, data: bytes) -> DeviceInfo:
        return cls(*_with_argsz("DEVICE_GET_INFO", data, _DEVICE_INFO)[1:])


@record
class RegionInfoRequest:
    """DEVICE_GET_REGION_INFO, request. ``argsz`` is the limit of the reply's body in bytes."""

    index: int
    argsz: int = REGION_INFO_SIZE

    def pack(self) -> bytes:
        return _REGION_INFO.pack(self.argsz, 0, self.index, 0, 0, 0)

    @classmethod
    def unpack(cls, data: bytes) -> RegionInfoRequest:
        fields = _with_argsz("DEVICE_GET_REGION_INFO", data, _REGION_INFO)
        return cls(fields[2], fields[0])


@record
class WireRegionInfo:
    """DEVICE_GET_REGION_INFO, reply."""

    index: int
    flags: int = 0
    """Bits of :class:`rcdrv.device.RegionFlag`; :meth:`pack` adds CAPS where it applies."""
    size: int = 0
    offset: int = 0
    """Start of the region in the file whose descriptor comes with the reply."""
    areas: tuple[Area, ...] | None = None
    """Sparse mmap capability; None if there is none, or if it exceeds the reply."""
    argsz: int = 0
    """Size of the complete reply, as :meth:`unpack` found it."""

    def check(self, index: int, length: int) -> None:
        """Check a reply of ``length`` bytes to the request for region ``index``.

        :raises ProtocolError: another region, truncated, or beyond 64 bits
        """
        # Without capabilities a server may return the request's argsz, as the kernel does.
        short = self.flags & RegionFlag.CAPS and self.argsz > length
        if self.index != index or short:
            raise ProtocolError(f"region {index}: index {self.index}, argsz {self.argsz}")
        if self.size + self.offset > 1 << 64:
            raise ProtocolError(f"region {index} has {self.size:#x} bytes")

    def mappable(self, fds: Sequence[int]) -> tuple[Area, ...]:
        """Return the areas that this host can map. The rest of the region is accessed by messages.

        :param fds: descriptors in the reply
        :raises ProtocolError: areas overlap, or are outside the region or the file
        """
        if not self.flags & RegionFlag.MMAP or len(fds) != 1:
            return ()
        areas = self.areas if self.areas is not None else (Area(0, self.size),)
        areas = tuple(sorted(areas, key=lambda area: area.offset))
        end = 0
        for area in areas:
            if area.offset < end or area.offset + area.size > self.size:
                raise ProtocolError(
                    f"region {self.index}: the mappable area {area.offset:#x}+{area.size:#x} is "
                    f"outside its {self.size:#x} bytes, or overlaps another"
                )
            end = area.offset + area.size
        usable = tuple(
            area
            for area in areas
            if area.size
            and not (area.size | area.offset | (self.offset + area.offset)) % mmap.PAGESIZE
        )
        status = os.fstat(fds[0])
        if usable and stat.S_ISREG(status.st_mode):
            end = self.offset + usable[-1].offset + usable[-1].size
            if end > status.st_size:  # an access beyond the end of the file raises SIGBUS
                raise ProtocolError(f"region {self.index}: its file has {status.st_size:#x} bytes")
        return usable

    def pack(self, room: int) -> bytes:
        """Return the fields, and the capability chain if all fits into ``room`` bytes."""
        chain = b""
        if self.areas is not None:
            chain = _CAP_HEADER.pack(CAP_SPARSE_MMAP, 1, 0)
            chain += _SPARSE_MMAP.pack(len(self.areas), 0)
            chain += b"".join(_AREA.pack(area.offset, area.size) for area in self.areas)
        flags, cap_offset, argsz = self.flags, 0, REGION_INFO_SIZE + len(chain)
        if argsz > room:
            chain = b""
        if chain:
            flags |= RegionFlag.CAPS
            cap_offset = REGION_INFO_SIZE
        info = _REGION_INFO.pack(argsz, flags, self.index, cap_offset, self.size, self.offset)
        return info + chain

    @classmethod
    def unpack(cls, data: bytes) -> WireRegionInfo:
        what = "DEVICE_GET_REGION_INFO"
        argsz, flags, index, cap_offset, size, offset = _with_argsz(what, data, _REGION_INFO)
        areas = None
        if flags & RegionFlag.CAPS and argsz <= len(data):
            areas = _find_areas(what, data, cap_offset)
        return cls(index, flags, size, offset, areas, argsz)


def _find_areas(what: str, data: bytes, offset: int) -> tuple[Area, ...] | None:
    """Return the sparse mmap areas of a capability chain."""

    def wrong(why: str) -> ProtocolError:
        return ProtocolError(f"{what}: {why}")

    areas = None
    for identity, body in capabilities(data, REGION_INFO_SIZE, offset, wrong):
        if identity == CAP_SPARSE_MMAP:
            areas = tuple(Area(*pair) for pair in pairs(body, wrong))
    return areas


@record
class IrqInfo:
    """DEVICE_GET_IRQ_INFO, request (only ``index``) and reply."""

    index: int
    flags: int = 0
    count: int = 0

    def pack(self) -> bytes:
        return _IRQ_INFO.pack(_IRQ_INFO.size, self.flags, self.index, self.count)

    @classmethod
    def unpack(cls, data: bytes) -> IrqInfo:
        _argsz, flags, index, count = _with_argsz("DEVICE_GET_IRQ_INFO", data, _IRQ_INFO)
        return cls(index, flags, count)


@record
class IrqSet:
    """DEVICE_SET_IRQS. ``data`` has a boolean byte per vector with DATA_BOOL, else it is empty."""

    flags: int
    index: int
    start: int
    count: int
    data: bytes = b""

    def check(self, vectors: int, fds: int) -> None:
        """Check a request, with the combinations of drivers/vfio/pci/vfio_pci_intrs.c in Linux.

        :param vectors: number of vectors of the kind
        :param fds: number of descriptors in the request
        :raises ProtocolError: invalid; names the field
        """
        source, action = self.flags & _IRQ_DATA, self.flags & _IRQ_ACTION
        one_each = source.bit_count() == 1 and action.bit_count() == 1
        disarm = self.flags == SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER and not self.start
        wrong = {
            "flags": self.flags != source | action or not one_each,
            "start": self.start >= vectors or self.start + self.count > vectors,
            "data": len(self.data) != (self.count if source == SetIrqs.DATA_BOOL else 0),
            "descriptors": fds and (source != SetIrqs.DATA_EVENTFD or fds != self.count),
            "count": not self.count and not disarm,
        }
        for field, is_wrong in wrong.items():
            if is_wrong:
                raise ProtocolError(f"DEVICE_SET_IRQS: {field}")

    @property
    def chosen(self) -> list[int]:
        """Vectors that a request without eventfds selects."""
        vectors = range(self.start, self.start + self.count)
        if self.flags & SetIrqs.DATA_BOOL:
            return [vector for vector, chosen in zip(vectors, self.data, strict=True) if chosen]
        return list(vectors)

    def pack(self) -> bytes:
        argsz = _IRQ_SET.size + len(self.data)
        return _IRQ_SET.pack(argsz, self.flags, self.index, self.start, self.count) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> IrqSet:
        _argsz, flags, index, start, count = _with_argsz("DEVICE_SET_IRQS", data, _IRQ_SET)
        return cls(flags, index, start, count, data[_IRQ_SET.size :])


pack_access = _REGION_ACCESS.pack
"""Pack the offset, region and count of an access: a request without data, or what begins one."""


def unpack_access(data: bytes, *, with_data: bool) -> tuple[int, int, int]:
    """Unpack the offset, region and count of an access, behind which there may be data."""
    if len(data) < _REGION_ACCESS.size:
        raise ProtocolError(f"a region access has only {len(data)} bytes")
    offset, region, count = _REGION_ACCESS.unpack_from(data)
    _check_size("a region access", data, _REGION_ACCESS.size + (count if with_data else 0))
    return offset, region, count


@record
class RegionAccess:
    """REGION_READ and REGION_WRITE. Requests to write and replies to a read have data."""

    offset: int
    region: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        return _REGION_ACCESS.pack(self.offset, self.region, self.count) + self.data

    @classmethod
    def unpack(cls, data: bytes, *, with_data: bool) -> RegionAccess:
        fields = unpack_access(data, with_data=with_data)
        return cls(*fields, data[_REGION_ACCESS.size :])


@record
class DmaAccess:
    """DMA_READ and DMA_WRITE. Requests to write and replies to a read have data."""

    address: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        return _DMA_ACCESS.pack(self.address, self.count) + self.data

    @classmethod
    def unpack(cls, data: bytes, *, with_data: bool) -> DmaAccess:
        if len(data) < _DMA_ACCESS.size:
            raise ProtocolError(f"a DMA access has only {len(data)} bytes")
        address, count = _DMA_ACCESS.unpack_from(data)
        _check_size("a DMA access", data, _DMA_ACCESS.size + (count if with_data else 0))
        return cls(address, count, data[_DMA_ACCESS.size :])


MULTI_WRITE_SIZE = _WRITE_ONE.size
"""Size of one write in REGION_WRITE_MULTI, in bytes."""


@record
class WriteMulti:
    """REGION_WRITE_MULTI: writes of 1 to 8 bytes each, in order."""

    writes: tuple[RegionAccess, ...]

    def pack(self) -> bytes:
        return _COUNT.pack(len(self.writes)) + b"".join(
            _WRITE_ONE.pack(write.offset, write.region, write.count, write.data)
            for write in self.writes
        )

    @classmethod
    def unpack(cls, data: bytes) -> WriteMulti:
        what = "REGION_WRITE_MULTI"
        if len(data) < _COUNT.size:
            raise ProtocolError(f"{what} has only {len(data)} bytes")
        count = int(_COUNT.unpack_from(data)[0])
        _check_size(what, data, _COUNT.size + count * _WRITE_ONE.size)
        writes = []
        for offset, region, size, value in _WRITE_ONE.iter_unpack(data[_COUNT.size :]):
            if not 0 < size <= len(value):
                raise ProtocolError(f"{what}: a write of {size} bytes")
            writes.append(RegionAccess(offset, region, size, value[:size]))
        return cls(tuple(writes))


def pack_multi_reply(count: int) -> bytes:
    """Pack the reply to REGION_WRITE_MULTI: the number of writes done."""
    return _COUNT.pack(count)


def unpack_multi_reply(data: bytes) -> int:
    """Unpack the reply to REGION_WRITE_MULTI."""
    _check_size("REGION_WRITE_MULTI", data, _COUNT.size)
    return int(_COUNT.unpack(data)[0])
