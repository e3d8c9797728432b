"""What the kernel's endpoint needs of the host, without a guest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcdrv.sim.access_log import AccessLog
from tools.lab import __main__ as command
from tools.lab.errors import LabError
from tools.lab.kernel_endpoint import build
from tools.lab.kernel_endpoint import function as function_module
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint
from tools.lab.kernel_endpoint.function import Function

BUG = "[    1.500000] BUG: kernel NULL pointer dereference\n[    1.500001] Oops: 0000\n"


def test_a_crash_is_told_once_also_where_the_console_is_cut() -> None:
    endpoint = KernelEndpoint("rk3588")
    guest = SimpleNamespace(console="[    0.000000] Linux\n" + BUG)
    endpoint._guest = cast(Any, guest)
    assert endpoint.crash() == BUG.strip()
    assert endpoint.crash() == ""
    guest.console = guest.console[30:] + "[    2.000000] fine\n"
    assert endpoint.crash() == ""
    guest.console += "[    2.500000] UBSAN: shift-out-of-bounds\n"
    assert endpoint.crash().startswith("[    2.500000] UBSAN")


def test_what_a_client_was_too_slow_for_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory may be another transfer's by then; but a stop is a stop, whenever it is seen."""
    monkeypatch.setattr(function_module, "PATIENCE", 0.01)
    function = Function(cast(Any, None), AccessLog())
    function._peer = cast(Any, object())  # a client whose thread does not run
    done: list[str] = []
    function._call(lambda: done.append("write"), None)
    function._call(lambda: done.append("stop"), None, late=True)
    function.run()
    assert done == ["stop"]


# -- a developer's kernel tree ------------------------------------------------------------------

CORE = "drivers/pci/endpoint"
MEMBERS = (
    *(f"{CORE}/{name}" for name in (*build.CHANGED, "pci-epc-mem.c", "pci-ep-msi.c")),
    *(f"{CORE}/functions/pci-epf-{name}.c" for name in ("test", "vntb")),
    *("drivers/ntb/core.c", "drivers/ntb/ntb_transport.c", "drivers/net/ntb_netdev.c"),
    *(f"drivers/ntb/test/ntb_{name}.c" for name in ("pingpong", "tool")),
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "_release", lambda: "7.3.4")
    for name in (*MEMBERS, "include/linux/pci-epc.h", "include/linux/pci.h", "drivers/net/tun.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_source_is_the_endpoints_and_its_headers(tree: Path) -> None:
    assert set(build._read(tree)) == {*MEMBERS, "include/linux/pci-epc.h"}


def test_tree_that_lacks_a_file_is_named(tree: Path) -> None:
    (tree / CORE / "pci-ep-msi.c").unlink()
    with pytest.raises(LabError, match=r"functions of Linux 7\.3\.4: it lacks pci-ep-msi\.c$"):
        build._read(tree)


def test_no_file_of_another_folder_is_read(tree: Path, tmp_path_factory: Any) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("secret")
    (tree / CORE / "pci-ep-more.c").symlink_to(secret)
    with pytest.raises(LabError, match=r"pci-ep-more\.c is not a file in this tree"):
        build._read(tree)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "chroot /x failed:\n/build/endpoint/pci-epf-test.c: In function 'f':\n"
            "/build/endpoint/pci-epf-test.c:12:9: error: implicit declaration of 'g'\n",
            "pci-epf-test.c:12:9: implicit declaration of 'g'\n(all headers but include/linux/",
        ),
        (
            "x\npci-epf-test.c:9:10: fatal error: linux/pci-new.h: No such file or directory\n",
            "pci-epf-test.c:9:10: linux/pci-new.h: No such file or directory\n(all headers but",
        ),
        (
            'ERROR: modpost: "pci_new" [/build/endpoint/pci-epf-test.ko] undefined!\nmake: ***\n',
            'modpost: "pci_new" [/build/endpoint/pci-epf-test.ko] undefined!\n(the guest\'s kernel',
        ),
    ],
)
def test_first_error_of_a_build_is_told_with_its_cure(tree: Path, said: str, told: str) -> None:
    error = build._explained(tree, LabError(said))
    assert f"{tree} does not build for the guest's Linux 7.3.4: {told}" in str(error)


def test_kernel_source_without_a_kernels_endpoint_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["run", "--endpoint", "rk3588", "--kernel-source", str(tmp_path), "true"]
    assert command.main(given) == command.STATUS_LAB
    assert "give --endpoint kernel:SPEC" in capsys.readouterr().err
