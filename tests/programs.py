"""Programs that some tests need beside Python."""

from __future__ import annotations

import shutil

from tests.unavailable import unavailable

PACKAGES = {"cc": "gcc libc6-dev", "man": "man-db", "ip": "iproute2", "setpriv": "util-linux"}


def needed(name: str) -> str:
    """The path of a program; where it is missing, CI fails and a developer's run skips."""
    path = shutil.which(name)
    if path is None:
        reason = f"no {name} here: apt-get install {PACKAGES.get(name, name)}"
        unavailable(reason)
    return path
