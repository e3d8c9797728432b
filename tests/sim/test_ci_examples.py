"""examples/ci: what a CI would run of them is run here, as far as it can be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from rcdrv.api import case_names
from tools import dist_check

EXAMPLES = Path(__file__).parents[2] / "examples/ci"
LIMIT = 120


def load(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text())


def run(steps: Sequence[str], folder: Path, **environment: str) -> str:
    """Run steps as a CI does: the first that fails ends it."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "rcdrv").write_text(f'#!/bin/sh\nexec {sys.executable} -m rcdrv "$@"\n')
    (tools / "rcdrv").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    for step in steps:
        done = subprocess.run(
            ["bash", "-e", "-c", step],
            cwd=folder,
            env={**os.environ, **environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


NOTE = """#!/bin/sh
name=$1
case $2 in
--shell) if sh -c "$3"; then result=pass; else result=fail; fi ;;
--result) result=$3 ;;
esac
echo "$name $result" >> cases
"""
"""``lava-test-case`` of lava-test-shell, which gives the result to the dispatcher."""


def test_lava(tmp_path: Path) -> None:
    definition = load("lava.yaml")
    assert definition["metadata"]["format"] == "Lava-Test Test Definition 1.0"
    assert definition["metadata"].keys() == {"format", "name", "description", "os"}
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/lava-test-case"
    tool.write_text(NOTE)
    tool.chmod(0o755)
    settings = {name: str(value) for name, value in definition["params"].items()}
    run(definition["run"]["steps"], tmp_path, **{**settings, "DEVICE": "sim:rk3588"})
    cases = dict(line.split() for line in (tmp_path / "cases").read_text().splitlines())
    assert list(cases) == ["rcdrv", *case_names()]
    assert cases["rcdrv"] == "pass"
    assert cases["pcie_ep_doorbell.DOORBELL_TEST"] == "pass"
    assert cases["pci_ep_bar.BAR4.BAR_TEST"] == "skip"
    assert cases["pci_ep_data_transfer.dma.COPY_TEST"] == "skip", "the baseline knows it"
    # A fault that the baseline does not know is seen.
    (tmp_path / "cases").unlink()
    settings["DEVICE"] = "sim:rk3588,fault=doorbell-dead"
    run(definition["run"]["steps"], tmp_path, **settings)
    cases = dict(line.split() for line in (tmp_path / "cases").read_text().splitlines())
    assert {name for name, result in cases.items() if result == "fail"} == {
        "rcdrv",
        "pcie_ep_doorbell.DOORBELL_TEST",
    }


def test_github(tmp_path: Path) -> None:
    workflow = load("github.yml")
    assert workflow.keys() == {"name", True, "jobs"}  # YAML 1.1 takes "on" for a truth
    steps = [step["run"] for step in workflow["jobs"]["software"]["steps"] if "run" in step]
    assert steps.pop(0) == "pip install rcdrv"
    run(steps, tmp_path)
    assert "DOORBELL_TEST" in (tmp_path / "report.xml").read_text()
    (board,) = [step["run"] for step in workflow["jobs"]["board"]["steps"] if "run" in step]
    run([board], tmp_path, RCDRV_DEVICE="sim:rk3588")
    assert (tmp_path / "board.gz").stat().st_size > 1000
    for job in workflow["jobs"].values():
        assert job.keys() == {"runs-on", "steps"}
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


@pytest.mark.timeout(600)
def test_labgrid(tmp_path: Path) -> None:
    """Its two tests, by the labgrid of the package index in an environment of its own."""
    folder = tmp_path / "labgrid"
    shutil.copytree(EXAMPLES / "labgrid", folder, ignore=shutil.ignore_patterns("__pycache__"))
    dist_check.installed(sys.executable, "labgrid", tmp_path / "env")
    done = subprocess.run(
        [tmp_path / "env/bin/pytest", "-q", "-p", "no:cacheprovider", "--lg-env", "env.yaml"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(EXAMPLES.parents[1])},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
