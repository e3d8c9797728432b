"""An arm64 kernel with iommufd built in, of the same source as the guests' stock one.

Interrupts by MSI need it there: the machine's virtio-iommu reserves the page of the interrupt
controller in a way that VFIO's group backend does not take, and what iommufd has instead
(``iommufd_sw_msi()``) is called by the kernel proper, where modules cannot add it
(``drivers/iommu/iommu-priv.h``). It has no more than the lab's guests need, which boot the faster.
"""

from __future__ import annotations

from pathlib import Path

from tools.lab import cache
from tools.lab.kbuild import compile_kernel

_OPTIONS = (
    # the tools' and Python's needs
    *("EXPERT", "CC_OPTIMIZE_FOR_SIZE", "PRINTK", "PRINTK_TIME", "BUG", "MULTIUSER"),
    *("BLK_DEV_INITRD", "BINFMT_ELF", "BINFMT_SCRIPT", "DEVTMPFS", "TMPFS", "SHMEM"),
    *("PROC_FS", "SYSCTL", "PROC_PAGE_MONITOR", "SYSFS", "TTY", "UNIX98_PTYS", "MEMFD_CREATE"),
    *("FUTEX", "EPOLL", "EVENTFD", "SIGNALFD", "TIMERFD", "POSIX_TIMERS", "HIGH_RES_TIMERS"),
    *("NO_HZ_IDLE", "FILE_LOCKING", "ADVISE_SYSCALLS", "MEMBARRIER"),
    # the machine
    *("SERIAL_AMBA_PL011", "SERIAL_AMBA_PL011_CONSOLE", "PCI", "PCI_MSI", "PCI_QUIRKS"),
    *("PCIEPORTBUS", "PCI_HOST_GENERIC", "VIRTIO_MENU", "VIRTIO_PCI", "VIRTIO_CONSOLE"),
    *("IOMMU_SUPPORT", "VIRTIO_IOMMU"),
    # what it is for
    *("IOMMUFD", "VFIO", "VFIO_GROUP", "VFIO_CONTAINER", "VFIO_DEVICE_CDEV", "VFIO_PCI"),
)


def iommufd_kernel(*, rebuild: bool = False) -> Path:
    """The kernel for aarch64 guests."""

    def build(folder: Path) -> None:
        compile_kernel("aarch64", folder, options=_OPTIONS, target="arch/arm64/boot/Image")

    recipe = ("debian.py", "image.py", "kbuild.py", "iommufd_kernel.py")
    return cache.part("iommufd-kernel-aarch64", recipe, build, rebuild=rebuild) / "kernel"
