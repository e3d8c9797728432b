"""Builds parts of the kernel's source, which Debian carries, for the kernel of a guest.

In a tree of Debian packages, in name spaces of its own, so this needs no root.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.lab import cache
from tools.lab.debian import archive, host_architecture, output
from tools.lab.errors import LabError
from tools.lab.image import DEBIAN_NAME, image

COMPILER = ("gcc", "libc6-dev", "make")
SHELL = ("base-files", "bash", "coreutils", "dash", "findutils", "grep", "mawk", "perl-base", "sed")

_ENTER = """
mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc" && exec chroot "$1" /bin/sh -ec "$2"
"""


def compile_for(
    arch: str,
    folder: Path,
    *,
    sources: re.Pattern[str],
    files: Mapping[str, str],
    script: str,
    results: Sequence[str],
) -> None:
    """Build for guests of ``arch`` and leave the results in ``folder``.

    :param sources: what of the kernel's source is needed, by its path there; it is found below
        ``/build``, where the script runs
    :param files: text files that are added to it, by their path below ``/build``
    :param script: has ``kernel_make FOLDER``, which builds modules as Kbuild does
    :param results: paths below ``/build``
    """
    if DEBIAN_NAME[arch] != host_architecture():
        raise LabError(f"kernel modules for {arch} can only be built on {arch}")
    release = image(arch).release
    # Outside of the part, so that only the results stay.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=cache.directory()) as temporary:
        tree = Path(temporary)
        _prepare(tree, release, sources)
        for name, text in files.items():
            (tree / "build" / name).write_text(text)
        headers = f"/usr/src/linux-headers-{release}"
        make = f"""
            export PATH=/usr/bin
            kernel_make() {{ make -s -j"$(nproc)" -C '{headers}' M="$@" modules; }}
            cd /build
            {script}
        """
        own = ("unshare", "--map-root-user", "--mount", "--propagation", "private")
        output([*own, "sh", "-c", _ENTER, "enter", str(tree), make])
        for name in results:
            shutil.copy(tree / "build" / name, folder)


def _prepare(tree: Path, release: str, sources: re.Pattern[str]) -> None:
    source = archive(host_architecture())
    source.unpack((*COMPILER, *SHELL, f"linux-headers-{release}"), tree)
    (tree / "usr" / "bin" / "awk").symlink_to("mawk")  # else a maintainer script's choice
    for name in ("dev", "proc", "tmp", "build"):
        (tree / name).mkdir(exist_ok=True)
    series = ".".join(release.split(".")[:2])
    source.unpack_one(f"linux-source-{series}", tree)
    with tarfile.open(tree / "usr" / "src" / f"linux-source-{series}.tar.xz", "r|xz") as packed:
        for member in packed:
            inner = Path(*Path(member.name).parts[1:])
            if member.isfile() and sources.fullmatch(str(inner)):
                data = packed.extractfile(member)
                assert data is not None
                (tree / "build" / inner).parent.mkdir(parents=True, exist_ok=True)
                (tree / "build" / inner).write_bytes(data.read())
