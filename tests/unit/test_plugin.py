"""The pytest plugin, as far as it needs no device."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.plugin import ROOT, run_pytest, write_suite


def test_unused_it_imports_nothing_of_rcdrv(tmp_path: Path) -> None:
    write_suite(
        tmp_path,
        "import sys\n"
        "def test_it():\n"
        "    loaded = {name for name in sys.modules if name.split('.')[0] == 'rcdrv'}\n"
        "    assert loaded == {'rcdrv', 'rcdrv.pytest_plugin'}\n"
        "    assert 'numpy' not in sys.modules\n",
    )
    outcome = run_pytest(tmp_path)
    assert outcome.status == 0, outcome.text
    # No device was used, so there is nothing to say of it but in the header.
    assert outcome.line("rcdrv: ").startswith("rcdrv: sim:rk3588 (a software endpoint")


@pytest.mark.parametrize(
    ("option", "variable", "said"),
    [
        ("sim:imx95", "sim:generic", "rcdrv: sim:imx95 (--rcdrv-device)"),
        (None, "sim:generic", "rcdrv: sim:generic (RCDRV_DEVICE)"),
    ],
)
def test_the_header_names_the_device(
    tmp_path: Path, option: str | None, variable: str, said: str
) -> None:
    arguments = ["--rcdrv-device", option] if option else []
    outcome = run_pytest(write_suite(tmp_path, ""), *arguments, RCDRV_DEVICE=variable)
    assert outcome.line("rcdrv: ") == said


@pytest.mark.parametrize(
    ("capability", "argument", "said"),
    [("wings", "endpoint", "'wings' is no capability"), ("msix", "", "with one of the fixtures")],
)
def test_a_marker_that_could_never_skip_is_an_error(
    tmp_path: Path, capability: str, argument: str, said: str
) -> None:
    write_suite(
        tmp_path,
        f"import pytest\n@pytest.mark.rcdrv_needs({capability!r})\ndef test_it({argument}): ...\n",
    )
    outcome = run_pytest(tmp_path)
    assert outcome.status == pytest.ExitCode.USAGE_ERROR
    assert said in outcome.line("test_suite.py::test_it: rcdrv_needs")


def test_a_device_that_cannot_be_opened_is_one_line_and_a_hint(tmp_path: Path) -> None:
    write_suite(tmp_path, "def test_it(function): ...\n")
    outcome = run_pytest(tmp_path, "--rcdrv-device", "sim:rk3558")
    assert outcome.status == pytest.ExitCode.TESTS_FAILED
    assert "sim:rk3558: no preset 'rk3558'" in outcome.text
    assert "hint: did you mean rk3588?" in outcome.text
    assert "Traceback" not in outcome.text
    assert "rcdrv/address.py" not in outcome.text


def test_pytest_finds_it_where_rcdrv_is_installed() -> None:
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (module,) = project["entry-points"]["pytest11"].values()
    plugin = import_module(module)
    assert callable(plugin.pytest_addoption)
