"""Running pytest with the plugin, as its users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Outcome:
    """What a run of pytest came to."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text

    def line(self, part: str) -> str:
        """The only line with ``part``."""
        (line,) = (line for line in self.text.splitlines() if part in line)
        return line


def run_pytest(folder: Path, *arguments: str, **environment: str) -> Outcome:
    """Run the tests in ``folder``, with this plugin and no other."""
    inherited = {name: value for name, value in os.environ.items() if name != "RCDRV_DEVICE"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "rcdrv.pytest_plugin", "-v", "-rs", *arguments],
        cwd=folder,
        # Named, and not found by its entry point: that is there only once rcdrv is installed.
        env={
            **inherited,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    return Outcome(run.returncode, run.stdout)


def write_suite(folder: Path, text: str) -> Path:
    """A folder of its own with one test module."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (folder / "test_suite.py").write_text(text)
    return folder
