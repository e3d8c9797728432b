"""The kernel's source, which Debian carries, as far as the lab builds any of it."""

from __future__ import annotations

import re
import tarfile
import tempfile
from pathlib import Path

from tools.lab import cache
from tools.lab.debian import archive, host_architecture

# Of the kernel's source: what describes the build, all headers, and the folders that the lab's
# modules and its kernels are in. That is a sixth of it.
_KEPT = re.compile(
    r"(.*/)?(Kbuild|Kconfig|Makefile)[^/]*"
    r"|arch/(arm64/(?!boot/dts/)|x86/(?!kvm/)).*"
    r"|(include|init|kernel|lib|mm|scripts|usr|virt)/.*"
    r"|(block|certs|crypto|fs|io_uring|ipc|net|security)/[^/]*"
    r"|fs/(configfs|debugfs|devpts|kernfs|nls|proc|ramfs|sysfs|tracefs)/.*"
    r"|drivers/(acpi|amba|base|bus|char|clocksource|firmware|iommu|irqchip|ntb|of|pci|pnp|power"
    r"|tty|vfio|virtio)/.*"
    r"|drivers/((clk|dma|rtc)/[^/]*|misc/pci_endpoint_test\.c|net/ntb_netdev\.c)"
    r"|tools/(arch/x86|build|include|lib|objtool|scripts)/.*"
    r"|tools/testing/selftests/(kselftest[^/]*|pci_endpoint/.*)"
)


def source(series: str) -> Path:
    """The kernel's source, as far as the lab builds any of it.

    :param series: as in ``7.3``
    """

    def build(folder: Path) -> None:
        package = f"linux-source-{series}"
        with tempfile.TemporaryDirectory(prefix=".building-", dir=cache.directory()) as temporary:
            archive(host_architecture()).unpack_one(package, Path(temporary))
            packed = Path(temporary) / "usr" / "src" / f"{package}.tar.xz"
            with tarfile.open(packed, "r|xz") as members:
                for member in members:
                    inner = Path(*Path(member.name).parts[1:])
                    if not _KEPT.fullmatch(str(inner)) or member.isdir():
                        continue
                    (folder / inner).parent.mkdir(parents=True, exist_ok=True)
                    if member.issym():
                        (folder / inner).symlink_to(member.linkname)
                    elif data := members.extractfile(member):
                        (folder / inner).write_bytes(data.read())
                        (folder / inner).chmod(member.mode)

    return cache.part(f"source-{series}", ("debian.py", "kernel_source.py"), build)


def series(release: str) -> str:
    """``7.3`` of ``7.3.4+deb13-amd64``."""
    return ".".join(release.split(".")[:2])
