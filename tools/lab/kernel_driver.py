"""The kernel's own driver for pci-epf-test and its kselftest, unmodified, to compare rcdrv with.

Debian's kernels do not include the driver, but carry its source and the headers to build it.
"""

from __future__ import annotations

import re
from pathlib import Path

from tools.lab import cache
from tools.lab.kbuild import compile_for

MODULE, SELFTEST = "pci_endpoint_test.ko", "pci_endpoint_test"

_SOURCES = re.compile(
    r"(drivers/misc/pci_endpoint_test\.c|include/uapi/linux/pcitest\.h"
    r"|tools/testing/selftests/(kselftest\w*\.h|pci_endpoint/pci_endpoint_test\.c))$"
)
_MAKE = """
kernel_make /build/drivers/misc
gcc -O2 -static -I tools/testing/selftests -o pci_endpoint_test \\
    tools/testing/selftests/pci_endpoint/pci_endpoint_test.c
"""


def kernel_driver(arch: str = "x86_64", *, rebuild: bool = False) -> Path:
    """The folder with the module for the guest's kernel and the static test program."""

    def build(folder: Path) -> None:
        compile_for(
            arch,
            folder,
            sources=_SOURCES,
            files={"drivers/misc/Makefile": "obj-m := pci_endpoint_test.o\n"},
            script=_MAKE,
            results=(f"drivers/misc/{MODULE}", SELFTEST),
        )

    recipe = ("debian.py", "image.py", "kbuild.py", "kernel_driver.py")
    return cache.part(f"kernel-driver-{arch}", recipe, build, rebuild=rebuild)
