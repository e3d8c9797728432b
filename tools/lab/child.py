"""Programs that the lab runs on the host, with bounded logs. None outlives the lab."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


class Log:
    """Output of a program: a file of limited size, and the end in memory.

    QEMU writes endlessly when its vfio-user server dies.
    """

    LIMIT = 4 << 20

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self.path = path
        self._stream = stream
        self._recent: deque[bytes] = deque()
        self._recent_size = self._total = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._copy, name=path.name, daemon=True)
        self._thread.start()

    def text(self) -> str:
        """Return the last 64 KiB or more."""
        with self._lock:
            return b"".join(self._recent).decode(errors="replace").replace("\r", "")

    def since(self, mark: int) -> tuple[str, int]:
        """Return the complete lines from byte ``mark`` on, as far as kept, and the next mark."""
        with self._lock:
            data, end = b"".join(self._recent), self._total
        data = data[max(0, len(data) - (end - mark)) :] if mark < end else b""
        whole = data.rfind(b"\n") + 1
        return data[:whole].decode(errors="replace").replace("\r", ""), end - len(data) + whole

    def tail(self, lines: int = 20) -> str:
        """Return the last lines."""
        return "\n".join(self.text().splitlines()[-lines:])

    def finish(self) -> None:
        """Wait for the last output of a program that has ended."""
        self._thread.join(1.0)

    def _copy(self) -> None:
        size = 0
        with self.path.open("wb", buffering=0) as file:
            while data := self._stream.read(65536):
                with self._lock:
                    self._recent.append(data)
                    self._recent_size += len(data)
                    self._total += len(data)
                    while self._recent_size - len(self._recent[0]) > 65536:
                        self._recent_size -= len(self._recent.popleft())
                if size < self.LIMIT:
                    file.write(data)
                    size += len(data)
                    if size >= self.LIMIT:
                        file.write(b"\n[the lab keeps no more of this log]\n")
        self._stream.close()


class Child:
    """A running program of the lab, with its output in ``folder/NAME.log`` and ``NAME.err``."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.stopped = False
        self._process = subprocess.Popen(
            # Killed when the thread that starts it ends, also if the lab is killed: a guest
            # belongs to the thread that boots it.
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            env=env,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C reaches the lab, which ends its children in order
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.out = Log(self._process.stdout, folder / f"{name}.log")
        self.err = Log(self._process.stderr, folder / f"{name}.err")

    @property
    def pid(self) -> int:
        """Process ID."""
        return self._process.pid

    @property
    def died(self) -> bool:
        """Whether it ended without :meth:`terminate`."""
        return not self.stopped and self.status is not None

    @property
    def status(self) -> int | None:
        """How it ended, or nothing while it runs."""
        return self._process.poll()

    def wait_end(self, timeout: float) -> None:
        """Wait a moment for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def epitaph(self) -> str:
        """Return its exit status and the end of its messages."""
        self.err.finish()
        lines = self.err.tail() or "(no messages)"
        return f"{self.name} ended with status {self.status}:\n{lines}"

    def terminate(self) -> None:
        """Send SIGTERM, without waiting."""
        self.stopped = self.stopped or self.status is None
        self._process.terminate()

    def stop(self, grace: float = 3.0) -> None:
        """Terminate it, and kill it after ``grace`` seconds."""
        self.terminate()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.out.finish()
        self.err.finish()


def listening(socket: Path) -> bool:
    """Return whether a server listens on a UNIX socket, without connecting to it."""
    accepts = 0x10000  # __SO_ACCEPTCON
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(socket) and int(fields[3], 16) & accepts:
            return True
    return False


def wait_listening(child: Child, socket: Path, deadline: float) -> str:
    """Wait until ``child`` listens on ``socket``; return the problem, or an empty string."""
    while not listening(socket):
        if child.died:
            return child.epitaph()
        if time.monotonic() > deadline:
            return f"{child.name} does not listen on its socket:\n{child.err.tail()}"
        time.sleep(0.02)
    return ""
