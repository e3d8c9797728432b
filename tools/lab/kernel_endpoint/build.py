"""The kernel's endpoint functions, core and NTB modules, and our endpoint controller, as modules.

The sources are the kernel's own. Out-of-tree building forces this and no more: Debian's kernels
have the endpoint core off, and of what is built into a kernel there is no module, so its files
become one module. A module has one initcall: theirs are called by ours (``driver/core.c``).
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tools.lab import cache
from tools.lab.errors import LabError
from tools.lab.image import image
from tools.lab.kbuild import compile_for

DRIVER = Path(__file__).parent / "driver"
MODULES = (
    *("pci-endpoint", "pci-epf-test", "ntb", "pci-epf-vntb", "rcdrv-epc"),
    *("ntb_transport", "ntb_netdev", "ntb_pingpong", "ntb_tool"),
)
"""In an order in which they can be loaded."""

SOURCES = re.compile(
    r"(drivers/pci/endpoint/pci-ep[\w-]*\.c|drivers/pci/endpoint/functions/pci-epf-(test|vntb)\.c"
    r"|drivers/ntb/(core|ntb_transport)\.c|drivers/ntb/test/ntb_(pingpong|tool)\.c"
    r"|drivers/net/ntb_netdev\.c|include/linux/(pci-ep[\w-]*|ntb\w*)\.h)$"
)
"""The headers are those of the modules alone; all others are of the guest's kernel."""
INITCALLS = (
    r"/^module_(init|exit)\(pci_ep/d;"
    r" s/^static (int|void) (__init|__exit) (pci_epc|pci_epf|pci_ep_cfs)_(init|exit)\(/"
    r"\1 \2 \3_\4(/"
)
"""Changes by sed: a module cannot have the initcalls of the core."""
CHANGED = ("pci-epc-core.c", "pci-epf-core.c", "pci-ep-cfs.c")
UNCHANGED = (
    *("pci-epc-mem.c", "pci-ep-msi.c", "pci-epf-test.c", "pci-epf-vntb.c", "ntb_core.c"),
    *("ntb_transport.c", "ntb_netdev.c", "ntb_pingpong.c", "ntb_tool.c"),
)

_MAKE = f"""
mkdir endpoint
mv drivers/ntb/core.c endpoint/ntb_core.c
find drivers -name '*.c' -exec mv {{}} endpoint ';'
mv Kbuild core.c core.h rcdrv-epc.c include endpoint
cd endpoint
sed -i -E '{INITCALLS}' {" ".join(CHANGED)}
kernel_make /build/endpoint
"""


_FLAT = ("drivers/net", "include/linux")
_FIRST_ERROR = re.compile(
    r"^(?:.*?/endpoint/)?(?P<where>[^\s:]+:\d+(?::\d+)?: )?(?:fatal )?(?P<kind>error|ERROR): "
    r"(?P<what>.*)$",
    re.M,
)


def kernel_endpoint_modules(source: Path | None = None, *, rebuild: bool = False) -> Path:
    """The folder with the modules for the x86-64 guest's kernel, and the sources as built.

    :param source: a kernel tree to build from, which is only read; by default Debian's
    """
    recipe = (
        *("debian.py", "image.py", "kbuild.py", "kernel_endpoint/build.py"),
        *(f"kernel_endpoint/driver/{path.name}" for path in sorted(DRIVER.iterdir())),
    )
    if source is None:
        return cache.part("kernel-endpoint", recipe, _compile, rebuild=rebuild)
    files = _read(source)
    content = repr(sorted(files.items())).encode()

    def build(folder: Path) -> None:
        # A copy: what is built is what the part is named after, also if an editor saves meanwhile.
        with tempfile.TemporaryDirectory(prefix="rcdrv-lab-") as temporary:
            for name, data in files.items():
                copy = Path(temporary) / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(data)
            try:
                _compile(folder, Path(temporary))
            except LabError as error:
                raise _explained(source, error) from error

    return cache.part("kernel-endpoint-source", recipe, build, rebuild=rebuild, content=content)


def _compile(folder: Path, whole: Path | None = None) -> None:
    compile_for(
        "x86_64",
        folder,
        sources=SOURCES,
        files={path.name: path.read_text() for path in sorted(DRIVER.iterdir())},
        script=_MAKE,
        results=[
            *(f"endpoint/{module}.ko" for module in MODULES),
            *(f"endpoint/{name}" for name in (*CHANGED, *UNCHANGED)),
        ],
        whole=whole,
    )


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
    names = {"ntb_core.c" if name == "drivers/ntb/core.c" else Path(name).name for name in found}
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
        "all headers but include/linux/pci-ep*.h and ntb*.h are of the guest's kernel: base the"
        " patch on that version"
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
