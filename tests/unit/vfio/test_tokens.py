"""VF tokens, and a device node that another program has opened."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from rcdrv.address import open_function
from rcdrv.errors import UsageError
from rcdrv.sysfs import Paths
from rcdrv.vfio import group, iommufd, open_descriptor, open_device, uapi

BDF, TOKEN = "0000:01:10.0", "BD8D9D2B-5a5f-4f5a-a211-f591514ba1f3"


def test_a_group_takes_the_token_with_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the comment above vfio_pci_core_match() has it."""
    asked: list[bytes] = []

    def call(_fd: int, request: int, argument: bytearray) -> int:
        assert request == uapi.GROUP_GET_DEVICE_FD
        asked.append(bytes(argument))
        return 7

    monkeypatch.setattr(group, "call", call)
    assert group.device_fd(Paths(), BDF, 3, TOKEN) == 7
    assert group.device_fd(Paths(), BDF, 3) == 7
    assert asked == [f"{BDF} vf_token={TOKEN}\0".encode(), f"{BDF}\0".encode()]


def test_iommufd_takes_the_token_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """struct vfio_device_bind_iommufd; without a token it is what older kernels know."""
    asked: list[tuple[int, int, bytes]] = []

    def call(_fd: int, request: int, argument: uapi.BindIommufd) -> int:
        assert request == uapi.DEVICE_BIND_IOMMUFD
        token = b""
        if isinstance(argument, uapi.BindIommufdToken):
            token = ctypes.string_at(argument.token_uuid_ptr, 16)
        asked.append((argument.argsz, argument.flags, token))
        return 0

    monkeypatch.setattr(iommufd, "call", call)
    iommufd.bind(3, 4, TOKEN)
    iommufd.bind(3, 4)
    assert asked == [(24, 1, bytes.fromhex(TOKEN.replace("-", ""))), (16, 0, b"")]


@pytest.mark.parametrize(
    "text", ["", "secret", TOKEN[:-1], TOKEN.replace("-", ""), "z" + TOKEN[1:]]
)
def test_a_token_is_a_uuid(text: str) -> None:
    with pytest.raises(UsageError, match="is not a UUID"):
        open_device(BDF, "group", vf_token=text)
    with pytest.raises(UsageError, match="is not a UUID"):
        open_descriptor(987, vf_token=text)


def test_a_token_where_nobody_takes_it() -> None:
    with pytest.raises(UsageError, match="sim:rk3588 takes no VF token"):
        open_function("sim:rk3588", vf_token=TOKEN)
    with pytest.raises(UsageError, match="sysfs has no VF token"):
        open_device(BDF, "sysfs", vf_token=TOKEN)


@pytest.mark.parametrize(
    "address", ["fd:", "fd:x", "fd:-1", "fd:3,", "fd:3,x", "fd:4294967296", f"fd:3,{'9' * 5000}"]
)
def test_no_descriptor(address: str) -> None:
    with pytest.raises(UsageError, match=r"names no descriptors|is not a device address"):
        open_function(address)


def test_a_descriptor_that_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="descriptor 987 is not open"):
        open_function("fd:987")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", Path("/dev/null")):
        fd = os.open(path, os.O_RDWR)
        try:
            with pytest.raises(UsageError, match=r"is not one of /dev/vfio/devices/vfio<n>"):
                open_function(f"fd:{fd}")
            assert os.fstat(fd)  # still the caller's
        finally:
            os.close(fd)


def test_a_node_without_an_iommu_is_refused_by_descriptor(tmp_path: Path) -> None:
    """The number of the node leads to sysfs; /dev/null stands in for it."""
    paths = Paths(sys=tmp_path)
    entry = tmp_path / "class/vfio-dev/noiommu-vfio0"
    entry.mkdir(parents=True)
    (tmp_path / "devices" / BDF).mkdir(parents=True)
    (entry / "subsystem").symlink_to(tmp_path / "class/vfio-dev")
    (entry / "device").symlink_to(tmp_path / "devices" / BDF)
    fd = os.open("/dev/null", os.O_RDWR)
    number = os.fstat(fd).st_rdev
    (tmp_path / "dev/char").mkdir(parents=True)
    link = tmp_path / f"dev/char/{os.major(number)}:{os.minor(number)}"
    link.symlink_to(entry)
    try:
        with pytest.raises(Exception, match=f"{BDF} has no IOMMU"):
            open_descriptor(fd, paths=paths)
    finally:
        os.close(fd)
