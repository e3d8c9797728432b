"""Builds the kernel's source: modules for a guest's kernel, or a kernel."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.lab.debian import host_architecture
from tools.lab.errors import LabError
from tools.lab.image import DEBIAN_NAME, image
from tools.lab.kernel_source import series, source
from tools.lab.workshop import link, run, workshop

# A whole kernel takes more than modules do.
KERNEL = ("bc", "bison", "diffutils", "flex")
OBJTOOL = ("libelf-dev",)  # which x86's kernel builds and runs
_KERNELS_NAME = {"aarch64": "arm64", "x86_64": "x86_64"}
_CROSS_COMPILERS = {"amd64": "gcc-x86-64-linux-gnu", "arm64": "gcc-aarch64-linux-gnu"}


def compile_for(
    arch: str,
    folder: Path,
    *,
    files: Mapping[str, bytes | str],
    script: str,
    results: Sequence[str],
    sources: re.Pattern[str] | None = None,
    before: Path | None = None,
    after: Path | None = None,
    kernel: Path | None = None,
) -> None:
    """Build for guests of ``arch`` and leave the results in ``folder``.

    :param files: what is built, by its path below ``/build``, where the script runs
    :param script: has ``kernel_make FOLDER``, which builds modules as Kbuild does
    :param results: files below ``/build``
    :param sources: what is needed of the kernel's source beside ``files``, by its path there
    :param before: ``/build`` as another build left it: only what has changed since is built anew
    :param after: where to leave ``/build`` for that
    :param kernel: a folder that :func:`compile_kernel` filled, to build for that kernel instead of
        the guests' stock one
    """
    if DEBIAN_NAME[arch] != host_architecture():
        raise LabError(f"kernel modules for {arch} can only be built on {arch}")
    release = image(arch).release
    whole = source(series(release))
    with workshop((*KERNEL, *OBJTOOL) if kernel else (f"linux-headers-{release}",)) as tree:
        if before is not None:
            shutil.copytree(before, tree / "build", dirs_exist_ok=True, symlinks=True)
        for path in whole.rglob("*") if sources else ():
            inner = path.relative_to(whole)
            if sources and sources.fullmatch(str(inner)) and path.is_file():
                (tree / "build" / inner).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, tree / "build" / inner)
        _write(tree / "build", files, everything=before is None)
        if kernel is not None:
            link(kernel / "build", tree / "kernel")
        where = "/source O=/kernel" if kernel else f"/usr/src/linux-headers-{release}"
        make = f"""
            kernel_make() {{ make -s -j"$(nproc)" -C {where} M="$@" modules; }}
            {script}
        """
        run(tree, whole if kernel else None, make)
        for name in results:
            shutil.copy(tree / "build" / name, folder)
        if after is not None:
            shutil.copytree(tree / "build", after, symlinks=True)


def _write(folder: Path, files: Mapping[str, bytes | str], *, everything: bool) -> None:
    """Write what differs from the files that are there; remove sources that are not in ``files``.

    What stays as it is keeps its time of modification, which is what make goes by.
    """
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        path = folder / name
        if path.is_file() and path.read_bytes() == data:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if everything:
        return
    for path in folder.rglob("*.[ch]"):
        if not path.name.endswith(".mod.c") and str(path.relative_to(folder)) not in files:
            path.unlink()


def compile_kernel(
    arch: str, folder: Path, *, options: Sequence[str], target: str, for_modules: bool = False
) -> None:
    """Build a kernel for guests of ``arch``, and leave it in ``folder``.

    :param options: all that is on beside what the kernel cannot do without
    :param target: what to make, and its path below ``/build``
    :param for_modules: leave what :func:`compile_for` needs to build modules for it, too
    """
    whole = source(series(image(arch).release))
    cross = DEBIAN_NAME[arch] != host_architecture()
    compiler = (_CROSS_COMPILERS[DEBIAN_NAME[arch]],) if cross else ()
    objtool = OBJTOOL if arch == "x86_64" else ()
    with workshop((*KERNEL, *objtool, *compiler)) as tree:
        chosen = "".join(f"CONFIG_{option}=y\n" for option in options)
        (tree / "build" / "wanted").write_text(chosen)
        make = f"""
            export ARCH={_KERNELS_NAME[arch]}
            export CROSS_COMPILE={f"{arch}-linux-gnu-" if cross else ""}
            export KBUILD_BUILD_USER=lab KBUILD_BUILD_HOST=lab
            make -s -C /source O=/build KCONFIG_ALLCONFIG=wanted allnoconfig >&2
            # An option whose own conditions are not met is dropped without a word.
            if grep -vxFf .config wanted; then exit 1; fi
            make -s -C /source O=/build -j"$(nproc)" {Path(target).name} \
                {"modules" if for_modules else ""} >&2
        """
        run(tree, whole, make)
        shutil.copy(tree / "build" / target, folder / "kernel")
        if for_modules:
            shutil.copytree(tree / "build", folder / "build", symlinks=True, ignore=_objects)


def _objects(folder: str, names: list[str]) -> list[str]:
    """What no module's build needs: objects, but for the programs that the build runs."""
    if Path(folder).name in {"scripts", "objtool"}:
        return []
    return [name for name in names if name.startswith("vmlinux") or name.endswith((".o", ".a"))]
