"""Where a kernel is built: what root may do without, and what a refusal says."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from tools.lab import debian, workshop
from tools.lab.errors import LabError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source" / "drivers").mkdir(parents=True)
    (tmp_path / "source" / "drivers" / "Kconfig").write_text("config PCI\n")
    return tmp_path / "source"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("dev", "proc", "source", "build"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    return tmp_path / "tree"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The programs that are run; ``unshare`` is refused, as in a chroot."""
    said: list[tuple[str, ...]] = []

    real = debian.output

    def output(command: tuple[str, ...], *, env: dict[str, str] | None = None) -> str:
        if command[0] == "cp":
            return real(command)
        assert env is not None
        said.append(tuple(command))
        assert "/usr/sbin" in env["PATH"].split(":")
        if command[0] == "unshare":
            raise LabError("unshare failed:\nunshare: unshare failed: Operation not permitted")
        return ""

    monkeypatch.setattr(workshop, "output", output)
    return said


def test_root_needs_neither_a_namespace_nor_a_mount(
    tree: Path, source: Path, said: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(workshop, "_has_devices", lambda _tree: True)
    workshop.run(tree, source, "make")
    ((program, root, *_),) = said
    assert (program, root) == ("chroot", str(tree))
    assert (tree / "source/drivers/Kconfig").samefile(source / "drivers/Kconfig")


@pytest.mark.parametrize("user", [0, 1000])
def test_a_refused_namespace_has_its_cure(
    tree: Path,
    source: Path,
    said: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    user: int,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(workshop, "_has_devices", lambda _tree: False)
    with pytest.raises(LabError, match="unshare failed: Operation not permitted") as refused:
        workshop.run(tree, source, "make")
    assert [command[0] for command in said] == ["unshare"]
    for cure in ("as root", "CAP_MKNOD", "user.max_user_namespaces", "--cap-add SYS_ADMIN"):
        assert cure in str(refused.value)


def test_devices_are_made_or_the_container_forbids_it(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def mknod(path: Path, mode: int, device: int) -> None:
        assert stat.S_ISCHR(mode)
        made.append((path.name, os.major(device), os.minor(device)))
        path.touch()

    monkeypatch.setattr(os, "mknod", mknod)
    assert workshop._has_devices(tree)
    assert made == [("null", 1, 3), ("zero", 1, 5), ("urandom", 1, 9)]

    def refused(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    shutil.rmtree(tree / "dev")
    (tree / "dev").mkdir()
    monkeypatch.setattr(os, "mknod", refused)
    assert not workshop._has_devices(tree)
