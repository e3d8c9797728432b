"""Errors, each with its exit status.

Every error that a user can meet derives from :class:`RcdrvError`. Its message names the fault;
``hint`` names the cure. Any other exception that escapes is a bug.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

_LONGEST = 2000


class RcdrvError(Exception):
    """Base of all errors that rcdrv raises on purpose."""

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(_shortened(message))
        self.message = _shortened(message)
        self.hint = _shortened(hint)


def _shortened(text: str) -> str:
    """Shorten quoted input, which may have a megabyte."""
    left_out = len(text) - _LONGEST
    if left_out <= 0:
        return text
    return f"{text[: _LONGEST - 200]} [... {left_out} characters ...] {text[-200:]}"


class EndpointError(RcdrvError):
    """The endpoint contradicts itself, for example by a capability list that loops."""


class UsageError(RcdrvError):
    """The request is invalid, or names something that does not exist."""

    exit_status = 2


class AccessError(UsageError):
    """An access outside a window, not aligned to its width, or of a width the host lacks."""


class HostError(RcdrvError):
    """The host is not ready: no such device, not bound, no permission, no IOMMU, no VFIO."""

    exit_status = 3


class DeviceLost(RcdrvError):
    """The device is gone, was taken back by the host, or its transport ended."""

    exit_status = 5


class Departed(DeviceLost):
    """A driver departs from the recording that it replays, which says nothing of the device."""


class Interrupted(RcdrvError):
    """The user asked to stop (SIGINT, SIGTERM, SIGHUP)."""

    exit_status = 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean X?`` for the known name that is most like a mistyped one, else ""."""
    from difflib import get_close_matches

    close = get_close_matches(word[:100], list(known), 1)
    return f"did you mean {close[0]}?" if close else ""


def missing_module(name: str) -> HostError:
    """Return the error for a module that this Python lacks: its own, or of another package."""
    import sys

    if name in sys.stdlib_module_names:  # distributions split the library; so do Yocto, Buildroot
        return HostError(
            f"this Python lacks its own module {name}",
            hint="install all of the standard library; Debian: apt install python3; Yocto: "
            "python3-modules; Buildroot: BR2_PACKAGE_PYTHON3_* of what is missing",
        )
    return HostError(
        f"this needs {name}, which is not installed for {sys.executable}",
        hint=f"{sys.executable} -m pip install {name}",
    )
