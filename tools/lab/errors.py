"""Errors of the lab."""

from __future__ import annotations


class LabError(Exception):
    """Failure of the lab itself, such as a guest that hangs; not of a command in the guest."""


class CommandTimeout(LabError):
    """A command in the guest exceeded its timeout and was killed."""
