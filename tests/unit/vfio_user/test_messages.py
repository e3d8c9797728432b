"""The message bodies: what is packed is unpacked again, and nothing else is."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rcdrv.device import Area, RegionFlag
from rcdrv.vfio_user import messages, version, wire
from rcdrv.vfio_user.wire import ProtocolError

U16 = st.integers(0, (1 << 16) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)

AREAS = st.lists(st.builds(Area, U64, U64), max_size=20).map(tuple)


@st.composite
def accesses(draw: st.DrawFn) -> messages.RegionAccess:
    data = draw(st.binary(max_size=64))
    return messages.RegionAccess(draw(U64), draw(U32), len(data), data)


@st.composite
def small_writes(draw: st.DrawFn) -> messages.RegionAccess:
    data = draw(st.binary(min_size=1, max_size=8))
    return messages.RegionAccess(draw(U64), draw(U32), len(data), data)


@st.composite
def dma_accesses(draw: st.DrawFn) -> messages.DmaAccess:
    data = draw(st.binary(max_size=64))
    return messages.DmaAccess(draw(U64), len(data), data)


CAPABILITIES = st.builds(version.Capabilities, U32, U64, U32, U64, st.booleans())
VERSIONS = st.builds(version.Version, U16, U16, CAPABILITIES)

UNPACKERS: list[Callable[[bytes], object]] = [
    version.Version.unpack,
    version.Capabilities.unpack,
    messages.DmaMap.unpack,
    messages.DmaUnmap.unpack,
    messages.DeviceInfo.unpack,
    messages.WireRegionInfo.unpack,
    messages.RegionInfoRequest.unpack,
    messages.IrqInfo.unpack,
    messages.IrqSet.unpack,
    messages.WriteMulti.unpack,
    messages.unpack_multi_reply,
    lambda data: messages.RegionAccess.unpack(data, with_data=True),
    lambda data: messages.RegionAccess.unpack(data, with_data=False),
    lambda data: messages.DmaAccess.unpack(data, with_data=True),
    lambda data: messages.DmaAccess.unpack(data, with_data=False),
]


@given(VERSIONS)
def test_version(spoken: version.Version) -> None:
    assert version.Version.unpack(spoken.pack()) == spoken


@given(
    st.one_of(
        st.builds(messages.DmaMap, U32, U64, U64, U64),
        st.builds(messages.DmaUnmap, U32, U64, U64),
        st.builds(messages.DeviceInfo, U32, U32, U32),
        st.builds(messages.RegionInfoRequest, U32, st.integers(32, (1 << 32) - 1)),
        st.builds(messages.IrqInfo, U32, U32, U32),
        st.builds(messages.IrqSet, U32, U32, U32, U32, st.binary(max_size=32)),
        st.builds(messages.WriteMulti, st.lists(small_writes(), max_size=9).map(tuple)),
    )
)
def test_fixed_bodies(body: Any) -> None:
    assert type(body).unpack(body.pack()) == body


@given(accesses(), dma_accesses())
def test_accesses_with_data(region: messages.RegionAccess, dma: messages.DmaAccess) -> None:
    assert messages.RegionAccess.unpack(region.pack(), with_data=True) == region
    assert messages.DmaAccess.unpack(dma.pack(), with_data=True) == dma


@given(U64, U32, U32)
def test_accesses_without_data(offset: int, region: int, count: int) -> None:
    access = messages.RegionAccess(offset, region, count)
    assert messages.RegionAccess.unpack(access.pack(), with_data=False) == access


@given(st.one_of(st.none(), AREAS), U32, U64, U64)
def test_region_info(areas: tuple[Area, ...] | None, index: int, size: int, offset: int) -> None:
    packed = messages.WireRegionInfo(index, RegionFlag.READ, size, offset, areas).pack(4096)
    reply = messages.WireRegionInfo.unpack(packed)
    assert (reply.index, reply.size, reply.offset) == (index, size, offset)
    assert reply.areas == areas
    assert reply.argsz == len(packed)


def test_region_info_without_room_says_how_much_it_needs() -> None:
    areas = (Area(0, 4096), Area(8192, 4096))
    info = messages.WireRegionInfo(2, RegionFlag.MMAP, 1 << 16, 0, areas)
    short = info.pack(messages.REGION_INFO_SIZE)
    assert len(short) == messages.REGION_INFO_SIZE
    reply = messages.WireRegionInfo.unpack(short)
    assert reply.argsz == messages.REGION_INFO_SIZE + 16 + 2 * 16
    # QEMU refuses CAPS without a cap_offset.
    assert not reply.flags & RegionFlag.CAPS
    assert messages.WireRegionInfo.unpack(info.pack(reply.argsz - 1)).areas is None
    assert messages.WireRegionInfo.unpack(info.pack(reply.argsz)).areas == areas


@pytest.mark.parametrize("unpack", UNPACKERS)
@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"\xff" * 64)
def test_random_bytes_are_unpacked_or_refused(
    unpack: Callable[[bytes], object], data: bytes
) -> None:
    with contextlib.suppress(ProtocolError):
        unpack(data)


@pytest.mark.parametrize(
    "body",
    [
        version.Version(),
        messages.DmaMap(3, 0, 4096, 4096),
        messages.DmaUnmap(0, 4096, 4096),
        messages.DeviceInfo(2, 9, 5),
        messages.RegionInfoRequest(0),
        messages.IrqInfo(1),
        messages.IrqSet(0x21, 1, 0, 0),
        messages.WriteMulti((messages.RegionAccess(0, 0, 4, b"abcd"),)),
    ],
)
def test_truncated_bodies_are_refused(body: Any) -> None:
    packed = body.pack()
    if isinstance(body, version.Version):  # its JSON may be left out altogether
        sizes = [size for size in range(len(packed)) if size != 4]
    else:
        sizes = list(range(len(packed)))
    for size in sizes:
        with pytest.raises(ProtocolError):
            type(body).unpack(packed[:size])


def test_data_that_is_not_as_long_as_count_says() -> None:
    for length in (0, 3, 5):
        data = messages.RegionAccess(0, 0, 4, b"x" * length).pack()
        with pytest.raises(ProtocolError, match="instead of"):
            messages.RegionAccess.unpack(data, with_data=True)
        data = messages.DmaAccess(0, 4, b"x" * length).pack()
        with pytest.raises(ProtocolError, match="instead of"):
            messages.DmaAccess.unpack(data, with_data=True)


def test_argsz_below_the_structure() -> None:
    body = bytearray(messages.DeviceInfo().pack())
    body[0:4] = struct.pack("=I", 15)
    with pytest.raises(ProtocolError, match="argsz"):
        messages.DeviceInfo.unpack(bytes(body))


def test_a_later_version_may_append_to_an_argsz_structure() -> None:
    info = messages.DeviceInfo(2, 9, 5)
    assert messages.DeviceInfo.unpack(info.pack() + b"more") == info


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 5000, "JSON"),
        (b"[]", "capabilities"),
        (b'{"capabilities": 1}', "capabilities"),
        (b'{"capabilities": {"max_msg_fds": "1"}}', "max_msg_fds"),
        (b'{"capabilities": {"max_msg_fds": true}}', "max_msg_fds"),
        (b'{"capabilities": {"max_data_xfer_size": -1}}', "max_data_xfer_size"),
        (b'{"capabilities": {"max_dma_maps": 1e3}}', "max_dma_maps"),
        (b'{"capabilities": {"pgsizes": 18446744073709551616}}', "pgsizes"),
        (b'{"capabilities": {"write_multiple": 1}}', "write_multiple"),
    ],
)
def test_capabilities_that_cannot_be_right(text: bytes, name: str) -> None:
    with pytest.raises(ProtocolError, match=name):
        version.Capabilities.unpack(text)


def test_a_silent_peer_gets_the_defaults_of_the_specification() -> None:
    names = {"max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes"}
    defaults = version.Capabilities(1, 1048576, 65535, 4096, False, frozenset(names))
    assert version.Version.unpack(struct.pack("=HH", 0, 0)).capabilities == defaults
    assert version.Version.unpack(struct.pack("=HH", 0, 0) + b"{}\0").capabilities == defaults
    unknown = b'{"capabilities": {"migration": {"pgsize": 4096}}}\0'
    assert version.Version.unpack(struct.pack("=HH", 0, 0) + unknown).capabilities == defaults


def test_version_data_without_a_terminator() -> None:
    with pytest.raises(ProtocolError, match="NUL"):
        version.Version.unpack(struct.pack("=HH", 0, 0) + b"{}")


def region_reply(cap_offset: int, chain: bytes) -> bytes:
    size = messages.REGION_INFO_SIZE + len(chain)
    flags = RegionFlag.MMAP | RegionFlag.CAPS
    return struct.pack("=IIIIQQ", size, flags, 0, cap_offset, 1 << 16, 0) + chain


def test_a_capability_chain_that_loops() -> None:
    chain = struct.pack("=HHIHHI", 9, 1, 40, 9, 1, 32)
    with pytest.raises(ProtocolError, match="loops"):
        messages.WireRegionInfo.unpack(region_reply(32, chain))


@pytest.mark.parametrize("cap_offset", [1, 31, 33, 40, 1 << 31])
def test_a_capability_outside_the_reply(cap_offset: int) -> None:
    with pytest.raises(ProtocolError, match="outside"):
        messages.WireRegionInfo.unpack(region_reply(cap_offset, struct.pack("=HHI", 9, 1, 0)))


@pytest.mark.parametrize("count", [2, 0xFFFFFFFF])
def test_more_areas_than_the_reply_holds(count: int) -> None:
    chain = struct.pack("=HHIIIQQ", 1, 1, 0, count, 0, 0, 4096)
    with pytest.raises(ProtocolError, match="entries"):
        messages.WireRegionInfo.unpack(region_reply(32, chain))


def test_a_chain_with_capabilities_that_nobody_knows() -> None:
    chain = struct.pack("=HHI", 3, 1, 40) + struct.pack("=HHIIIQQ", 1, 1, 0, 1, 0, 0, 4096)
    assert messages.WireRegionInfo.unpack(region_reply(32, chain)).areas == (Area(0, 4096),)


@pytest.mark.parametrize("size", [0, 9, 0xFFFFFFFF])
def test_write_multi_has_1_to_8_bytes_each(size: int) -> None:
    body = struct.pack("=QQII8s", 1, 0, 0, size, b"")
    with pytest.raises(ProtocolError, match="a write of"):
        messages.WriteMulti.unpack(body)


def test_write_multi_counts_its_writes() -> None:
    body = messages.WriteMulti((messages.RegionAccess(0, 0, 1, b"a"),)).pack()
    with pytest.raises(ProtocolError, match="instead of"):
        messages.WriteMulti.unpack(struct.pack("=Q", 1 << 60) + body[8:])


def test_names_of_commands() -> None:
    assert wire.command_name(9) == "REGION_READ"
    assert wire.command_name(14) == "0xe"


@pytest.mark.parametrize("error", [0, 1, 41, 133, 134, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_any_errno_has_a_text(error: int) -> None:
    """os.strerror() takes none of 2^31 or more."""
    text = str(wire.Refused(error))
    assert text == wire.error_text(error)
    assert text
    if error not in errno.errorcode and error:
        assert text == f"error {error:#x}"
