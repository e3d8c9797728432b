"""An x86-64 kernel for the endpoint's guest that sees its own faults: KASAN, UBSAN, lockdep.

Of the same source as the stock one. It has no more than that guest needs, and no network. The
endpoint's modules are built for it as for the stock one, so they are instrumented, too.
"""

from __future__ import annotations

from pathlib import Path

from tools.lab import cache
from tools.lab.kbuild import compile_kernel

_OPTIONS = (
    # the tools' and Python's needs
    *("EXPERT", "64BIT", "PRINTK", "PRINTK_TIME", "BUG", "MULTIUSER", "MODULES", "MODULE_UNLOAD"),
    *("BLK_DEV_INITRD", "BINFMT_ELF", "BINFMT_SCRIPT", "DEVTMPFS", "TMPFS", "SHMEM"),
    *("PROC_FS", "SYSCTL", "PROC_PAGE_MONITOR", "SYSFS", "TTY", "UNIX98_PTYS", "MEMFD_CREATE"),
    *("FUTEX", "EPOLL", "EVENTFD", "SIGNALFD", "TIMERFD", "POSIX_TIMERS", "HIGH_RES_TIMERS"),
    *("NO_HZ_IDLE", "FILE_LOCKING", "ADVISE_SYSCALLS", "MEMBARRIER"),
    # the machine
    *("HYPERVISOR_GUEST", "PVH", "ACPI", "X86_MPPARSE", "SERIAL_8250", "SERIAL_8250_CONSOLE"),
    *("PCI", "PCI_MSI", "PCI_QUIRKS", "PCIEPORTBUS"),
    *("VIRTIO_MENU", "VIRTIO_PCI", "VIRTIO_CONSOLE"),
    # the endpoint's; the last two bring CRC32 and DMA_ENGINE, which cannot be chosen
    *("CONFIGFS_FS", "DEBUG_FS", "DMADEVICES", "RD_XZ", "ALTERA_MSGDMA"),
    # what it is for
    *("DEBUG_KERNEL", "KASAN", "KASAN_GENERIC", "KASAN_VMALLOC", "SLUB_DEBUG"),
    *("UBSAN", "UBSAN_BOUNDS", "UBSAN_SHIFT", "PROVE_LOCKING", "DEBUG_ATOMIC_SLEEP"),
    *("DEBUG_LIST", "DEBUG_OBJECTS", "DEBUG_OBJECTS_FREE", "DEBUG_OBJECTS_TIMERS"),
    *("DEBUG_OBJECTS_WORK", "DETECT_HUNG_TASK", "KALLSYMS", "STACKTRACE", "UNWINDER_FRAME_POINTER"),
    "SECTION_MISMATCH_WARN_ONLY",
)


def debug_kernel(*, rebuild: bool = False) -> Path:
    """The folder with ``kernel``, and what modules for it are built with."""

    # Not vmlinux by PVH: with KASAN it dies in xen_prepare_pvh(), whose memcmp() is instrumented.
    def build(folder: Path) -> None:
        compile_kernel(
            "x86_64", folder, options=_OPTIONS, target="arch/x86/boot/bzImage", for_modules=True
        )

    recipe = ("debian.py", "image.py", "kbuild.py", "debug_kernel.py")
    return cache.part("debug-kernel-x86_64", recipe, build, rebuild=rebuild)
