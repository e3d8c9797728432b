"""The listening socket of a vfio-user server."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from rcdrv.errors import HostError


@contextlib.contextmanager
def listen(path: str | Path) -> Iterator[socket.socket]:
    """Listen on a UNIX socket at ``path`` that only this user may connect to; remove it at the end.

    :raises HostError: another file or a running server is there, or the socket cannot be created
    """
    path = Path(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # bind() gives the file the mode of the socket (net/unix/af_unix.c): others can never
        # connect, and the umask of the process stays.
        os.fchmod(listener.fileno(), 0o600)
        try:
            _remove_stale(path)
            listener.bind(str(path))
            listener.listen(8)
        except OSError as error:
            raise HostError(
                f"cannot listen on {path}: {error.strerror or error}",
                hint="choose a path of less than 108 bytes in a folder that you may write to",
            ) from error
        made = path.lstat()
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(path.lstat(), made):
                    path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove a socket whose server has ended; refuse everything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(
            f"{path} exists and is not a socket", hint="choose another path, or remove it"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full, so the server is alive
    raise HostError(
        f"a server is listening on {path} already", hint="stop it, or choose another path"
    )
