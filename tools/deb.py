"""Build the Debian package: ``python3 -m tools.deb [FOLDER]``; ``make deb`` does it.

The package is for all architectures and every Python that rcdrv supports. The same source gives the
same bytes with one version of dpkg-deb: files have the date of the last commit. Needs dpkg-deb, and
of Python the standard library alone.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

from rcdrv import __version__
from rcdrv.cli import whole_parser
from rcdrv.manual import data_files
from rcdrv.manual.grammar import command_tree
from tools.pyz import contents

ROOT = Path(__file__).parents[1]
TARGET = Path("dist")
# Who builds it, by the variables of Debian's tools; else nobody's address.
NAME = os.environ.get("DEBFULLNAME", "The rcdrv authors")
MAINTAINER = f"{NAME} <{os.environ.get('DEBEMAIL', 'rcdrv@example.org')}>"
LIBRARY = "usr/lib/python3/dist-packages"
RULE = "70-rcdrv.rules"

CONTROL = f"""\
Package: rcdrv
Version: {__version__}
Section: admin
Priority: optional
Architecture: all
Maintainer: {MAINTAINER}
Depends: python3 (>= 3.10), systemd | systemd-standalone-sysusers | systemd-sysusers
Recommends: python3-numpy, python3-rich
Suggests: python3-hypothesis, python3-matplotlib, python3-pytest
Description: userspace driver for bringing up PCIe endpoints
 A board in endpoint mode runs Linux's pci-epf-test or pci-epf-vntb. On the
 host that it is plugged into, rcdrv drives it through VFIO: it rings the
 doorbell, tests BARs, interrupts and DMA, and says what is broken and where
 to look. It needs no kernel module, no ID table and no rebuild.
 .
 A software endpoint, which QEMU can show to a guest, comes with it.
"""

# As dh_python3 and dh_installsysusers have it.
POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    systemd-sysusers ${DPKG_ROOT:+--root="$DPKG_ROOT"} rcdrv.conf
    if command -v py3compile >/dev/null 2>&1; then
        py3compile -p rcdrv
    fi
fi
"""
PRERM = """\
#!/bin/sh
set -e
if command -v py3clean >/dev/null 2>&1; then
    py3clean -p rcdrv
else
    find /usr/lib/python3/dist-packages/rcdrv -name __pycache__ -exec rm -rf {} +
fi
"""

SYSUSERS = """\
# Members may use the VFIO nodes of the endpoints that 70-rcdrv.rules knows.
g rcdrv -
"""

SCRIPT = """\
#!/usr/bin/python3
import sys

from rcdrv.__main__ import main

sys.exit(main())
"""

METADATA = f"""\
Metadata-Version: 2.1
Name: rcdrv
Version: {__version__}
"""

ENTRY_POINTS = """\
[console_scripts]
rcdrv = rcdrv.__main__:main

[pytest11]
rcdrv = rcdrv.pytest_plugin
"""


def package(date: int) -> Iterator[tuple[str, bytes]]:
    """Yield path and contents of each file, scripts of the maintainer included."""
    for name, data in contents():
        if name.startswith("rcdrv/"):
            yield f"{LIBRARY}/{name}", data
    info = f"{LIBRARY}/rcdrv-{__version__}.dist-info"
    yield f"{info}/METADATA", METADATA.encode()
    yield f"{info}/entry_points.txt", ENTRY_POINTS.encode()
    yield "usr/bin/rcdrv", SCRIPT.encode()
    yield f"usr/lib/udev/rules.d/{RULE}", (ROOT / "udev" / RULE).read_bytes()
    yield "usr/lib/sysusers.d/rcdrv.conf", SYSUSERS.encode()
    for path, text in data_files(command_tree(whole_parser())).items():
        if path.startswith("share/man/"):
            yield f"usr/{path}.gz", packed(text)
        else:  # where Debian's zsh looks
            path = path.replace("zsh/site-functions", "zsh/vendor-completions")
            yield f"usr/{path}", text.encode()
    licence = (ROOT / "LICENSE").read_text()
    yield "usr/share/doc/rcdrv/copyright", copyright_file(licence).encode()
    yield "usr/share/doc/rcdrv/changelog.gz", packed(changelog(date))
    yield "DEBIAN/control", CONTROL.encode()
    yield "DEBIAN/postinst", POSTINST.encode()
    yield "DEBIAN/prerm", PRERM.encode()


def packed(text: str) -> bytes:
    """Return a text as gzip, without date and name."""
    return gzip.compress(text.encode(), 9, mtime=0)


def copyright_file(licence: str) -> str:
    """Return the licence in Debian's machine-readable format (DEP 5)."""
    holder = re.search(r"^Copyright (?:\(c\) )?(.*)$", licence, re.MULTILINE)
    assert holder is not None
    text = licence[holder.end() :].strip()
    body = "\n".join(f" {line}" if line else " ." for line in text.splitlines())
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: rcdrv\n\n"
        f"Files: *\nCopyright: {holder[1]}\nLicense: Expat\n{body}\n"
    )


def changelog(date: int) -> str:
    """Return a changelog in Debian's format: that of rcdrv is in its manual."""
    return (
        f"rcdrv ({__version__}) unstable; urgency=medium\n\n"
        "  * A package of the source tree. CHANGELOG.md there says what is new.\n\n"
        f" -- {MAINTAINER}  {formatdate(date)}\n"
    )


def last_commit() -> int:
    """Return the date of the source: $SOURCE_DATE_EPOCH, or the last commit's."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told:
        return int(told)
    command = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


def build(folder: Path) -> Path:
    """Write the package into a folder; return its path."""
    date = last_commit()
    target = folder / f"rcdrv_{__version__}_all.deb"
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "rcdrv"
        sums = []
        for name, data in package(date):
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o755 if data.startswith(b"#!/") and is_program(name) else 0o644)
            if not name.startswith("DEBIAN/"):
                sums.append(f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}  {name}\n")
        (tree / "DEBIAN/md5sums").write_text("".join(sorted(sums, key=lambda line: line[34:])))
        for path in [tree, *tree.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (date, date))
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, target],
            env={**os.environ, "SOURCE_DATE_EPOCH": str(date)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
    return target


def is_program(name: str) -> bool:
    return name.startswith(("usr/bin/", "DEBIAN/"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python3 -m tools.deb", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=TARGET, help=f"default: {TARGET}")
    folder = parser.parse_args().folder
    if shutil.which("dpkg-deb") is None:
        sys.exit("tools.deb: no dpkg-deb here: apt install dpkg")
    print(build(folder))
