"""A root of Debian packages that were unpacked and not installed, to run programs in by chroot."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tools.lab import cache
from tools.lab.debian import archive, host_architecture

_UNNEEDED = ("doc", "info", "locale", "man")  # below usr/share: most of its files


def root(packages: Sequence[str], folder: Path) -> Path:
    """Copy a root with these packages and all that they depend on into ``folder``; return it.

    Its dpkg takes nothing for installed.
    """

    def build(tree: Path) -> None:
        archive(host_architecture()).unpack(packages, tree)
        for name in _UNNEEDED:
            shutil.rmtree(tree / "usr/share" / name, ignore_errors=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            if (tree / "usr" / name).exists():
                (tree / name).symlink_to(f"usr/{name}")
        for name in ("proc", "sys", "dev", "tmp", "root", "var/lib/dpkg/updates"):
            (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / "var/lib/dpkg/status").touch()

    content = " ".join(packages).encode()
    part = cache.part(f"root-{packages[0]}", ("debian.py", "root.py"), build, content=content)
    return Path(shutil.copytree(part, folder, symlinks=True))
