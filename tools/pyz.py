"""Build ``rcdrv.pyz``: all of rcdrv in one file, for a host that has a Python and nothing else.

``python3 -m tools.pyz [FILE]``; ``make pyz`` does it. The same source gives the same bytes, with
any version of Python and zlib: entries are sorted, stored, and have no date.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = Path("rcdrv.pyz")

_SHEBANG = b"#!/usr/bin/env python3\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that the format has

# Any Python 3 has to understand this, so that an old one says what is wrong.
_MAIN = """\
import sys

if sys.version_info < (3, 10):
    sys.exit("rcdrv: this is Python %d.%d, and rcdrv needs 3.10 or newer" % sys.version_info[:2])

try:
    from rcdrv.__main__ import main
except ModuleNotFoundError as error:
    if error.name not in sys.stdlib_module_names:
        raise
    sys.stderr.write(
        "rcdrv: this Python lacks its own module %s\\n"
        "hint: install all of the standard library; on Debian: apt install python3\\n" % error.name
    )
    sys.exit(3)

sys.exit(main())
"""


def contents() -> Iterator[tuple[str, bytes]]:
    """Every file of the archive: its name there, and its bytes."""
    yield "__main__.py", _MAIN.encode()
    yield "LICENSE", (ROOT / "LICENSE").read_bytes()
    yield "rcdrv/manual/70-rcdrv.rules", (ROOT / "udev/70-rcdrv.rules").read_bytes()
    for path in (ROOT / "rcdrv").rglob("*"):
        if not path.is_file() or path.suffix == ".pyc":
            continue
        yield path.relative_to(ROOT).as_posix(), path.read_bytes()
        if path.suffix == ".toml":  # Python 3.10 reads no TOML by itself: see rcdrv.sim.layout
            toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
            table = toml.loads(path.read_text(encoding="utf-8"))
            name = path.with_suffix(".json").relative_to(ROOT).as_posix()
            yield name, json.dumps(table).encode()


def build(target: Path) -> Path:
    """Write the archive, which is a program, and return its path."""
    archive = io.BytesIO()
    archive.write(_SHEBANG)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as opened:
        for name, data in sorted(contents()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            opened.writestr(entry, data)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    scratch.write_bytes(archive.getvalue())
    scratch.chmod(0o755)
    return scratch.replace(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python3 -m tools.pyz", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=TARGET, help=f"default: {TARGET}")
    print(build(parser.parse_args().file))
