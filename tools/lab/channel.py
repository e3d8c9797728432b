"""The host's end of the connection to the agent in the guest."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from tools.lab.errors import CommandTimeout, LabError
from tools.lab.inside.wire import Decoder, Exit, Kind, Ready, Start, encode

# Seconds after a command's timeout in which the guest must report its end.
GRACE = 15.0
Sink = Callable[[bytes], None]


@dataclass(frozen=True)
class Result:
    """Exit status and output of a command; ``status`` is negative for a signal."""

    status: int
    stdout: str
    stderr: str


class Process:
    """A command in the guest."""

    def __init__(
        self, channel: Channel, number: int, timeout: float, sinks: tuple[Sink, Sink] | None
    ) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._channel = channel
        self._number = number
        self._timeout = timeout
        self._give_up = time.monotonic() + timeout + GRACE
        self._sinks = sinks or (self.stdout.extend, self.stderr.extend)
        self._exit: Exit | None = None

    def signal(self, number: int = signal.SIGINT) -> None:
        """Send a signal to the command and its children."""
        self._channel.send(Kind.SIGNAL, self._number, b"%d" % number)

    def write(self, data: bytes) -> None:
        """Write to the command's input."""
        if data:
            self._channel.send(Kind.STDIN, self._number, data)

    def close_stdin(self) -> None:
        """Close the command's input."""
        self._channel.send(Kind.STDIN, self._number)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the command's terminal."""
        self._channel.send(Kind.RESIZE, self._number, json.dumps([rows, columns]).encode())

    def poll(self) -> int | None:
        """Return the exit status, or None while the command runs."""
        return self._exit["status"] if self._exit else None

    def wait(self) -> Result:
        """Wait for the end of the command, within its timeout, counted from its start.

        :raises CommandTimeout: the timeout has expired
        """
        self._channel.wait_until(
            lambda: self._exit is not None,
            self._give_up,
            "the guest hangs: its agent does not answer",
        )
        how = cast("Exit", self._exit)
        result = Result(
            how["status"],
            self.stdout.decode(errors="replace"),
            self.stderr.decode(errors="replace"),
        )
        if how["timed_out"]:
            raise CommandTimeout(
                f"the command did not end in {self._timeout:g} s. {how['error']}\n"
                f"stdout: {result.stdout[-2000:]}\nstderr: {result.stderr[-2000:]}"
            )
        return result

    def wait_output(self, text: str, timeout: float = 60.0) -> None:
        """Wait until the command has written ``text``, to stdout or stderr."""
        wanted = text.encode()
        self._channel.wait_until(
            lambda: wanted in self.stdout or wanted in self.stderr or self._exit is not None,
            time.monotonic() + timeout,
            f"the command did not write {text!r}",
        )
        if wanted not in self.stdout and wanted not in self.stderr:
            raise LabError(f"the command ended without writing {text!r}: {self.stderr.decode()}")

    def received(self, kind: int, payload: bytes) -> None:
        """Process a message about this command; called by the channel."""
        if kind == Kind.STDOUT:
            self._sinks[0](payload)
        elif kind == Kind.STDERR:
            self._sinks[1](payload)
        elif kind == Kind.EXIT:
            self._exit = json.loads(payload)


class Channel:
    """Starts commands, and dispatches messages of the agent to them.

    :param trouble: returns why the connection has ended, for messages; may be empty
    """

    def __init__(self, connection: socket.socket, trouble: Callable[[], str]) -> None:
        self.ready: Ready | None = None
        self._connection = connection
        self._trouble = trouble
        self._processes: dict[int, Process] = {}
        self._count = 0
        self._ended = False
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        # A hanging guest does not read: sending a large message needs a time limit.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 30, 0))
        self._thread = threading.Thread(target=self._receive, name="lab agent", daemon=True)
        self._thread.start()

    def start(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        user: str = "root",
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        terminal: tuple[int, int] | None = None,
        sinks: tuple[Sink, Sink] | None = None,
    ) -> Process:
        """Start a command.

        :param terminal: rows and columns of a terminal for the command; without, it gets pipes
        :param sinks: receive stdout and stderr; without, both are collected
        """
        start = Start(
            argv=list(argv),
            env=dict(env or {}),
            cwd=cwd,
            user=user,
            timeout=timeout,
            terminal=list(terminal) if terminal else None,
        )
        with self._changed:
            self._count += 1
            number = self._count
            process = Process(self, number, timeout, sinks)
            self._processes[number] = process
        self.send(Kind.START, number, json.dumps(start).encode())
        return process

    def send(self, kind: Kind, command: int, payload: bytes = b"") -> None:
        """Send one message to the agent."""
        try:
            with self._sending:
                self._connection.sendall(encode(kind, command, payload))
        except OSError as error:
            raise LabError(self._trouble() or f"the guest is gone: {error}") from error

    def wait_until(self, condition: Callable[[], bool], deadline: float, problem: str) -> None:
        """Wait until ``condition`` holds.

        :raises LabError: ``problem`` at the deadline, or the guest is gone
        """
        with self._changed:
            while not condition():
                if time.monotonic() > deadline:
                    raise LabError(problem)
                if self._ended:
                    raise LabError(self._trouble() or "the guest is gone")
                self._changed.wait(min(0.5, max(0.0, deadline - time.monotonic())))

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(1.0)
        self._connection.close()

    def _receive(self) -> None:
        decoder = Decoder()
        while True:
            try:
                data = self._connection.recv(1 << 18)
            except OSError:
                data = b""
            with self._changed:
                for message in decoder.feed(data):
                    if message.kind == Kind.READY:
                        self.ready = json.loads(message.payload)
                        continue
                    process = self._processes.get(message.command)
                    if process is not None:
                        process.received(message.kind, message.payload)
                    if message.kind == Kind.EXIT:
                        self._processes.pop(message.command, None)
                self._ended = not data
                self._changed.notify_all()
            if not data:
                return
