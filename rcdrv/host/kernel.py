"""Writes to sysfs: the only module that changes the host."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rcdrv.errors import HostError
from rcdrv.host.function import HostFunction
from rcdrv.sysfs import Paths

WITHIN = 5.0
"""Seconds for a process that has a function open to close it."""


def change(what: str, path: Path, text: str) -> None:
    """Write to a file of sysfs.

    :param what: the error, if the kernel refuses
    :raises HostError: the kernel refuses
    """
    try:
        write(path, text)
    except OSError as error:
        raise refused(what, error) from error


def change_unused(what: str, function: HostFunction, name: str, text: str, later: str) -> None:
    """Write to a file of a function, which blocks while a process has the function open.

    :param later: what the kernel does when that process closes it
    :raises HostError: the kernel refuses, or the process does not close it within :data:`WITHIN`
    """
    try:
        write_within(function.path / name, text)
    except TimeoutError:
        raise HostError(
            f"{function.address} is still in use by {', '.join(function.holders) or 'somebody'}",
            hint=f"the kernel {later} as soon as that process closes it",
        ) from None
    except OSError as error:
        raise refused(what, error) from error


def write(path: Path, text: str) -> None:
    """Write by one write(2), which is one request to the kernel."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_within(path: Path, text: str, seconds: float = WITHIN) -> None:
    """Write with a time limit; after TimeoutError the write continues.

    Unbinding from vfio-pci and removing a function block, unkillably, until every process closes
    the function (vfio_unregister_group_dev() in drivers/vfio/vfio_main.c). So a child process
    writes, and may outlive this one.
    """
    child = os.fork()
    if child == 0:
        status = 0
        try:
            # A signal for this command must not abort the write, and the child must not keep
            # the command's pipes open.
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            write(path, text)
        except OSError as error:
            status = error.errno or errno.EIO
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while True:
        ended, how = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(path))
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(how)
    if code:
        raise OSError(code, os.strerror(code), str(path))


def refused(what: str, error: OSError) -> HostError:
    """Return the error for a failed write."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HostError(f"{what}: permission denied", hint="run it as root: sudo rcdrv ...")
    return HostError(
        f"{what}: {os.strerror(error.errno or 0)}", hint="the kernel's log (dmesg) may say why"
    )


def modprobe(module: str) -> None:
    """Try to load a module. The caller checks the effect."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            ["modprobe", module], stdin=subprocess.DEVNULL, capture_output=True, timeout=30
        )


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
