"""A tree of Debian packages in which the kernel's source is built.

As root in a chroot, which containers allow too, and as another user in a user namespace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.lab import cache
from tools.lab.debian import archive, host_architecture, output
from tools.lab.errors import LabError

COMPILER = ("gcc", "libc6-dev", "make")
SHELL = (
    *("base-files", "bash", "coreutils", "dash", "findutils", "grep", "gzip", "mawk", "perl-base"),
    "sed",
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


@contextlib.contextmanager
def workshop(packages: Sequence[str]) -> Iterator[Path]:
    """A tree with a compiler and ``packages``, and an empty ``build``."""
    wanted = (*COMPILER, *SHELL, *packages)

    def unpack(folder: Path) -> None:
        tree = folder / "tree"
        archive(host_architecture()).unpack(wanted, tree)
        (tree / "usr" / "bin" / "awk").symlink_to("mawk")  # else a maintainer script's choice
        for name in ("doc", "info", "locale", "man"):
            shutil.rmtree(tree / "usr" / "share" / name, ignore_errors=True)

    content = " ".join(wanted).encode()
    made = cache.part("workshop", ("debian.py", "workshop.py"), unpack, content=content)
    # Outside of the part, so that only the results stay.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=cache.directory()) as temporary:
        tree = Path(temporary) / "tree"
        link(made / "tree", tree)
        for name in ("dev", "proc", "tmp", "build"):
            (tree / name).mkdir(exist_ok=True)
        yield tree


def link(source: Path, target: Path) -> None:
    """Copy a tree by hard links: a build writes to none of its files."""
    output(["cp", "-al", f"{source}/.", str(target)])


def run(tree: Path, source: Path | None, script: str) -> None:
    """Run a shell script in the tree's ``/build``, with the kernel's source at ``/source``."""
    if source is not None:
        link(source, tree / "source")
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
