"""The kernel's endpoint functions, core and NTB modules, and our endpoint controller, as modules.

The sources are the kernel's own. Out-of-tree building forces this and no more: Debian's kernels
have the endpoint core off, and of what is built into a kernel there is no module, so its files
become one module. A module has one initcall: theirs are called by ours (``driver/core.c``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tools.lab import cache
from tools.lab.debug_kernel import debug_kernel
from tools.lab.errors import LabError
from tools.lab.image import image
from tools.lab.kbuild import compile_for
from tools.lab.kernel_source import series
from tools.lab.kernel_source import source as kernel_source

DRIVER = Path(__file__).parent / "driver"
RESULTS, OBJECTS = "modules", "objects"
"""What the guest gets, and what the next build goes on from."""
MODULES = (
    *("pci-endpoint", "pci-epf-test", "ntb", "pci-epf-vntb", "rcdrv-epc"),
    *("ntb_transport", "ntb_netdev", "ntb_pingpong", "ntb_tool"),
)
"""In an order in which they can be loaded."""
NEED_A_NETWORK = ("ntb_netdev",)
"""Which the debug kernel has not."""

SOURCES = re.compile(
    r"(drivers/pci/endpoint/pci-ep[\w-]*\.c|drivers/pci/endpoint/functions/pci-epf-(test|vntb)\.c"
    r"|drivers/ntb/(core|ntb_transport)\.c|drivers/ntb/test/ntb_(pingpong|tool)\.c"
    r"|drivers/net/ntb_netdev\.c|include/linux/(pci-ep[\w-]*|ntb\w*)\.h)$"
)
"""The headers are those of the modules alone; all others are of the guest's kernel."""
INITCALLS = (
    (rb"^module_(init|exit)\(pci_ep.*\n", b""),
    (rb"^static ((int|void) (__init|__exit) (pci_epc|pci_epf|pci_ep_cfs)_(init|exit)\()", rb"\1"),
)
"""What is replaced, and by what: a module cannot have the initcalls of the core."""
CHANGED = ("pci-epc-core.c", "pci-epf-core.c", "pci-ep-cfs.c")
UNCHANGED = (
    *("pci-epc-mem.c", "pci-ep-msi.c", "pci-epf-test.c", "pci-epf-vntb.c", "ntb_core.c"),
    *("ntb_transport.c", "ntb_netdev.c", "ntb_pingpong.c", "ntb_tool.c"),
)


_FLAT = ("drivers/net", "include/linux")
_FIRST_ERROR = re.compile(
    r"^(?:.*?/endpoint/)?(?P<where>[^\s:]+:\d+(?::\d+)?: )?(?:fatal )?(?P<kind>error|ERROR): "
    r"(?P<what>.*)$",
    re.M,
)


def kernel_endpoint_modules(
    source: Path | None = None, *, debug: bool = False, rebuild: bool = False
) -> Path:
    """The folder with the modules for the x86-64 guest's kernel, and the sources as built.

    :param source: a kernel tree to build from, which is only read; by default Debian's
    :param debug: for :func:`~tools.lab.debug_kernel.debug_kernel`
    """
    recipe = (
        *("debian.py", "image.py", "kbuild.py", "kernel_endpoint/build.py"),
        *(f"kernel_endpoint/driver/{path.name}" for path in sorted(DRIVER.iterdir())),
    )
    kernel = debug_kernel() if debug else None
    content = kernel.name.encode() if kernel else b""
    name = f"kernel-endpoint{'-debug' if debug else ''}"

    def build_stock(folder: Path) -> None:
        files = _read(kernel_source(series(_release())))
        _compile(folder / RESULTS, files, after=folder / OBJECTS, kernel=kernel)

    stock = cache.part(name, recipe, build_stock, rebuild=rebuild, content=content)
    if source is None:
        return stock / RESULTS
    # What is built is what the part is named after, also if an editor saves meanwhile.
    files = _read(source)

    def build(folder: Path) -> None:
        try:
            _compile(folder / RESULTS, files, before=stock / OBJECTS, kernel=kernel)
        except LabError as error:
            raise _explained(source, error) from error

    content += repr(sorted(files.items())).encode()
    return cache.part(f"{name}-source", recipe, build, content=content) / RESULTS


def _compile(
    folder: Path,
    sources: Mapping[str, bytes],
    *,
    before: Path | None = None,
    after: Path | None = None,
    kernel: Path | None = None,
) -> None:
    """Build ``sources``, by path in a kernel tree."""
    files = {f"endpoint/{path.name}": path.read_bytes() for path in sorted(DRIVER.iterdir())}
    for path, data in sources.items():
        name = _flat_name(path)
        if name in CHANGED:
            for found, instead in INITCALLS:
                data = re.sub(found, instead, data, flags=re.M)
        files[f"endpoint/{name}"] = data
    folder.mkdir()
    modules = [module for module in MODULES if kernel is None or module not in NEED_A_NETWORK]
    compile_for(
        "x86_64",
        folder,
        files=files,
        script="kernel_make /build/endpoint",
        results=[
            *(f"endpoint/{module}.ko" for module in modules),
            *(f"endpoint/{name}" for name in (*CHANGED, *UNCHANGED)),
        ],
        before=before,
        after=after,
        kernel=kernel,
    )


def _flat_name(path: str) -> str:
    """Where a file of the kernel's is built: modules in one folder, and their headers."""
    if path.startswith("include/"):
        return path
    return "ntb_core.c" if path == "drivers/ntb/core.c" else Path(path).name


def _read(source: Path) -> dict[str, bytes]:
    """Read what is built of a kernel tree, by path in it."""
    root = source.resolve()
    found = {}
    try:
        for top in ("drivers/pci/endpoint", "drivers/ntb", "drivers/net", "include/linux"):
            for path in (root / top).glob("*" if top in _FLAT else "**/*"):
                name = str(path.relative_to(root))
                if not SOURCES.fullmatch(name):
                    continue
                if not path.resolve().is_relative_to(root) or not path.is_file():
                    raise LabError(f"{source}: {name} is not a file in this tree")
                found[name] = path.read_bytes()
    except OSError as error:
        raise LabError(f"{source}: cannot be read: {error}") from error
    names = set(map(_flat_name, found))
    if missing := [name for name in (*CHANGED, *UNCHANGED) if name not in names]:
        known = ", ".join("drivers/ntb/core.c" if one == "ntb_core.c" else one for one in missing)
        raise LabError(
            f"{source}: no kernel tree with the endpoint functions of Linux"
            f" {_release()}: it lacks {known}"
        )
    return found


def _explained(source: Path, error: LabError) -> LabError:
    """The first error of the compiler or of modpost, and what to do about it."""
    first = _FIRST_ERROR.search(str(error))
    if first is None:
        return error  # not of the source: no space, no namespace
    where, what = first["where"] or "", first["what"].strip()
    cure = (
        "unless it is a slip of the patch: all headers but include/linux/pci-ep*.h and ntb*.h are"
        " of the guest's kernel, so base the patch on that version"
    )
    if first["kind"] == "ERROR":
        cure = (
            "the guest's kernel does not export it, or it is in a file that is not built: only"
            " drivers/pci/endpoint and drivers/ntb are of your tree"
        )
    return LabError(
        f"{source} does not build for the guest's Linux {_release()}: {where}{what}\n({cure})"
    )


def _release() -> str:
    return image("x86_64").release
