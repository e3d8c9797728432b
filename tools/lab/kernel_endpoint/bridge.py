"""The controller as a program: vfio-user servers for the endpoint's guest and the root complex."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from rcdrv.errors import RcdrvError
from rcdrv.files import open_output
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.layout import load_layout
from rcdrv.vfio_user.listen import listen
from rcdrv.vfio_user.server import Server
from tools.lab.kernel_endpoint.hardware import Hardware


class Socket:
    """The root complex's socket, visible while the endpoint is started.

    A stop hides the socket but does not close it, so clients stay connected, like a host.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hidden = path.with_name(f".{path.name}.{os.getpid()}")
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._stack = contextlib.ExitStack()

    def serve(self, hardware: Hardware) -> None:
        self._server = Server(hardware.function, wake=hardware.function.wake)

    def show(self, shown: bool) -> None:
        """Show or hide the socket."""
        assert self._server is not None
        if not shown:
            with contextlib.suppress(FileNotFoundError):
                self._path.rename(self._hidden)
        elif self._thread is not None:
            os.link(self._hidden, self._path)  # fails if another file is there by now
            self._hidden.unlink()
        else:
            listener = self._stack.enter_context(listen(self._path))
            self._thread = threading.Thread(target=self._server.serve, args=[listener])
            self._thread.start()

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
        if self._thread is not None:
            self._thread.join()
        self._stack.close()
        self._hidden.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one endpoint's guest until it disconnects; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layout")
    parser.add_argument("controller", type=Path, help="the socket for the endpoint's guest")
    parser.add_argument("socket", type=Path, help="the socket for the root complex")
    parser.add_argument("--access-log", type=Path)
    options = parser.parse_args(arguments)
    try:
        serve(options.layout, options.controller, options.socket, options.access_log)
    except RcdrvError as error:
        print(f"rcdrv: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def serve(spec: str, controller: Path, path: Path, access_log: Path | None) -> None:
    """Serve the controller of the layout ``spec``."""
    with contextlib.ExitStack() as stack:
        log = AccessLog(stack.enter_context(open_output(access_log))) if access_log else AccessLog()
        socket = Socket(path)
        hardware = Hardware(load_layout(spec), log, socket.show)
        stack.callback(hardware.close)
        socket.serve(hardware)
        server = Server(hardware)
        stack.callback(server.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: server.stop())
        stack.callback(socket.close)
        server.serve(stack.enter_context(listen(controller)), once=True)


if __name__ == "__main__":
    sys.exit(main())
