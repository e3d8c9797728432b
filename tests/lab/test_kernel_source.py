"""A developer's kernel tree: what is built of it, and what rcdrv says of a change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools import patch_check
from tools.lab.errors import LabError
from tools.lab.image import image
from tools.lab.kbuild import series, source
from tools.lab.kernel_endpoint.build import SOURCES, kernel_endpoint_modules

EPF_TEST = "drivers/pci/endpoint/functions/pci-epf-test.c"
HEADER = "include/linux/pci-epf.h"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A kernel tree of one's own."""
    whole = source(series(image("x86_64").release))
    for path in whole.rglob("*"):
        inner = path.relative_to(whole)
        if SOURCES.fullmatch(str(inner)):
            (tmp_path / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / inner)
    return tmp_path


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_symbol_that_the_guest_lacks_is_named(tree: Path) -> None:
    change(tree / EPF_TEST, "module_init(", "void pci_new(void);\nmodule_init(")
    change(tree / EPF_TEST, "\tWRITE_ONCE(reg->status, 0);", "\tpci_new();")
    with pytest.raises(LabError, match=r'"pci_new" \[.*pci-epf-test\.ko\] undefined!\n\(the guest'):
        kernel_endpoint_modules(tree)


def test_own_headers_are_used_and_a_mistake_in_one_is_named(tree: Path) -> None:
    change(tree / HEADER, "#include <linux/pci.h>", "#include <linux/no-such.h>")
    with pytest.raises(LabError, match=r"include/linux/pci-epf\.h:\d+:\d+: linux/no-such\.h: No"):
        kernel_endpoint_modules(tree)


def test_planted_bug_is_red(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A doorbell that answers with the bit of another command (pci_epf_test_doorbell_handler)."""
    change(tree / EPF_TEST, "status |= STATUS_DOORBELL_SUCCESS", "status |= STATUS_READ_SUCCESS")
    before = {path: path.read_bytes() for path in tree.rglob("*.[ch]")}
    assert patch_check.main([str(tree)]) == 1
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in ("ring --cycles 1000", "ntb ping --count 3"))
    worse = [line for line in out.splitlines() if "WORSE" in line]
    assert any(line.startswith("ring --cycles 1000") for line in worse), out
    assert any("DOORBELL_TEST" in line for line in worse), out
    assert before == {path: path.read_bytes() for path in tree.rglob("*.[ch]")}


def test_benign_change_is_green(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(
        tree / EPF_TEST,
        "status |= STATUS_DOORBELL_SUCCESS",
        "status = STATUS_DOORBELL_SUCCESS | status",
    )
    assert patch_check.main([str(tree)]) == 0, capsys.readouterr().out
