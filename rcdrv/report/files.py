"""Reports as files."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def is_special(path: Path) -> bool:
    """Whether it is there and no regular file: a pipe, a device, a directory.

    What may not be looked at counts as not there: writing it says why it cannot be written.
    """
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it.

    A pipe or ``/dev/stdout`` cannot be replaced by a file, so it is written as it is.

    :raises OSError: it cannot be written there
    """
    if is_special(path):
        path.write_bytes(content)
        return
    path = path.resolve()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
