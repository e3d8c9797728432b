"""What the lab says when it cannot go on."""

from __future__ import annotations


class LabError(Exception):
    """The lab itself failed: no packages, no guest, a guest that hangs; not a command in it."""


class CommandTimeout(LabError):
    """A command in the guest ran longer than it was allowed to, and was killed there."""
