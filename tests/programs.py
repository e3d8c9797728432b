"""Programs that some tests need beside Python."""

from __future__ import annotations

import os
import shutil

import pytest


def needed(name: str) -> str:
    """The path of a program; where it is missing, CI fails and a developer's run skips."""
    path = shutil.which(name)
    if path is None:
        reason = f"no {name} here: apt-get install {name}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path
