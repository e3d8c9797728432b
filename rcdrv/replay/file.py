"""The file of a recording while it is made: it grows, so that a run that is killed leaves it."""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from pathlib import Path

from rcdrv.errors import HostError
from rcdrv.files import begin_file, is_stream, replace_file
from rcdrv.replay.recording import LARGEST_FILE, LARGEST_TEXT

BLOCK_TIME = 0.01
"""Seconds of a session that a run may lose which is killed; a block is written after it."""

_BLOCK = 16 << 10  # bytes of text, before compression, that wait to be written
_ROOM = 1 << 20  # for the line that fills a file, and the end


class RecordingFile:
    """Lines of text, compressed and written block by block.

    A pipe or a device gets everything at the end: it may be slow to take it.

    :raises HostError: the file cannot be written
    """

    def __init__(self, path: Path, head: str) -> None:
        self._path = path
        self._squeeze = zlib.compressobj(9, wbits=31)  # gzip, without a name and a time
        self._error: OSError | None = None
        self._held = bytearray()
        self._fd = -1
        self._text = self._size = self._pending = 0
        first = self._squeeze.compress(head.encode()) + self._squeeze.flush(zlib.Z_SYNC_FLUSH)
        if is_stream(path):
            self._write(first)
        else:
            self._fd = begin_file(path, first)
            self._size = len(first)
        self._flushed = time.monotonic()

    @property
    def is_full(self) -> bool:
        """No more lines have room, or none can be written any more."""
        full = self._size > LARGEST_FILE - _ROOM or self._text > LARGEST_TEXT - _ROOM
        return full or self._error is not None

    def add(self, line: str) -> None:
        self._text += len(line)
        self._pending += len(line)
        self._write(self._squeeze.compress(line.encode()))
        if self._pending > _BLOCK or time.monotonic() - self._flushed > BLOCK_TIME:
            self.flush()

    def flush(self) -> None:
        """Write what waits, so that it can be read whatever becomes of this process."""
        if self._pending:
            self._write(self._squeeze.flush(zlib.Z_SYNC_FLUSH))
            self._pending = 0
        self._flushed = time.monotonic()

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        if self._fd < 0:
            self._held += data
            return
        try:
            while data and self._error is None:
                data = data[os.write(self._fd, data) :]
        except OSError as error:  # a full disk must not keep the driver from its clean-up
            self._error = error

    def close(self) -> None:
        """End the file, which says that it is complete.

        :raises HostError: it could not be written
        """
        self._write(self._squeeze.flush())
        if self._fd < 0:
            replace_file(self._path, bytes(self._held))
            return
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.close(fd)
        if self._error is not None:
            raise HostError(
                f"cannot write {self._path}: {self._error.strerror}",
                hint="what is there is replayed as far as it goes",
            )
