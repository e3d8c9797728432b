"""What is handed out, in a Debian 13 that has a Python and nothing else: ``chroot`` into its files.

``make deb-check`` does more, in a Debian that debootstrap installs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.programs import needed
from tests.unavailable import unavailable
from tools import deb, fresh, pyz
from tools.lab.root import root

NEEDS = ("python3", "systemd-standalone-sysusers")
# What a package may take for granted, as Essential, of what dpkg and maintainer scripts use.
ESSENTIAL = ("dpkg", "dash", "coreutils", "diffutils", "findutils", "grep", "libc-bin", "sed")
RING = ("--device", "sim:rk3588", "ring", "--bar", "4")
LIMIT = 120


def inside(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command by ``chroot``, in namespaces of its own."""
    namespaces = [needed("unshare"), "--mount", "--pid", "--fork", "--kill-child"]
    if os.geteuid():
        unavailable("chroot needs root")
    return subprocess.run(
        [*namespaces, "sh", "-ec", fresh.ENTER, "enter", place, "", *command],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def files(place: Path) -> set[str]:
    """Paths of the root, but for accounts, dpkg's database, and what Python compiles of its own."""
    found = (path.relative_to(place).as_posix() for path in place.rglob("*"))
    others = re.compile(r"etc/|var/|usr/lib/python3\.\d+/|usr/share/python3/debpython/")
    return {path for path in found if not others.match(path)}


def test_the_single_file_with_python3_minimal_names_the_package(tmp_path: Path) -> None:
    """Debian's python3-minimal has no mmap, which BARs and DMA need."""
    place = root(("python3-minimal", "dash"), tmp_path / "root")
    pyz.build(place / "rcdrv.pyz")
    for command in (RING, ("doctor",)):
        done = inside(place, "python3", "/rcdrv.pyz", *command)
        assert done.returncode == 3, done
        problem, hint = done.stderr.splitlines()
        assert problem == "rcdrv: this Python lacks its own module mmap"
        assert "Debian: apt install python3;" in hint


def test_the_package_in_a_root_of_what_it_depends_on(tmp_path: Path) -> None:
    """dpkg installs it, the maintainer scripts run, it rings, and nothing is left when it goes."""
    (depends,) = (line for line in deb.CONTROL.splitlines() if line.startswith("Depends: "))
    assert all(name in depends.split() for name in NEEDS)
    place = root((*NEEDS, *ESSENTIAL), tmp_path / "root")
    before = files(place)

    pyz.build(place / "rcdrv.pyz")
    single = inside(place, "python3", "/rcdrv.pyz", *RING)
    assert "ring 1: acknowledged" in single.stdout, single.stderr
    (place / "rcdrv.pyz").unlink()

    shutil.copy(deb.build(tmp_path), place / "rcdrv.deb")
    # Nothing is installed for this dpkg, so that dependencies would be missing.
    done = inside(place, "dpkg", "--force-depends", "--install", "/rcdrv.deb")
    assert done.returncode == 0, done.stderr
    (place / "rcdrv.deb").unlink()
    assert "\nrcdrv:x:" in f"\n{(place / 'etc/group').read_text()}"
    assert (place / f"{deb.LIBRARY}/rcdrv/__pycache__").exists()
    ring = inside(place, "rcdrv", *RING)
    assert "ring 1: acknowledged" in ring.stdout, ring.stderr

    done = inside(place, "dpkg", "--force-depends", "--purge", "rcdrv")
    assert done.returncode == 0, done.stderr
    assert files(place) - before == set()
