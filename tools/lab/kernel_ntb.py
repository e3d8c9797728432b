"""The kernel's own side of a vNTB, unmodified: what probes and judges the software endpoint.

ntb_hw_epf, with ntb_transport and ntb_netdev, or with ntb_pingpong, on top. Debian's kernels have
none of them; they are built as :mod:`tools.lab.kernel_driver` is.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from tools.lab import cache
from tools.lab.debian import host_architecture, output
from tools.lab.errors import LabError
from tools.lab.image import DEBIAN_NAME, image
from tools.lab.kernel_driver import ENTER, prepare

MODULES = ("ntb", "ntb_hw_epf", "ntb_transport", "ntb_netdev", "ntb_pingpong")

_SOURCES = re.compile(
    r"(drivers/ntb/(core|ntb_transport)\.c|drivers/ntb/hw/epf/ntb_hw_epf\.c"
    r"|drivers/ntb/test/ntb_pingpong\.c|drivers/net/ntb_netdev\.c)$"
)
_MAKE = """
mkdir /build/ntb
find /build/drivers -name '*.c' -exec mv {} /build/ntb ';'
cd /build/ntb
echo 'obj-m := ntb.o ntb_hw_epf.o ntb_transport.o ntb_netdev.o ntb_pingpong.o' >Makefile
echo 'ntb-y := core.o' >>Makefile
make -s -C "/usr/src/linux-headers-$RELEASE" M=/build/ntb modules
"""


def kernel_ntb(arch: str = "x86_64", *, rebuild: bool = False) -> Path:
    """The folder with the modules for the guest's kernel."""
    if DEBIAN_NAME[arch] != host_architecture():
        raise LabError(f"the kernel's NTB modules for {arch} can only be built on {arch}")
    release = image(arch).release

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".building-", dir=cache.directory()) as temporary:
            tree = Path(temporary)
            prepare(tree, release, _SOURCES)
            make = f"export PATH=/usr/bin RELEASE='{release}'; {_MAKE}"
            own = ("unshare", "--map-root-user", "--mount", "--propagation", "private")
            output([*own, "sh", "-c", ENTER, "enter", str(tree), make])
            for module in MODULES:
                shutil.copy(tree / "build" / "ntb" / f"{module}.ko", folder)

    recipe = ("debian.py", "image.py", "kernel_driver.py", "kernel_ntb.py")
    return cache.part(f"kernel-ntb-{arch}", recipe, build, rebuild=rebuild)
