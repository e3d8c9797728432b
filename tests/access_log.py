"""Reading an endpoint's access log while the endpoint writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def entries(path: Path, start: int = 0) -> list[dict[str, Any]]:
    """Return the entries noted so far, from number ``start`` on.

    One line is one write(2), yet a reader may see a part of it: Linux moves a file's end page by
    page (generic_perform_write()). So what does not end with a newline is no entry yet.
    """
    *lines, _ = path.read_text().split("\n")
    return [json.loads(line) for line in lines[start:]]


def count(path: Path) -> int:
    """Return the number of entries noted so far."""
    return path.read_text().count("\n")
