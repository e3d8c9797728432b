"""Files are written whole, where they were meant to be, whatever somebody else put there."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rcdrv.errors import HostError, Interrupted, UsageError
from rcdrv.files import (
    begin_file,
    make_folder,
    open_output,
    parse_json,
    read_file,
    read_text,
    replace_file,
)
from rcdrv.wait import Cancel

ANOTHER = 12345


def append(path: Path) -> None:
    with open_output(path, append=True) as stream:
        stream.write("new")


def overwrite(path: Path) -> None:
    with open_output(path) as stream:
        stream.write("new")


def begin(path: Path) -> None:
    os.close(begin_file(path, b"new"))


WRITERS: list[Callable[[Path], None]] = [
    lambda path: replace_file(path, b"new"),
    lambda path: replace_file(path, b"new", mode=0o644),
    append,
    overwrite,
    begin,
]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as /tmp is: everybody may put something there, and take away what is theirs."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def planted(shared: Path, tmp_path: Path) -> Path:
    """A link of somebody else's, to a file of ours."""
    if os.geteuid():
        pytest.skip("only root can make what belongs to somebody else")
    (tmp_path / "precious").write_text("old")
    link = shared / "report.html"
    link.symlink_to(tmp_path / "precious")
    os.lchown(link, ANOTHER, ANOTHER)
    return link


@pytest.mark.parametrize("write", WRITERS)
def test_a_planted_link_is_refused(write: Callable[[Path], None], planted: Path) -> None:
    """may_follow_link() in fs/namei.c, with fs.protected_symlinks on or off."""
    with pytest.raises(HostError, match=r"cannot write .*report\.html: another user put it"):
        write(planted)
    assert planted.read_text() == "old"
    assert planted.is_symlink()
    assert [*planted.parent.iterdir()] == [planted]


def test_a_planted_folder_is_refused(shared: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make what belongs to somebody else")
    (shared / "out").mkdir()
    os.chown(shared / "out", ANOTHER, ANOTHER)
    with pytest.raises(HostError, match="another user put it"):
        make_folder(shared / "out")


@pytest.mark.parametrize("write", WRITERS)
def test_a_link_of_our_own_is_followed(
    write: Callable[[Path], None], shared: Path, tmp_path: Path
) -> None:
    for folder in (shared, tmp_path):
        link = folder / "latest"
        link.symlink_to(tmp_path / "target")
        write(link)
        assert link.is_symlink()
        assert (tmp_path / "target").read_text() == "new"
        (tmp_path / "target").unlink()


def test_a_draft_cannot_be_guessed_nor_opened_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    real = os.open

    def watched(path: Path, flags: int, mode: int = 0o777) -> int:
        made.append((Path(path).name, flags))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", watched)
    for _ in range(2):
        replace_file(tmp_path / "page.html", b"new")
    (first, flags), (second, _) = made
    assert first != second
    assert flags & os.O_EXCL
    assert [*tmp_path.iterdir()] == [tmp_path / "page.html"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_permissions(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "new", b"")
        replace_file(tmp_path / "note", b"", mode=0o644)
        (tmp_path / "secret").touch(0o600)
        replace_file(tmp_path / "secret", b"")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "note", "secret")]
    assert modes == [0o666 & ~umask, 0o644, 0o600]


def test_streams(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    replace_file(Path("/dev/null"), b"lost")
    replace_file(Path("/dev/stdout"), b"shown")
    assert capfd.readouterr().out == "shown"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(HostError, match="no process reads this pipe"):
        replace_file(tmp_path / "fifo", b"")


def test_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff" * 100)
    assert read_file(tmp_path / "text", 100) == b"\xff" * 100
    with pytest.raises(UsageError, match="larger than 0 MiB"):
        read_file(tmp_path / "text", 99)
    with pytest.raises(UsageError, match="not UTF-8 text"):
        read_text(tmp_path / "text")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            read_file(path)


def test_a_regular_file_that_would_block_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``replay:/proc/kmsg`` was read again and again, for ever: procfs calls it a regular file."""

    def empty(_fd: int, _size: int) -> bytes:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    path = tmp_path / "kmsg"
    path.touch()
    monkeypatch.setattr(os, "read", empty)
    with pytest.raises(UsageError, match=r"cannot read .*kmsg: Resource temporarily unavailable"):
        read_file(path)


def test_the_wait_for_a_pipe_ends_with_the_wish_to_stop(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    cancel = Cancel()
    threading.Timer(0.05, cancel.request).start()
    with pytest.raises(Interrupted):
        read_file(tmp_path / "fifo", cancel=cancel)


def test_a_pipe_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"{}")
    os.close(writer)
    assert read_file(Path(f"/dev/fd/{reader}"), cancel=Cancel()) == b"{}"
    os.close(reader)


def test_json_without_end() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


def test_a_full_file_system_is_no_matter_of_permission() -> None:
    with pytest.raises(HostError, match="No space left on device") as caught:
        replace_file(Path("/dev/full"), b"content")
    assert "free some space" in (caught.value.hint or "")
