"""The way in which the kernel resets a function."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from rcdrv.sysfs import Paths


@contextlib.contextmanager
def reset_by(address: str, method: str, paths: Paths | None = None) -> Iterator[str]:
    """Let the kernel reset a function in one way only; afterwards in the ways of before.

    :param method: one of reset_method's in Documentation/ABI/testing/sysfs-bus-pci
    :returns: why that cannot be; empty when it is so
    """
    file = (paths or Paths()).function(address) / "reset_method"
    try:
        before = file.read_text()
        file.write_text(method)
    except OSError as error:
        # reset_method_store(): EINVAL for what the function's probe refuses
        yield f"{file}: {os.strerror(error.errno or 0)}"
        return
    try:
        yield ""
    finally:
        with contextlib.suppress(OSError):  # the function went away, and all of its files
            file.write_text(before if before.strip() else "\n")
