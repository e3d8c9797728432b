"""The kernel's own driver for pci-epf-test and its kselftest, unmodified, to compare rcdrv with.

Debian's kernels do not include the driver, but carry its source and the headers to build it. Both
are built in a tree of Debian packages, in name spaces of its own, so this needs no root either.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from pathlib import Path

from tools.lab import cache
from tools.lab.debian import archive, host_architecture, output
from tools.lab.errors import LabError
from tools.lab.image import DEBIAN_NAME, image

COMPILER = ("gcc", "libc6-dev", "make")
SHELL = ("base-files", "bash", "coreutils", "dash", "findutils", "grep", "mawk", "perl-base", "sed")
MODULE, SELFTEST = "pci_endpoint_test.ko", "pci_endpoint_test"

_SOURCES = re.compile(
    r"(drivers/misc/pci_endpoint_test\.c|include/uapi/linux/pcitest\.h"
    r"|tools/testing/selftests/(kselftest\w*\.h|pci_endpoint/pci_endpoint_test\.c))$"
)
ENTER = """
mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc" && exec chroot "$1" /bin/sh -ec "$2"
"""
_MAKE = """
cd /build
echo 'obj-m := pci_endpoint_test.o' >drivers/misc/Makefile
make -s -C "/usr/src/linux-headers-$RELEASE" M=/build/drivers/misc modules
gcc -O2 -static -I tools/testing/selftests -o pci_endpoint_test \\
    tools/testing/selftests/pci_endpoint/pci_endpoint_test.c
"""


def kernel_driver(arch: str = "x86_64", *, rebuild: bool = False) -> Path:
    """The folder with the module for the guest's kernel and the static test program."""
    if DEBIAN_NAME[arch] != host_architecture():
        raise LabError(f"the kernel's driver for {arch} can only be built on {arch}")
    release = image(arch).release

    def build(folder: Path) -> None:
        # Outside of the part, so that only the results stay.
        with tempfile.TemporaryDirectory(prefix=".building-", dir=cache.directory()) as temporary:
            tree = Path(temporary)
            prepare(tree, release, _SOURCES)
            make = f"export PATH=/usr/bin RELEASE='{release}'; {_MAKE}"
            own = ("unshare", "--map-root-user", "--mount", "--propagation", "private")
            output([*own, "sh", "-c", ENTER, "enter", str(tree), make])
            shutil.copy(tree / "build" / "drivers" / "misc" / MODULE, folder)
            shutil.copy(tree / "build" / SELFTEST, folder)

    recipe = ("debian.py", "image.py", "kernel_driver.py")
    return cache.part(f"kernel-driver-{arch}", recipe, build, rebuild=rebuild)


def prepare(tree: Path, release: str, sources: re.Pattern[str]) -> None:
    """Unpack compiler and headers into ``tree``, and the kernel's ``sources`` below its /build."""
    source = archive(host_architecture())
    source.unpack((*COMPILER, *SHELL, f"linux-headers-{release}"), tree)
    (tree / "usr" / "bin" / "awk").symlink_to("mawk")  # else a maintainer script's choice
    for name in ("dev", "proc", "tmp", "build"):
        (tree / name).mkdir(exist_ok=True)
    series = ".".join(release.split(".")[:2])
    source.unpack_one(f"linux-source-{series}", tree)
    with tarfile.open(tree / "usr" / "src" / f"linux-source-{series}.tar.xz", "r|xz") as members:
        for member in members:
            inner = Path(*Path(member.name).parts[1:])
            if member.isfile() and sources.fullmatch(str(inner)):
                data = members.extractfile(member)
                assert data is not None
                (tree / "build" / inner).parent.mkdir(parents=True, exist_ok=True)
                (tree / "build" / inner).write_bytes(data.read())
