"""The kernel's endpoint functions, core and NTB modules, and our endpoint controller, as modules.

The sources are the kernel's own. Out-of-tree building forces this and no more: Debian's kernels
have the endpoint core off, and of what is built into a kernel there is no module, so its files
become one module. A module has one initcall: theirs are called by ours (``driver/core.c``).
"""

from __future__ import annotations

import re
from pathlib import Path

from tools.lab import cache
from tools.lab.kbuild import compile_for

DRIVER = Path(__file__).parent / "driver"
MODULES = (
    *("pci-endpoint", "pci-epf-test", "ntb", "pci-epf-vntb", "rcdrv-epc"),
    *("ntb_transport", "ntb_netdev", "ntb_pingpong", "ntb_tool"),
)
"""In an order in which they can be loaded."""

SOURCES = re.compile(
    r"(drivers/pci/endpoint/pci-ep[\w-]*\.c|drivers/pci/endpoint/functions/pci-epf-(test|vntb)\.c"
    r"|drivers/ntb/(core|ntb_transport)\.c|drivers/ntb/test/ntb_(pingpong|tool)\.c"
    r"|drivers/net/ntb_netdev\.c)$"
)
INITCALLS = (
    r"/^module_(init|exit)\(pci_ep/d;"
    r" s/^static (int|void) (__init|__exit) (pci_epc|pci_epf|pci_ep_cfs)_(init|exit)\(/"
    r"\1 \2 \3_\4(/"
)
"""Changes by sed: a module cannot have the initcalls of the core."""
CHANGED = ("pci-epc-core.c", "pci-epf-core.c", "pci-ep-cfs.c")
UNCHANGED = (
    *("pci-epc-mem.c", "pci-ep-msi.c", "pci-epf-test.c", "pci-epf-vntb.c", "ntb_core.c"),
    *("ntb_transport.c", "ntb_netdev.c", "ntb_pingpong.c", "ntb_tool.c"),
)

_MAKE = f"""
mkdir endpoint
mv drivers/ntb/core.c endpoint/ntb_core.c
find drivers -name '*.c' -exec mv {{}} endpoint ';'
mv Kbuild core.c core.h rcdrv-epc.c endpoint
cd endpoint
sed -i -E '{INITCALLS}' {" ".join(CHANGED)}
kernel_make /build/endpoint
"""


def kernel_endpoint_modules(*, rebuild: bool = False) -> Path:
    """The folder with the modules for the x86-64 guest's kernel, and the sources as built."""

    def build(folder: Path) -> None:
        compile_for(
            "x86_64",
            folder,
            sources=SOURCES,
            files={path.name: path.read_text() for path in sorted(DRIVER.iterdir())},
            script=_MAKE,
            results=[
                *(f"endpoint/{module}.ko" for module in MODULES),
                *(f"endpoint/{name}" for name in (*CHANGED, *UNCHANGED)),
            ],
        )

    recipe = (
        *("debian.py", "image.py", "kbuild.py", "kernel_endpoint/build.py"),
        *(f"kernel_endpoint/driver/{path.name}" for path in sorted(DRIVER.iterdir())),
    )
    return cache.part("kernel-endpoint", recipe, build, rebuild=rebuild)
