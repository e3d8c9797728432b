"""`rcdrv test --baseline`: a healthy board is green, a regression is red."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rcdrv.results.baseline import shipped
from tests.programs import needed
from tests.sim.conftest import Result, bound, rcdrv
from tests.verdicts import EXPECTED


def prove(result: Result, folder: Path) -> int:
    """The exit status of perl's TAP reader."""
    tap = folder / "run.tap"
    tap.write_text(result.out)
    return subprocess.run(
        [needed("prove"), "--exec", "cat", str(tap)], stdout=subprocess.DEVNULL, check=False
    ).returncode


def failures(report: Path) -> tuple[str, str]:
    suite = ElementTree.parse(report).getroot()[0]
    return suite.attrib["failures"], suite.attrib["errors"]


@pytest.mark.parametrize("preset", EXPECTED)
def test_a_healthy_board_is_green(preset: str, tmp_path: Path) -> None:
    assert preset in shipped()
    junit = tmp_path / "run.xml"
    silent = any(reason == "silent" for _, reason in EXPECTED[preset].values())
    result = rcdrv(
        *("test", "--tap", "--baseline", preset, "--junit", str(junit)),
        *("--timeout", bound(silent), "--device", f"sim:{preset}"),
    )
    assert result.status == 0, result
    assert f"# baseline {preset}: nothing is worse" in result.out
    known = sum(verdict == "fail" for verdict, _ in EXPECTED[preset].values())
    assert f"xfail:{known} xpass:0" in result.out
    assert failures(junit) == ("0", "0")
    assert prove(result, tmp_path) == 0


@pytest.mark.parametrize(
    ("planted", "case"),
    [
        ("fault=doorbell-dead", "pcie_ep_doorbell.DOORBELL_TEST"),
        # A skip, and so no failure without a baseline.
        ("caps=0", "pcie_ep_doorbell.DOORBELL_TEST"),
    ],
)
def test_a_regression_is_red(planted: str, case: str, tmp_path: Path) -> None:
    junit = tmp_path / "run.xml"
    result = rcdrv(
        *("test", "DOORBELL_TEST", "LEGACY_IRQ_TEST", "--tap", "--baseline", "rk3588"),
        *("--junit", str(junit), "--device", f"sim:rk3588,{planted}"),
    )
    assert result.status == 1, result
    assert f"# worse: {case}: " in result.out
    assert failures(junit) == ("1", "0")
    assert prove(result, tmp_path) == 1


def test_a_run_is_a_baseline_of_the_next(tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    cases = ("MSI_TEST", "DOORBELL_TEST")
    before = rcdrv("test", *cases, "--json", "--device", "sim:generic,fault=enable-fail")
    assert before.status == 1
    file.write_text(before.out)
    again = ("test", *cases, "--json", "--baseline", str(file), "--device")
    same = rcdrv(*again, "sim:generic,fault=enable-fail")
    assert same.status == 0
    assert same.document["baseline"]["known_failures"] == ["pcie_ep_doorbell.DOORBELL_TEST"]
    better = rcdrv(*again, "sim:generic")
    assert better.status == 0
    assert better.document["baseline"]["better"] == ["pcie_ep_doorbell.DOORBELL_TEST"]
    assert rcdrv(*again, "sim:generic,fault=doorbell-dead", "--timeout", "0.5").status == 1


def test_a_bad_baseline_is_refused_before_the_endpoint_is_opened() -> None:
    result = rcdrv("test", "--baseline", "/dev/null", "--device", "0000:ff:1f.7")
    assert result.status == 2
    assert "/dev/null: it is empty" in result.err
