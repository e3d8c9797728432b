"""Files that a user names: every one that rcdrv writes or reads goes through here.

rcdrv often runs as root, and its files often go to /tmp. So a draft has a random name and is made
with O_EXCL, a path is never resolved before it is opened, and a symbolic link that another user
left in a directory open to everybody is refused. That is the rule of fs.protected_symlinks
(may_follow_link() in Linux's fs/namei.c), here on hosts that have it switched off too. Any other
link is followed by the kernel, in place.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rcdrv.errors import HostError, UsageError
from rcdrv.wait import Cancel, await_readable

LARGEST = 1 << 20
"""Limit in bytes of a file written by a person: a layout, a note."""
LARGEST_RESULT = 1 << 30
"""Limit in bytes of a file written by rcdrv: a million rings have 100 MB."""

_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
"""Not opened again: a file behind it would be truncated, and written from its start."""


def is_stream(path: Path) -> bool:
    """Return whether a path exists and is neither a regular file nor a directory.

    Unreadable paths count as missing: writing them says why they cannot be written.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        return str(path) in _STREAMS or kind not in (stat.S_IFREG, stat.S_IFDIR)
    except OSError:
        return False


def replace_file(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file atomically.

    A symbolic link, a pipe or a device cannot be replaced, so it is written as it is.

    :param mode: permissions; default those of the user's earlier file, else by the umask
    :raises UsageError: there is no such folder, or the path is one
    :raises HostError: it cannot be written there
    """
    os.close(begin_file(path, content, mode))


def _put(path: Path, before: os.stat_result | None, content: bytes, mode: int | None) -> int:
    """Put a new file in the place of a regular one, or of none; return it, open."""
    if mode is None and before is not None and before.st_uid == os.geteuid():
        mode = before.st_mode & 0o777
    draft = path.with_name(f".rcdrv-{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(draft, flags, 0o666 if mode is None else mode & 0o700)
    try:
        if mode is not None:
            os.fchmod(fd, mode)
        _write_all(fd, content)
        draft.replace(path)
    except BaseException:
        os.close(fd)
        draft.unlink(missing_ok=True)
        raise
    return fd


def _write_all(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def begin_file(path: Path, content: bytes, mode: int | None = None) -> int:
    """Write a file as :func:`replace_file` does, and return it open, for more to be written."""
    with _named(path):
        before = _lstat(path)
        if before is None or stat.S_ISREG(before.st_mode):
            return _put(path, before, content, mode)
        fd = _open(path, os.O_TRUNC)
        try:
            _write_all(fd, content)
        except BaseException:
            os.close(fd)
            raise
        return fd


def open_output(path: Path, *, append: bool = False) -> TextIO:
    """Open a file to be written line by line, as UTF-8.

    :raises HostError: it cannot be written there
    """
    with _named(path):
        fd = _open(path, os.O_APPEND if append else os.O_TRUNC)
    return os.fdopen(fd, "w", encoding="utf-8")


def make_folder(path: Path) -> None:
    """Make a folder and its parents. An existing one is trusted under the rules for links.

    :raises HostError: impossible, or another user's in a world-writable folder
    """
    with _named(path):
        path.mkdir(parents=True, exist_ok=True)
        _trusted(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the kernel refuses into an error that names the file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mistyped = error.errno in (errno.ENOENT, errno.EISDIR)
        raise (UsageError if mistyped else HostError)(
            f"cannot write {path}: {error.strerror}",
            hint="free some space, or name a file on another file system"
            if full
            else "name a file in a directory that you may write to",
        ) from error


def read_file(path: Path, limit: int = LARGEST, cancel: Cancel | None = None) -> bytes:
    """Read a regular file.

    :param cancel: read pipes and devices too, as this ends the wait for them
    :raises UsageError: unreadable, not a regular file, or more than ``limit`` bytes
    :raises Interrupted: the user asked to stop
    """
    try:
        # A FIFO without a writer would block open(2) for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            state = os.fstat(fd)
            if cancel is None and not stat.S_ISREG(state.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if state.st_size > limit:
                raise _too_large(limit)
            return read_descriptor(fd, limit, cancel)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def read_text(path: Path, limit: int = LARGEST) -> str:
    """Read a regular file of UTF-8 text. See :func:`read_file`."""
    try:
        return read_file(path, limit).decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None


def read_descriptor(fd: int, limit: int = LARGEST, cancel: Cancel | None = None) -> bytes:
    """Read an open file to its end.

    :raises OSError: it cannot be read, or has more than ``limit`` bytes
    :raises Interrupted: the user asked to stop
    """
    content = bytearray()
    while True:
        if cancel is not None:
            await_readable([fd, cancel.fd])
            cancel.check()
        try:
            piece = os.read(fd, 1 << 20)
        except BlockingIOError:  # its writer left and another came
            if cancel is None:  # a file of /proc that waits for more, as kmsg
                raise
            continue
        if not piece:
            return bytes(content)
        content += piece
        if len(content) > limit:
            raise _too_large(limit)


def _too_large(limit: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {limit >> 20} MiB")


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON from an untrusted file.

    :raises ValueError: not UTF-8, not JSON, or nested too deeply; without words of Python's
    """
    import json

    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"), **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text, at byte {error.start}") from None
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):
            raise ValueError("an integer of thousands of digits") from None
        raise


def _open(path: Path, flags: int) -> int:
    """Open for writing. A pipe must have its reader already: nothing waits for one."""
    if str(path) in _STREAMS:
        return os.dup(_STREAMS[str(path)])
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    before = _lstat(path)
    if before is not None and stat.S_ISLNK(before.st_mode):
        _trusted(path)
    else:
        flags |= os.O_NOFOLLOW  # nor may one be put there now
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "no process reads this pipe") from None
        raise
    os.set_blocking(fd, True)
    return fd


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _trusted(path: Path) -> None:
    """Refuse another user's file in a world-writable folder.

    :raises PermissionError: a link or folder of another user's in a world-writable directory
    """
    folder = path.parent.stat()
    if folder.st_mode & stat.S_IWOTH and path.lstat().st_uid not in (os.geteuid(), folder.st_uid):
        raise PermissionError(
            errno.EACCES, "another user put it into a directory that everybody may write to"
        )
