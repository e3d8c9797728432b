"""The initramfs of guests without rcdrv: what is dropped, and that the rest is as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.lab.cpio import Writer
from tools.lab.image import Image
from tools.lab.slim import entries, slim

KEPT = (
    "usr/bin/busybox",
    "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "usr/lib/x86_64-linux-gnu/libc.so.6",
    "usr/lib/modules/7.3/configfs.ko",
    "usr/lib/modules/7.3/modules.dep",
    "usr/lib/python3.13/encodings/__pycache__/utf_8.cpython-313.pyc",
    "usr/lib/python3.13/json/decoder.py",
    "usr/lib/python3.13/subprocess.py",
)
DROPPED = (
    "usr/lib/x86_64-linux-gnu/libcrypto.so.3",
    "usr/lib/x86_64-linux-gnu/libmvec.so.1",
    "usr/lib/modules/7.3/vfio.ko",
    "usr/lib/python3.13/encodings/__pycache__/big5.cpython-313.pyc",
    "usr/lib/python3.13/__pycache__/turtle.cpython-313.pyc",
    "usr/lib/python3.13/asyncio/events.py",
)


def test_the_rest_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDRV_LAB_CACHE", str(tmp_path / "cache"))
    with (tmp_path / "initramfs").open("wb") as stream:
        writer = Writer(stream)
        for number, name in enumerate((*KEPT, *DROPPED)):
            writer.file(name, name.encode() * number)
        writer.close()
    image = Image(tmp_path)
    before, after = (
        {name: bytes(entry) for name, entry in entries(path.read_bytes())}
        for path in (image.initramfs, slim(image))
    )
    assert not set(DROPPED) & set(after)
    assert {*KEPT, "TRAILER!!!"} <= set(after)
    assert after.items() <= before.items()
