"""VFIO modules with what Debian's kernels leave out: iommufd, VFIO's cdev, and no-IOMMU mode.

They are the kernel's own source with three options on, built for the guest's stock kernel, and
take the place of the stock modules.
"""

from __future__ import annotations

import re
from pathlib import Path

from tools.lab import cache
from tools.lab.kbuild import compile_for

_RESULTS = (
    "drivers/iommu/iommufd/iommufd_driver.ko",
    "drivers/iommu/iommufd/iommufd.ko",
    "drivers/vfio/vfio.ko",
    "drivers/vfio/vfio_iommu_type1.ko",
    "drivers/vfio/pci/vfio-pci-core.ko",
    "drivers/vfio/pci/vfio-pci.ko",
)
MODULES = tuple(Path(result).name for result in _RESULTS)
"""The files, in the order in which they have to be loaded."""

_SOURCES = re.compile(
    r"(drivers/iommu/iommufd/.*|drivers/iommu/[\w-]+\.h|lib/interval_tree\.c"
    r"|drivers/vfio/(pci/)?([\w-]+\.[ch]|Makefile))$"
)
_OPTIONS = {
    "IOMMUFD": "m",
    "IOMMUFD_DRIVER_CORE": "m",
    "IOMMUFD_NOIOMMU": "y",
    "VFIO_DEVICE_CDEV": "y",
    "VFIO_NOIOMMU": "y",
}
# iommufd wants an iterator that the kernel has compiled only where something built in wants it.
_SPAN = """\
#include <linux/export.h>
#undef EXPORT_SYMBOL_GPL
#define EXPORT_SYMBOL_GPL(symbol)
#define CONFIG_INTERVAL_TREE_SPAN_ITER 1
#include "../../../lib/interval_tree.c"
"""


def iommufd(arch: str = "x86_64", *, rebuild: bool = False) -> Path:
    """The folder with the modules; see :data:`MODULES`."""
    settings = " ".join(f"CONFIG_{name}={value}" for name, value in _OPTIONS.items())
    # The headers' autoconf.h does not define them. A module's option is CONFIG_..._MODULE there.
    defines = " ".join(
        f"-DCONFIG_{name}{'_MODULE' if value == 'm' else ''}=1" for name, value in _OPTIONS.items()
    )
    script = f"""
        echo 'iommufd-y += span.o' >>drivers/iommu/iommufd/Makefile
        # Other buses' and vendors' variants of VFIO are in folders that are not here.
        sed -i '\\,^obj-.*/$,{{\\,= pci/$,!d}}' drivers/vfio/Makefile drivers/vfio/pci/Makefile
        kernel_make /build {settings} KCFLAGS='{defines}'
    """

    def build(folder: Path) -> None:
        compile_for(
            arch,
            folder,
            sources=_SOURCES,
            files={
                "Kbuild": "obj-m := drivers/iommu/iommufd/ drivers/vfio/\n",
                "drivers/iommu/iommufd/span.c": _SPAN,
            },
            script=script,
            results=_RESULTS,
        )

    recipe = ("debian.py", "image.py", "kbuild.py", "iommufd.py")
    return cache.part(f"iommufd-{arch}", recipe, build, rebuild=rebuild)
