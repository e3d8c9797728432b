"""What of an earlier build is built anew."""

from __future__ import annotations

import os
from pathlib import Path

from tools.lab import kbuild


def test_only_what_differs_is_newer_than_its_object(tmp_path: Path) -> None:
    names = ("endpoint/same.c", "endpoint/other.c", "endpoint/gone.h", "endpoint/a.mod.c")
    kbuild._write(tmp_path, dict.fromkeys(names, "before"), everything=True)
    for name in names:
        os.utime(tmp_path / name, (1000, 1000))
    files: dict[str, bytes | str] = {
        "endpoint/same.c": b"before",
        "endpoint/other.c": b"after",
        "endpoint/new/x.h": "",
    }
    kbuild._write(tmp_path, files, everything=False)
    assert (tmp_path / "endpoint/same.c").stat().st_mtime == 1000
    assert (tmp_path / "endpoint/other.c").stat().st_mtime > 1000
    assert (tmp_path / "endpoint/other.c").read_bytes() == b"after"
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert left == {*files, "endpoint/a.mod.c"}  # what the build made stays
