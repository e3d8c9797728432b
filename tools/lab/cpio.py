"""The kernel's initramfs format: the "newc" cpio archive.

Written here because owners, device nodes and links then need no root and no tool, and because
archives may follow each other in one file: the kernel unpacks them in order.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import BinaryIO


class Writer:
    """Appends one archive to ``stream``; everything in it belongs to root."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inode = 0
        self._folders: set[str] = set()

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder and those above it, unless this archive has it."""
        path = path.strip("/")
        if not path or path in self._folders:
            return
        self.folder(path.rpartition("/")[0])
        self._folders.add(path)
        self._entry(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        path = path.strip("/")
        self.folder(path.rpartition("/")[0])
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        path = path.strip("/")
        self.folder(path.rpartition("/")[0])
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int) -> None:
        """Add a character device."""
        path = path.strip("/")
        self.folder(path.rpartition("/")[0])
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def tree(self, root: Path, path: str, without: re.Pattern[str] | None = None) -> None:
        """Add what is under ``root`` as ``path``, except what matches ``without``."""
        for entry in sorted(root.rglob("*")):
            inner = entry.relative_to(root).as_posix()
            if without and without.search(inner):
                continue
            name = f"{path.strip('/')}/{inner}"
            if entry.is_symlink():
                self.link(name, str(entry.readlink()))
            elif entry.is_dir():
                self.folder(name)
            elif entry.is_file():
                self.file(name, entry.read_bytes(), entry.stat().st_mode & 0o755)

    def close(self) -> None:
        """End the archive."""
        self._entry("TRAILER!!!", 0)

    def _entry(
        self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device, device node, name length, checksum
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._stream.write(_padded(header + name) + _padded(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
