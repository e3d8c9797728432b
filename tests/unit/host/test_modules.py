"""What rcdrv uses of the standard library is what the doctor looks for."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from rcdrv.host import doctor

PACKAGE = Path(__file__).parents[3] / "rcdrv"
# What any Python is made of, and what only some Pythons have (tomllib: from 3.11 on).
ALWAYS = {*sys.builtin_module_names, "tomllib"}


def imported() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module


def test_the_list_is_complete() -> None:
    used = {name.split(".")[0] for name in imported()} & sys.stdlib_module_names - ALWAYS
    assert used - set(doctor.USED.split()) == set()
    assert set(doctor.USED.split()) - {name.split(".")[0] for name in imported()} == set()
