"""What the rows of :mod:`rcdrv.host.doctor` look at, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rcdrv.host.function import HostFunction
from rcdrv.sysfs import Paths


class State(Enum):
    OK = "ok"
    NOT_OK = "not ok"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Finding:
    """Result of one row."""

    state: State
    detail: str
    cure: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    finding: Finding


@dataclass(frozen=True)
class User:
    """The user of rcdrv, and what that one may do."""

    name: str
    may_open: Callable[[Path], bool]
    """Whether reading and writing a device node is allowed."""
    locked_memory: int | None
    """Bytes that may be locked for DMA; None for as much as there is."""


@dataclass(frozen=True)
class Subject:
    """The host, and the function on it to look at, if there is one."""

    paths: Paths
    machine: str
    """As uname says it: ``x86_64``, ``aarch64``."""
    user: User
    function: HostFunction | None
    read_caps: Callable[[str], str]
    """Open the function and describe what its endpoint can do."""

    def text(self, path: Path) -> str:
        try:
            return path.read_text()
        except OSError:
            return ""

    @property
    def is_x86(self) -> bool:
        return self.machine in ("x86_64", "i686")

    @property
    def command_line(self) -> list[str]:
        return self.text(self.paths.proc / "cmdline").split()

    def has_table(self, name: str) -> bool:
        """Whether the firmware has an ACPI table of this name."""
        return (self.paths.sys / "firmware/acpi/tables" / name).exists()


def ok(detail: str) -> Finding:
    """Return the finding that there is nothing to do."""
    return Finding(State.OK, detail)


def bad(detail: str, cure: str) -> Finding:
    """Return the finding that something is in the way, with its cure."""
    return Finding(State.NOT_OK, detail, cure)


def skip(detail: str) -> Finding:
    """Return the finding that a row does not concern this host, and why."""
    return Finding(State.NOT_APPLICABLE, detail)
