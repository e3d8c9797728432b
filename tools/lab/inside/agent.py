"""Run commands in the guest for the lab, several at a time, over one virtio-serial port.

One thread and one selector handle output, ends and time-outs of commands, and requests of the host,
so a hanging command delays no other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any, cast

from tools.lab.inside import functions
from tools.lab.inside.wire import PORT, Decoder, Exit, Kind, Message, Ready, Start, encode

CHUNK = 65536
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin",
    "PYTHONPATH": "/opt/rcdrv",
    "PYTHONUNBUFFERED": "1",
    "LANG": "C.UTF-8",
    "TERM": "linux",
}
# Seconds after SIGKILL until a process counts as stuck in the kernel.
STUCK_AFTER = 5.0


class Command:
    """One command of the host, from its start to the report of its end."""

    def __init__(self, agent: Agent, number: int, start: Start) -> None:
        self._agent = agent
        self._number = number
        self._timed_out = False
        self._pending = bytearray()
        self._input_ended = False
        self._terminal: int | None = None
        self._outputs: dict[int, Kind] = {}
        terminal = start["terminal"]
        far_end = -1
        if terminal is not None:
            self._terminal, far_end = os.openpty()
            self.resize(terminal)
        pipe = subprocess.PIPE if terminal is None else far_end
        home = "/root" if start["user"] == "root" else f"/home/{start['user']}"
        try:
            self._process = subprocess.Popen(
                start["argv"],
                env={**ENVIRONMENT, "HOME": home, "USER": start["user"], **start["env"]},
                cwd=start["cwd"],
                user=start["user"],
                group=start["user"],
                extra_groups=[],
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                bufsize=0,
                start_new_session=True,  # so that a signal reaches all that the command starts
                preexec_fn=_take_terminal if terminal is not None else None,
            )
        finally:
            if far_end >= 0:
                os.close(far_end)
        if self._terminal is not None:
            # A descriptor per direction, as the selector registers each once.
            self._input: int | None = os.dup(self._terminal)
            self._outputs[self._terminal] = Kind.STDOUT
        else:
            out, err, into = self._process.stdout, self._process.stderr, self._process.stdin
            assert out is not None
            assert err is not None
            assert into is not None
            self._input = into.fileno()
            self._outputs = {out.fileno(): Kind.STDOUT, err.fileno(): Kind.STDERR}
        for fd in (self._input, *self._outputs):
            os.set_blocking(fd, False)
        self.deadline = time.monotonic() + start["timeout"]
        self._pidfd = os.pidfd_open(self._process.pid)
        agent.selector.register(self._pidfd, selectors.EVENT_READ, self._on_exit)
        for fd in self._outputs:
            agent.selector.register(fd, selectors.EVENT_READ, self._on_output)

    def feed(self, data: bytes) -> None:
        """Write to the command's input; empty data closes it."""
        self._pending += data
        self._input_ended = self._input_ended or not data
        self._write_input()

    def signal(self, number: int) -> None:
        """Send a signal to the command and its children, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def resize(self, size: list[int]) -> None:
        """Set the size of the terminal."""
        if self._terminal is not None:
            winsize = struct.pack("HHHH", size[0], size[1], 0, 0)
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, winsize)

    def expire(self) -> None:
        """Handle the deadline: kill the command, or the second time report it as stuck."""
        if self._timed_out:
            self._end("the command is stuck in the kernel: it does not end on SIGKILL")
            return
        self._timed_out = True
        self.deadline = time.monotonic() + STUCK_AFTER
        self.signal(signal.SIGKILL)

    def _write_input(self) -> None:
        selector = self._agent.selector
        if self._input is None:
            self._pending.clear()
            return
        with contextlib.suppress(BlockingIOError):
            try:
                while self._pending:
                    del self._pending[: os.write(self._input, self._pending[:CHUNK])]
            except BrokenPipeError:
                self._pending.clear()
                self._input_ended = True
        waiting = self._input in selector.get_map()
        if self._pending and not waiting:
            selector.register(self._input, selectors.EVENT_WRITE, lambda _: self._write_input())
        if not self._pending and waiting:
            selector.unregister(self._input)
        if not self._pending and self._input_ended and self._process.stdin is not None:
            self._process.stdin.close()
            self._input = None

    def _on_output(self, fd: int) -> bool:
        """Forward a chunk of output; return whether there may be more."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # the other end of the terminal is closed
            data = b""
        if data:
            self._agent.send(self._outputs[fd], self._number, data)
        else:
            self._agent.selector.unregister(fd)
            del self._outputs[fd]
        return bool(data)

    def _on_exit(self, _: int) -> None:
        # A process that it left may keep its pipes open: read what is there now.
        for fd in list(self._outputs):
            while self._on_output(fd):
                pass
        self._process.wait()
        self._end("")

    def _end(self, error: str) -> None:
        selector = self._agent.selector
        for fd in (self._pidfd, *self._outputs):
            selector.unregister(fd)
        if self._input is not None and self._input in selector.get_map():
            selector.unregister(self._input)
        os.close(self._pidfd)
        if self._terminal is not None:
            os.close(self._terminal)
            if self._input is not None:
                os.close(self._input)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        status = self._process.returncode
        self._agent.ended(
            self._number,
            Exit(
                status=-signal.SIGKILL if status is None else status,
                timed_out=self._timed_out,
                error=error,
            ),
        )


class Agent:
    """Serves the host until it closes the connection."""

    def __init__(self, port: int) -> None:
        self.selector = selectors.DefaultSelector()
        self._port = port
        self._decoder = Decoder()
        self._commands: dict[int, Command] = {}
        self._host_is_there = True
        self.selector.register(port, selectors.EVENT_READ, self._on_port)

    def serve(self) -> None:
        """Handle events until the host closes the connection."""
        while self._host_is_there:
            deadlines = (command.deadline for command in self._commands.values())
            wait = min(deadlines, default=time.monotonic()) - time.monotonic()
            for key, _ in self.selector.select(min(wait, 60.0) if self._commands else None):
                # An earlier event of the same round may have ended this command.
                if self.selector.get_map().get(key.fd) is key:
                    key.data(key.fd)
            for command in list(self._commands.values()):
                if time.monotonic() >= command.deadline:
                    command.expire()

    def send(self, kind: Kind, command: int, payload: bytes) -> None:
        """Send one message to the host."""
        data = memoryview(encode(kind, command, payload))
        while data:
            data = data[os.write(self._port, data) :]

    def ended(self, number: int, how: Exit) -> None:
        """Report that a command ended."""
        del self._commands[number]
        self.send(Kind.EXIT, number, json.dumps(how).encode())

    def _on_port(self, port: int) -> None:
        data = os.read(port, CHUNK)
        if not data:
            self._host_is_there = False
        for message in self._decoder.feed(data):
            self._obey(message)

    def _obey(self, message: Message) -> None:
        number, payload = message.command, message.payload
        if message.kind == Kind.START:
            self._start(number, cast("Start", json.loads(payload)))
            return
        command = self._commands.get(number)
        if command is None:
            return  # it has ended meanwhile
        if message.kind == Kind.STDIN:
            command.feed(payload)
        elif message.kind == Kind.SIGNAL:
            command.signal(int(payload))
        elif message.kind == Kind.RESIZE:
            command.resize(json.loads(payload))

    def _start(self, number: int, start: Start) -> None:
        try:
            self._commands[number] = Command(self, number, start)
        except (OSError, ValueError, KeyError) as error:
            # As in a shell: 127 for a missing command, 126 for one that cannot be run.
            status = 127 if isinstance(error, FileNotFoundError) else 126
            self.send(Kind.STDERR, number, f"{start['argv'][0]}: {error}\n".encode())
            how = Exit(status=status, timed_out=False, error="")
            self.send(Kind.EXIT, number, json.dumps(how).encode())


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _open_port(patience: float = 20.0) -> int:
    # The port may appear late, as devices wait for an IOMMU that is a module.
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            with contextlib.suppress(OSError):
                if name.read_text().strip() == PORT:
                    return os.open(f"/dev/{name.parent.name}", os.O_RDWR)
        time.sleep(0.05)
    raise TimeoutError(f"no virtio-serial port {PORT}")


def main() -> None:
    """Prepare the guest, report it ready, and serve."""
    agent = Agent(_open_port())
    settings: dict[str, Any] = json.loads(Path("/lab/settings.json").read_text())
    ready = Ready(functions=[], error="")
    try:
        for port, number in settings["functions"]:
            ready["functions"].append(functions.behind(port, number, bind=settings["bind"]))
    except OSError as error:
        ready["error"] = str(error)
    agent.send(Kind.READY, 0, json.dumps(ready).encode())
    agent.serve()


if __name__ == "__main__":
    main()
