"""`rcdrv.vfio` and `rcdrv.vfio_user` as libraries: their names, their pages, what they know.

The notebook of examples/ is run here too.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rcdrv.vfio
import rcdrv.vfio_user
from rcdrv.errors import RcdrvError
from tests.unit.test_api import ROOT, blocks
from tests.unit.test_docs import imported, rooms

PACKAGE = ROOT / "rcdrv"
LIBRARIES = {"vfio": "vfio.md", "vfio_user": "vfio-user.md"}
LIMIT = 60.0


@pytest.mark.parametrize(("name", "page"), LIBRARIES.items())
def test_the_page_lists_the_public_names(name: str, page: str) -> None:
    library = {"vfio": rcdrv.vfio, "vfio_user": rcdrv.vfio_user}[name]
    text = (ROOT / "docs" / page).read_text()
    listed = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    told = {word for cell in listed for word in re.findall(r"`(\w+)", cell)}
    errors = set()
    for public in library.__all__:
        value = getattr(library, public)
        if isinstance(value, type) and issubclass(value, RcdrvError):
            errors.add(public)
            assert f"`{public}`" in text
    assert told == set(library.__all__) - errors


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Sever"):
        rcdrv.vfio_user.Sever  # type: ignore[attr-defined]  # noqa: B018


def reached(name: str) -> set[str]:
    """The modules that a package needs, also those which it imports when they are used."""
    found: set[str] = set()
    todo = list((PACKAGE / name).glob("*.py"))
    while todo:
        for used in imported(todo.pop(), inside=True):
            parts = used.split(".")
            # A name of a module, or a module.
            for end in (len(parts), len(parts) - 1):
                path = PACKAGE.joinpath(*parts[:end])
                source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                module = ".".join(parts[:end])
                if end and source.exists() and module not in found:
                    found.add(module)
                    todo.append(source)
    return found


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_knows_nothing_of_endpoints(name: str) -> None:
    """What is above it, and what is known of parts, is out of its reach."""
    order = rooms()
    allowed = {*order[order.index("function") :], name} - {"parts"}
    assert {one.split(".")[0] for one in reached(name)} <= allowed
    for source in (PACKAGE / name).glob("*.py"):
        assert not re.search(r"(?i)epf|doorbell|kselftest|\bcaps\.", source.read_text()), source


def test_the_toy_of_the_manual_is_driven_over_its_socket(tmp_path: Path) -> None:
    page = ROOT / "docs/vfio-user.md"
    toy, drive = blocks(page)
    path = str(tmp_path / "toy.sock")
    server = subprocess.Popen([sys.executable, "-c", toy, path], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        assert server.stderr is not None
        while server.poll() is None and not Path(path).exists():
            time.sleep(0.02)
        driver = [sys.executable, "-c", drive, path]
        for _ in range(2):  # the next client finds the device as it was
            done = subprocess.run(
                driver, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
            )
            assert done.returncode == 0, done.stderr
            lines = done.stdout.splitlines()
            assert len(lines) == 3
            assert all(f"`{line}`" in page.read_text() for line in lines), lines
    finally:
        server.send_signal(signal.SIGINT)
        _, complaint = server.communicate(timeout=LIMIT)
    assert not complaint
    assert not Path(path).exists()


def test_the_notebook_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    path = ROOT / "examples/notebook/endpoint.ipynb"
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    names: dict[str, object] = {"__name__": "__main__"}
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in codes:
        assert not cell["outputs"], "results of an earlier run"
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
    plt = names["plt"]
    assert len(plt.get_fignums()) == 2  # type: ignore[attr-defined]
    plt.close("all")  # type: ignore[attr-defined]
