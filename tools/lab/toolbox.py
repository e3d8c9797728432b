"""Programs that the host runs and may not have, or has too old: QEMU, a guest's Python, zstd."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.lab import cache
from tools.lab.debian import archive, host_architecture

PACKAGES = ("qemu-system-x86", "qemu-system-arm", "python3", "zstd")


@dataclass(frozen=True)
class Toolbox:
    """A tree of programs for this host, newer than its own, run without installing them."""

    tree: Path

    def command(self, program: str) -> list[str]:
        """The beginning of a command line that runs ``program``."""
        libraries = next((self.tree / "usr" / "lib").glob("*-linux-gnu"))
        loader = next(libraries.glob("ld-linux-*.so.*"))
        binary = self.tree / "usr" / "bin" / program
        return [str(loader), "--library-path", str(libraries), str(binary)]

    def qemu(self, arch: str) -> list[str]:
        """The beginning of a command line that runs QEMU."""
        share = self.tree / "usr" / "share"
        firmware = ("-L", str(share / "qemu"), "-L", str(share / "seabios"))
        return [*self.command(f"qemu-system-{arch}"), *firmware]


def toolbox(*, rebuild: bool = False) -> Toolbox:
    """The toolbox, from the cache or built into it."""

    def build(folder: Path) -> None:
        archive(host_architecture()).unpack(PACKAGES, folder)

    recipe = ("debian.py", "toolbox.py")
    return Toolbox(cache.part("toolbox", recipe, build, rebuild=rebuild))
