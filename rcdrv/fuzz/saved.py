"""Findings as files: the layout in TOML, with a one-line reason on top.

# access: 131072 bytes written to BAR2+0x0 (shows registers), which is not allowed
faults = ["disable-fail"]

[bar0]

[bar2]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from rcdrv.errors import UsageError
from rcdrv.files import make_folder, read_text, replace_file
from rcdrv.fuzz.shrink import Table
from rcdrv.fuzz.trial import Finding


def dump_table(table: Table) -> str:
    lines = [
        f"{key} = {_value(value)}" for key, value in table.items() if key not in _tables(table)
    ]
    for name in sorted(_tables(table)):
        lines += ["", f"[{name}]", *(f"{key} = {_value(v)}" for key, v in table[name].items())]
    return "\n".join(lines).lstrip() + "\n"


def _tables(table: Table) -> list[str]:
    return [key for key, value in table.items() if isinstance(value, dict)]


def _value(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1024:
        return hex(value)
    return json.dumps(value)


def save(folder: Path, finding: Finding, table: Table) -> Path:
    make_folder(folder)
    path = folder / f"{slug(finding.kind, finding.what)}.toml"
    reason = " ".join(finding.message.split())
    replace_file(path, f"# {finding.kind}: {reason}\n{dump_table(table)}".encode())
    return path


def slug(*words: str) -> str:
    """Return words as a file name of letters, digits and hyphens, without a suffix."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:80]


def saved_files(where: Path) -> Iterator[Path]:
    """Return the findings in a file or a folder.

    :raises UsageError: none there
    """
    if where.is_dir():
        files = sorted(where.glob("*.toml"))
        if not files:
            raise UsageError(f"{where}: no .toml file in there")
        yield from files
    elif where.is_file():
        yield where
    else:
        raise UsageError(f"{where}: no such file or folder")


def reason_of(path: Path) -> str:
    """Return a finding's saved reason; may be empty."""
    first, _, _ = read_text(path).partition("\n")
    return first.removeprefix("#").strip() if first.startswith("#") else ""
