"""Selection of the reset method of a function."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from rcdrv.sysfs import Paths


@contextlib.contextmanager
def reset_by(address: str, method: str, paths: Paths | None = None) -> Iterator[str]:
    """Restrict the kernel to one reset method of a function; restore the methods at the end.

    :param method: a value of reset_method in Documentation/ABI/testing/sysfs-bus-pci
    :returns: the error if the kernel refuses the method, else an empty string
    """
    file = (paths or Paths()).function(address) / "reset_method"
    try:
        before = file.read_text()
        file.write_text(method)
    except OSError as error:
        # reset_method_store(): EINVAL if the method's probe refuses the function
        yield f"{file}: {os.strerror(error.errno or 0)}"
        return
    try:
        yield ""
    finally:
        with contextlib.suppress(OSError):  # the function is gone
            file.write_text(before if before.strip() else "\n")
