"""A software endpoint of the working tree, served to QEMU over vfio-user."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tools.lab.child import Child, wait_listening
from tools.lab.errors import LabError

REPOSITORY = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """Return the environment for programs of the working tree."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


class Endpoint:
    """A running ``rcdrv sim``.

    ``address`` and ``group`` are those of its function in the guest, set when the guest is up.
    """

    def __init__(self, spec: str, number: int, folder: Path, *, log_accesses: bool) -> None:
        self.spec = spec
        self.address = ""
        self.group = ""
        self.socket = folder / f"ep{number}.sock"
        self.access_log = folder / f"ep{number}.access"
        command = [sys.executable, "-m", "rcdrv", "sim", spec, "--socket", str(self.socket)]
        if log_accesses:
            command += ["--access-log", str(self.access_log)]
        self.child = Child(
            f"ep{number}-{Path(spec.split(',')[0]).stem}",
            command,
            folder,
            env=environment(),
        )

    def wait_ready(self, deadline: float) -> None:
        """Wait until it accepts a client."""
        if problem := wait_listening(self.child, self.socket, deadline):
            raise LabError(f"endpoint {self.spec}: {problem}")

    def deaths(self) -> list[str]:
        """Return a description of each process that ended unexpectedly."""
        return [self.child.epitaph()] if self.child.died else []

    def terminate(self) -> None:
        """Send SIGTERM, without waiting."""
        self.child.terminate()

    def close(self) -> None:
        """End it and wait."""
        self.child.stop()

    def qemu_device(self) -> dict[str, object]:
        """Return the QEMU device of its function."""
        path = {"type": "unix", "path": str(self.socket)}
        return {"driver": "vfio-user-pci", "socket": path}
