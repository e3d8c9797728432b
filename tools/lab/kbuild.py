"""Builds the kernel's source, which Debian carries: modules for a guest's kernel, or a kernel.

In a tree of Debian packages: as root in a chroot, which containers allow too, and as another user
in a user namespace.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tools.lab import cache
from tools.lab.debian import archive, host_architecture, output
from tools.lab.errors import LabError
from tools.lab.image import DEBIAN_NAME, image

COMPILER = ("gcc", "libc6-dev", "make")
SHELL = ("base-files", "bash", "coreutils", "dash", "findutils", "grep", "mawk", "perl-base", "sed")
# A whole kernel takes more than modules do.
KERNEL = ("bc", "bison", "diffutils", "flex")
_CROSS_COMPILERS = {"amd64": "gcc-x86-64-linux-gnu", "arm64": "gcc-aarch64-linux-gnu"}

# Of the kernel's source: what describes the build, all headers, and the folders that the lab's
# modules and its arm64 kernel are in. That is a tenth of it.
_KEPT = re.compile(
    r"(.*/)?(Kbuild|Kconfig|Makefile)[^/]*"
    r"|(arch/arm64/(?!boot/dts/)|include/|init/|kernel/|lib/|mm/|scripts/|usr/|virt/).*"
    r"|(block|certs|crypto|fs|io_uring|ipc|net|security)/[^/]*"
    r"|fs/(devpts|kernfs|proc|ramfs|sysfs)/.*"
    r"|drivers/(amba|base|bus|char|clocksource|firmware|iommu|irqchip|ntb|of|pci|power|tty|vfio"
    r"|virtio)/.*"
    r"|drivers/(clk/[^/]*|misc/pci_endpoint_test\.c|net/ntb_netdev\.c)"
    r"|arch/x86/entry/syscalls/.*"  # to which every architecture's build compares its own
    r"|tools/(include|scripts)/.*|tools/testing/selftests/(kselftest[^/]*|pci_endpoint/.*)"
)
_DEVICES = {"null": (1, 3), "zero": (1, 5), "urandom": (1, 9)}
_OWN = ("unshare", "--map-root-user", "--mount", "--propagation", "private")
_ENTER = """
mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc" && exec chroot "$1" /bin/sh -ec "$2"
"""


_CURE = """modules for the guest's kernel are built in a user namespace, which is refused here:
{error}
Run the lab as root, which needs CAP_SYS_CHROOT, CAP_MKNOD and a cache on a file system that is not
mounted nodev (docker gives them to root; podman: --cap-add MKNOD), or allow user namespaces
(never in a chroot):
  Debian: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000
  Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0
  docker, podman: run --cap-add SYS_ADMIN --security-opt seccomp=unconfined \\
    --security-opt apparmor=unconfined --security-opt systempaths=unconfined"""


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

    return cache.part(f"source-{series}", ("debian.py", "kbuild.py"), build)


def series(release: str) -> str:
    """``7.3`` of ``7.3.4+deb13-amd64``."""
    return ".".join(release.split(".")[:2])


def compile_for(
    arch: str,
    folder: Path,
    *,
    sources: re.Pattern[str],
    files: Mapping[str, str],
    script: str,
    results: Sequence[str],
    whole: Path | None = None,
) -> None:
    """Build for guests of ``arch`` and leave the results in ``folder``.

    :param sources: what of the kernel's source is needed, by its path there; it is found below
        ``/build``, where the script runs
    :param files: text files that are added to it, by their path below ``/build``
    :param script: has ``kernel_make FOLDER``, which builds modules as Kbuild does
    :param results: paths below ``/build``
    :param whole: where the sources are, instead of Debian's kernel source
    """
    if DEBIAN_NAME[arch] != host_architecture():
        raise LabError(f"kernel modules for {arch} can only be built on {arch}")
    release = image(arch).release
    stock = source(series(release))
    whole = whole or stock
    with _workshop((f"linux-headers-{release}",)) as tree:
        for path in whole.rglob("*"):
            inner = path.relative_to(whole)
            if sources.fullmatch(str(inner)) and path.is_file():
                (tree / "build" / inner).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, tree / "build" / inner)
        for name, text in files.items():
            (tree / "build" / name).write_text(text)
        headers = f"/usr/src/linux-headers-{release}"
        make = f"""
            kernel_make() {{ make -s -j"$(nproc)" -C '{headers}' M="$@" modules; }}
            {script}
        """
        _run(tree, stock, make)
        for name in results:
            shutil.copy(tree / "build" / name, folder)


def compile_kernel(arch: str, folder: Path, *, options: Sequence[str], target: str) -> None:
    """Build a kernel for guests of ``arch``, and leave it in ``folder``.

    :param options: all that is on beside what the kernel cannot do without
    :param target: what to make, and its path below ``arch/*/boot``
    """
    whole = source(series(image(arch).release))
    cross = DEBIAN_NAME[arch] != host_architecture()
    compiler = (_CROSS_COMPILERS[DEBIAN_NAME[arch]],) if cross else ()
    kernels_name = {"aarch64": "arm64"}.get(arch, arch)
    with _workshop((*KERNEL, *compiler)) as tree:
        chosen = "".join(f"CONFIG_{option}=y\n" for option in options)
        (tree / "build" / "wanted").write_text(chosen)
        make = f"""
            export ARCH={kernels_name} CROSS_COMPILE={f"{arch}-linux-gnu-" if cross else ""}
            export KBUILD_BUILD_USER=lab KBUILD_BUILD_HOST=lab
            make -s -C /source O=/build KCONFIG_ALLCONFIG=wanted allnoconfig >&2
            # An option whose own conditions are not met is dropped without a word.
            if grep -vxFf .config wanted; then exit 1; fi
            make -s -C /source O=/build -j"$(nproc)" {target} >&2
        """
        _run(tree, whole, make)
        shutil.copy(tree / "build" / "arch" / kernels_name / "boot" / target, folder / "kernel")


@contextlib.contextmanager
def _workshop(packages: Sequence[str]) -> Iterator[Path]:
    """A tree with a compiler and ``packages``, and an empty ``build``."""
    # Outside of the part, so that only the results stay.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=cache.directory()) as temporary:
        tree = Path(temporary)
        archive(host_architecture()).unpack((*COMPILER, *SHELL, *packages), tree)
        (tree / "usr" / "bin" / "awk").symlink_to("mawk")  # else a maintainer script's choice
        for name in ("dev", "proc", "tmp", "build", "source"):
            (tree / name).mkdir(exist_ok=True)
        yield tree


def _run(tree: Path, source: Path, script: str) -> None:
    """Run a shell script in the tree's ``/build``, with the kernel's source at ``/source``."""
    shutil.copytree(
        source, tree / "source", symlinks=True, copy_function=os.link, dirs_exist_ok=True
    )
    script = f"export PATH=/usr/bin LC_ALL=C\ncd /build\n{script}"
    # A user's PATH has no sbin on Debian, where chroot is.
    env = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    if os.geteuid() == 0 and _has_devices(tree):
        # All of /proc that a build reads, to mount nothing: objtool looks where its stack is, for
        # its message when it crashes (tools/objtool/signal.c, read_stack_limit()).
        (tree / "proc" / "self").mkdir()
        shutil.copy("/proc/self/maps", tree / "proc" / "self")
        output(["chroot", str(tree), "/bin/sh", "-ec", script], env=env)
        return
    try:
        output([*_OWN, "true"], env=env)
    except LabError as error:
        raise LabError(_CURE.format(error=str(error).partition("\n")[2])) from error
    output([*_OWN, "sh", "-c", _ENTER, "enter", str(tree), script], env=env)


def _has_devices(tree: Path) -> bool:
    """Make the devices that a build uses; return whether they work: a container may forbid it."""
    try:
        for name, (major, minor) in _DEVICES.items():
            node = tree / "dev" / name
            os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            os.close(os.open(node, os.O_RDWR))  # refused where the file system is mounted nodev
    except OSError:
        return False
    return True
