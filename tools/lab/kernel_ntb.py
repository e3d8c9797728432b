"""The kernel's own side of a vNTB, unmodified: what probes and judges the software endpoint.

ntb_hw_epf, with ntb_transport and ntb_netdev, or with ntb_pingpong, on top. Debian's kernels have
none of them; they are built out of tree. Debian's tun is beside them, for rcdrv's own side.
"""

from __future__ import annotations

import lzma
import re
import tempfile
from pathlib import Path

from tools.lab import cache
from tools.lab.debian import archive
from tools.lab.image import DEBIAN_NAME, image
from tools.lab.kbuild import compile_for

MODULES = ("ntb", "ntb_hw_epf", "ntb_transport", "ntb_netdev", "ntb_pingpong")

_SOURCES = re.compile(
    r"(drivers/ntb/(core|ntb_transport)\.c|drivers/ntb/hw/epf/ntb_hw_epf\.c"
    r"|drivers/ntb/test/ntb_pingpong\.c|drivers/net/ntb_netdev\.c)$"
)
_MAKE = """
mkdir ntb
find drivers -name '*.c' -exec mv {} ntb ';'
mv Makefile ntb
kernel_make /build/ntb
"""
_MAKEFILE = """\
obj-m := ntb.o ntb_hw_epf.o ntb_transport.o ntb_netdev.o ntb_pingpong.o
ntb-y := core.o
"""


def kernel_ntb(arch: str = "x86_64", *, rebuild: bool = False) -> Path:
    """The folder with the modules for the guest's kernel."""

    def build(folder: Path) -> None:
        compile_for(
            arch,
            folder,
            sources=_SOURCES,
            files={"Makefile": _MAKEFILE},
            script=_MAKE,
            results=[f"ntb/{module}.ko" for module in MODULES],
        )
        release = image(arch).release
        with tempfile.TemporaryDirectory() as tree:
            archive(DEBIAN_NAME[arch]).unpack((f"linux-modules-{release}",), Path(tree))
            packed = next(Path(tree).rglob("tun.ko.xz"))
            (folder / "tun.ko").write_bytes(lzma.decompress(packed.read_bytes()))

    recipe = ("debian.py", "image.py", "kbuild.py", "kernel_ntb.py")
    return cache.part(f"kernel-ntb-{arch}", recipe, build, rebuild=rebuild)
