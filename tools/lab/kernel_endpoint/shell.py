"""A shell in an endpoint that runs already: scripts come and go by a socket beside its own.

It is what ``rcdrv fuzz layout --ep`` takes for a board's ``ssh``.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rcdrv.errors import RcdrvError
from rcdrv.vfio_user.listen import listen
from tools.lab.channel import Result
from tools.lab.errors import CommandTimeout, LabError
from tools.lab.guest import Guest

TIMEOUT = 300.0
"""Seconds that a script may take."""
_LONGEST = 1 << 20
"""Bytes of a script."""
_PATIENCE = 10.0
"""Seconds that a client may take to send its script, or to take the answer."""


def shell_socket(endpoint: Path) -> Path:
    """The shell's socket of the endpoint that is served at ``endpoint``."""
    return endpoint.with_name(f"{endpoint.name}.shell")


@contextlib.contextmanager
def shell_server(guest: Guest, path: Path) -> Iterator[None]:
    """Run in ``guest`` what clients at ``path`` send, one after the other.

    :raises LabError: there can be no socket
    """
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(listen(path))
        except RcdrvError as error:
            raise LabError(str(error)) from error
        thread = threading.Thread(target=_serve, args=[listener, guest], daemon=True)
        thread.start()
        try:
            yield
        finally:
            # A script that still runs ends with the guest, and then its thread.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(1.0)


def run_script(path: Path, script: bytes) -> Result:
    """Run a script by the server at ``path``.

    :raises LabError: there is none, or it went, or the script did not end
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT + 2 * _PATIENCE)
        try:
            connection.connect(str(path))
            connection.sendall(script)
            connection.shutdown(socket.SHUT_WR)
            data = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError as error:
            problem = error.strerror or str(error)
            raise LabError(f"{path}: {problem}: does the endpoint run?") from error
    try:
        answer = json.loads(data)
        return Result(answer["status"], answer["stdout"], answer["stderr"])
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(data.decode(errors="replace") or f"{path}: the endpoint went") from error


def _serve(listener: socket.socket, guest: Guest) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the end
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_PATIENCE)
            connection.sendall(_answer(guest, _script(connection)))


def _script(connection: socket.socket) -> bytes:
    """All that the client sends, within a time and a size."""
    script = b""
    deadline = time.monotonic() + _PATIENCE
    while data := connection.recv(65536):
        script += data
        if len(script) > _LONGEST or time.monotonic() > deadline:
            raise TimeoutError
    return script


def _answer(guest: Guest, script: bytes) -> bytes:
    try:
        process = guest.start(["sh"], timeout=TIMEOUT)
        process.write(script)
        process.close_stdin()
        done = process.wait()
    except CommandTimeout as error:
        return str(error).encode()
    except LabError as error:
        return f"the endpoint's guest: {error}".encode()
    return json.dumps(vars(done)).encode()
