"""Does what is handed out install, and work, in an empty environment?

python3 -m tools.dist_check [--python PYTHON]...

Makes the sdist, from it the wheel, and installs that in a new virtual environment for each Python:
by default the oldest and the newest that rcdrv supports and that are here. There, outside of the
source tree, it rings a doorbell, looks for manual pages, completion and the udev rule, and runs the
example test suite. It needs a package registry.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = (3, 10)
LIMIT = 300.0
"""Seconds for one command; far more than any takes."""

DEVICE = "sim:rk3588"


class CheckFailed(Exception):
    """A check failed; the message names it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.dist_check", description=__doc__)
    parser.add_argument("--python", action="append", metavar="PYTHON", help="check with this one")
    args = parser.parse_args()
    pythons = args.python or [str(python) for python in oldest_and_newest()]
    try:
        check(pythons)
    except CheckFailed as failure:
        print(f"dist_check: {failure}", file=sys.stderr)
        return 1
    return 0


def check(pythons: Sequence[str]) -> None:
    """Build, and check with each Python.

    :raises CheckFailed: the first thing that is wrong
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))

        def one(number: int, python: str) -> None:
            place = Path(folder) / str(number)
            installed(python, wheel, place / "env")
            works(place / "env", place)
            version = run([python, "-c", "import platform; print(platform.python_version())"])
            print(f"{wheel.name} works on Python {version.strip()}", flush=True)

        # At the same time: installing is mostly waiting for the registry.
        with ThreadPoolExecutor() as pool:
            list(pool.map(one, range(len(pythons)), pythons))


def oldest_and_newest() -> list[Path]:
    """Of the Pythons in PATH and of pyenv that rcdrv supports and that work."""
    found = {version_of(python): python for python in pythons_here()}
    usable = sorted(version for version in found if version >= OLDEST)
    return [found[version] for version in dict.fromkeys((usable[0], usable[-1]))]


def pythons_here() -> Iterator[Path]:
    yield Path(sys.executable)
    for folder in os.environ["PATH"].split(os.pathsep):
        yield from Path(folder).glob("python3.[0-9]*[0-9]")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from pyenv.glob("versions/3.*/bin/python")


def version_of(python: Path) -> tuple[int, int]:
    """(3, 12); (0, 0) for what is no Python that can make virtual environments."""
    code = "import sys, ensurepip, venv; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return 0, 0
    major, minor = map(int, done.stdout.split())
    return major, minor


def build(folder: Path) -> Path:
    """The wheel, made from the sdist as a packager would, in an environment of its own."""
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], cwd=ROOT)
    (sdist,) = folder.glob("rcdrv-*.tar.gz")
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, sdist])
    (wheel,) = folder.glob("rcdrv-*.whl")
    return wheel


def installed(python: str, package: str | Path, place: Path) -> None:
    """Install a package and pytest into a new environment, by the pip of that Python.

    Debian 12's pip 23.0 cannot install for a newer Python (``pip --python``).
    """
    run([python, "-m", "venv", place])
    pip: list[str | Path] = [place / "bin/python", "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "-q", "--no-compile", package, "pytest"])


def works(env: Path, folder: Path) -> None:
    """Check a user's first commands, and the files that a packager expects."""
    rcdrv = env / "bin/rcdrv"
    where = run([env / "bin/python", "-c", "import rcdrv; print(rcdrv.__file__)"], cwd=folder)
    expect(Path(where.strip()).is_relative_to(env), f"another rcdrv is used: {where}")
    package = Path(where).parent
    expect((package / "py.typed").exists(), "py.typed is not installed")

    said = run([rcdrv, "-d", DEVICE, "ring"], cwd=folder)
    expect("acknowledged in" in said, f"the ring says {said!r}")
    run([rcdrv, "-d", "sim:rcar-s4-vntb", "ntb", "info"], cwd=folder)

    rule = folder / "rule"
    rule.write_text(run([rcdrv, "setup", "udev", "--print"]))
    source = ROOT / "udev/70-rcdrv.rules"
    expect(filecmp.cmp(rule, source, shallow=False), "the udev rule is another one")

    from rcdrv.cli import whole_parser  # of the source tree
    from rcdrv.manual import data_files
    from rcdrv.manual.grammar import command_tree

    for path, text in data_files(command_tree(whole_parser())).items():
        expect((env / path).exists(), f"{path} is not installed")
        expect((env / path).read_text() == text, f"{path} is another one than the source makes")

    shutil.copytree(ROOT / "examples/board", folder / "board")
    run([env / "bin/pytest", "-q", "--rcdrv-device", DEVICE, "board"], cwd=folder)


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """Run a command without this source tree or its environment in sight; what it printed.

    :raises CheckFailed: it ended with an error
    """
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "RCDRV_DEVICE", "RCDRV_BACKEND")
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        timeout=LIMIT,
        check=False,
    )
    if done.returncode:
        raise CheckFailed(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}")
    return done.stdout


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise CheckFailed(otherwise)


if __name__ == "__main__":
    sys.exit(main())
