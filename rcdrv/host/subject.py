"""Input and output of the rows of :mod:`rcdrv.host.doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rcdrv.host.function import HostFunction
from rcdrv.sysfs import Paths, text_of


class State(Enum):
    OK = "ok"
    NOT_OK = "not ok"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Diagnosis:
    """Result of one row."""

    state: State
    detail: str
    cure: str = ""


@dataclass(frozen=True)
class User:
    """The user who runs rcdrv, with permissions and limits."""

    name: str
    may_open: Callable[[Path], bool]
    """Returns whether a device node may be read and written."""
    locked_memory: int | None
    """Limit of locked memory in bytes (for DMA); None if unlimited."""


@dataclass(frozen=True)
class Subject:
    """The host, and the function to examine, if any."""

    paths: Paths
    machine: str
    """Machine name of uname(2): ``x86_64``, ``aarch64``."""
    user: User
    function: HostFunction | None
    read_caps: Callable[[str], str]
    """Opens the function and describes its endpoint's capabilities."""

    @property
    def is_x86(self) -> bool:
        return self.machine in ("x86_64", "i686")

    @property
    def command_line(self) -> list[str]:
        return text_of(self.paths.proc / "cmdline").split()

    def has_table(self, name: str) -> bool:
        """Return whether the firmware has an ACPI table of this name."""
        return (self.paths.sys / "firmware/acpi/tables" / name).exists()


def ok(detail: str) -> Diagnosis:
    return Diagnosis(State.OK, detail)


def bad(detail: str, cure: str) -> Diagnosis:
    return Diagnosis(State.NOT_OK, detail, cure)


def skip(detail: str) -> Diagnosis:
    return Diagnosis(State.NOT_APPLICABLE, detail)
