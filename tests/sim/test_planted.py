"""Nothing is imported from the working directory, whatever is planted there (issue 11, A1)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLANTS = (
    *("rcdrv", "rcdrv/__init__", "rcdrv/__main__", "rcdrv/sim/__init__", "rcdrv/sim/__main__"),
    *("bisect", "json", "multiprocessing/__init__", "signal", "site", "socket", "struct"),
    *("tomli", "tomllib", "sitecustomize", "usercustomize"),
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """``rcdrv`` as an installation has it: a script, in whose folder nothing else is."""
    program = tmp_path / "bin/rcdrv"
    program.parent.mkdir()
    # A worker of multiprocessing imports it too, under another name.
    program.write_text(
        "from rcdrv.__main__ import main\n"
        "if __name__ == '__main__':\n"
        "    raise SystemExit(main())\n"
    )
    return program


def run(
    program: Path, arguments: str, folder: Path, path: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, program, *arguments.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    ["ring --device sim:rk3588", "fuzz layout --examples 100 --seed 3 --workers 2"],
)
def test_planted_modules(program: Path, tmp_path: Path, arguments: str) -> None:
    folder, proof = tmp_path / "cwd", tmp_path / "proof"
    for name in PLANTS:
        plant = folder / f"{name}.py"
        plant.parent.mkdir(parents=True, exist_ok=True)
        plant.write_text(f"open({str(proof)!r}, 'a').write(__file__ + '\\n')\n")
    done = run(program, arguments, folder)
    assert not proof.exists(), proof.read_text()
    assert done.returncode == 0, done.stderr


def test_the_same_rcdrv(program: Path, tmp_path: Path) -> None:
    """The software endpoint is of the rcdrv that starts it, not of another that is installed."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "rcdrv", copy / "rcdrv")
    main = "import sys\n\ndef main():\n    print('of the copy', file=sys.stderr)\n    return 1\n"
    (copy / "rcdrv/sim/__main__.py").write_text(main)
    done = run(program, "ring --device sim:rk3588", tmp_path, copy)
    assert done.returncode == 3
    assert "of the copy" in done.stderr
