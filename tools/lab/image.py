"""Boot image of a guest: Debian's stock kernel, and an initramfs with modules and Python."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.lab import cache
from tools.lab.cpio import Writer
from tools.lab.debian import archive, output
from tools.lab.errors import LabError
from tools.lab.toolbox import Toolbox, toolbox

# In the guest's initramfs, loadable with modprobe; those that they need are added.
MODULES = ("vfio-pci", "vfio_iommu_type1", "virtio-iommu", "igb", "9p", "9pnet_virtio", "configfs")
PACKAGES = ("busybox-static", "python3")
DEBIAN_NAME = {"x86_64": "amd64", "aarch64": "arm64"}

# Of a guest's tree: what no guest needs, and half of its size.
_SUPERFLUOUS = re.compile(
    r"^(boot|etc|var|usr/(share|sbin|games|include|lib/(modules|systemd|valgrind)))(/|$)"
    r"|^usr/bin/(?!busybox$|python3)"
    r"|^usr/lib/\w+-linux-gnu/(gconv|perl|ossl-modules|engines-3|libdb-|libsqlite3|libapt|cmake)"
    r"|^usr/lib/python3\.\d+/(test|idlelib|tkinter|ensurepip|lib2to3|turtledemo|pydoc_data)(/|$)"
    r"|\.(a|pyi|h|c|pxd)$"
)
_ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\n",
    "etc/hostname": "lab\n",
}


@dataclass(frozen=True)
class Image:
    """Boot image of one architecture."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """The uncompressed kernel."""
        return self.folder / "kernel"

    @property
    def initramfs(self) -> Path:
        """All that the guest needs and that does not change from boot to boot."""
        return self.folder / "initramfs"

    @property
    def release(self) -> str:
        """What ``uname -r`` says in the guest."""
        return (self.folder / "release").read_text().strip()


def image(arch: str, *, rebuild: bool = False) -> Image:
    """The kernel and initramfs for guests of architecture ``arch`` (QEMU's name)."""
    tools = toolbox()

    def build(folder: Path) -> None:
        source = archive(DEBIAN_NAME[arch])
        release = source.kernel_release()
        tree = folder / "tree"
        kernel = (f"linux-binary-{release}", f"linux-modules-{release}")
        source.unpack((*PACKAGES, *kernel), tree)
        modules = tree / "usr" / "lib" / "modules" / release
        (folder / "release").write_text(release + "\n")
        (folder / "kernel").write_bytes(_uncompressed((modules / "vmlinuz").read_bytes(), tools))
        _compile_python(tree, tools)
        with (folder / "initramfs").open("wb") as stream:
            writer = Writer(stream)
            _add_system(writer, tree)
            _add_modules(writer, modules, release)
            writer.close()
        shutil.rmtree(tree)

    recipe = ("debian.py", "image.py", "cpio.py")
    return Image(cache.part(f"image-{arch}", recipe, build, rebuild=rebuild))


def _compile_python(tree: Path, tools: Toolbox) -> None:
    # Compiling the standard library at the first import is slow under emulation. The code is the
    # same for all architectures, so the host's build of the same Python can do it. Unchecked: the
    # initramfs keeps no modification times.
    for library in (tree / "usr" / "lib").glob("python3*"):
        output(
            [
                *tools.command("python3"),
                *("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"),
                *("-x", "/(test|idlelib|tests|f2py)/", "-s", str(tree), "-p", "/", str(library)),
            ],
            env={"PYTHONHOME": str(tools.tree / "usr")},
        )


def _add_system(writer: Writer, tree: Path) -> None:
    writer.tree(tree, "", without=_SUPERFLUOUS)
    for name in ("bin", "sbin"):
        writer.link(name, "usr/bin")
    for name in ("lib", "lib64"):
        if (tree / "usr" / name).exists():
            writer.link(name, f"usr/{name}")
    writer.link("usr/sbin", "bin")
    writer.link("usr/bin/sh", "busybox")
    for name in ("dev", "etc", "home", "proc", "root", "run", "sys"):
        writer.folder(name)
    writer.folder("tmp", 0o1777)
    writer.device("dev/console", 5, 1)  # before devtmpfs is there, init's messages go here
    for name, text in _ACCOUNTS.items():
        writer.file(name, text.encode())
    # Debian chooses among implementations of BLAS and LAPACK when they are installed.
    for library in (tree / "usr" / "lib").glob("*-linux-gnu/*/lib*.so.3"):
        inner = library.relative_to(tree)
        writer.link(str(inner.parent.parent / library.name), f"{inner.parent.name}/{library.name}")


def _add_modules(writer: Writer, modules: Path, release: str) -> None:
    files = {_module_name(path.name): path for path in modules.rglob("*.ko.xz")}
    wanted = [name for name in map(_module_name, MODULES) if name in files]
    dependencies: dict[str, list[str]] = {}
    while wanted:
        name = wanted.pop()
        if name not in dependencies:
            data = lzma.decompress(files[name].read_bytes())
            dependencies[name] = _module_dependencies(data)
            wanted += dependencies[name]
            writer.file(f"usr/lib/modules/{release}/{name}.ko", data)
    table = "".join(
        f"{name}.ko: {' '.join(f'{needed}.ko' for needed in _closure(name, dependencies))}\n"
        for name in dependencies
    )
    writer.file(f"usr/lib/modules/{release}/modules.dep", table.encode())


def _module_name(text: str) -> str:
    return text.split(".")[0].replace("-", "_")


def _module_dependencies(module: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [_module_name(name) for name in found[1].decode().split(",") if name] if found else []


def _closure(name: str, dependencies: dict[str, list[str]]) -> list[str]:
    """All that module ``name`` needs; each follows what needs it, the order of modules.dep."""
    order: list[str] = []
    for needed in dependencies[name]:
        for one in (needed, *_closure(needed, dependencies)):
            if one in order:
                order.remove(one)
            order.append(one)
    return order


def _uncompressed(kernel: bytes, tools: Toolbox) -> bytes:
    """The kernel proper: QEMU starts it directly, a second sooner than one that unpacks itself."""
    if kernel[0x202:0x206] != b"HdrS":
        return kernel  # not x86's bzImage: arm64's stock kernel is not compressed
    # The x86 boot protocol says where the payload is; after it stands its uncompressed size.
    setup_sectors = kernel[0x1F1]
    offset, length = struct.unpack_from("<II", kernel, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = kernel[start : start + length - 4]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        command = [*tools.command("zstd"), "--decompress", "--stdout"]
        return subprocess.run(command, input=payload, capture_output=True, check=True).stdout
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(kernel[start : start + length])
    raise LabError(f"the kernel is compressed in an unknown way ({payload[:6].hex()})")
