"""What counts as worse than the unpatched kernel."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import pytest

from tools import patch_check
from tools.lab.errors import LabError
from tools.patch_check import Verdict, is_worse

PASS, FAIL, SKIP, CRASH = ("pass", ""), ("fail", "a"), ("skip", ""), ("CRASH", "Oops")


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        (PASS, PASS, False),
        (PASS, FAIL, True),
        (PASS, SKIP, True),  # a feature that is not announced any more
        (PASS, None, True),
        (SKIP, PASS, False),
        (SKIP, FAIL, True),
        (FAIL, PASS, False),
        (FAIL, FAIL, False),
        (FAIL, ("fail", "b"), True),
        (FAIL, CRASH, True),
        (CRASH, FAIL, False),
        (None, PASS, False),
        (None, FAIL, True),
    ],
)
def test_worse(before: Verdict | None, after: Verdict | None, worse: bool) -> None:
    assert is_worse(before, after) == worse


def test_table_and_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patch_check, "kernel_endpoint_modules", lambda source: source)
    monkeypatch.setattr(patch_check, "unpatched", lambda: {"one": PASS, "two": FAIL})
    monkeypatch.setattr(patch_check, "check", lambda source: {"one": CRASH, "two": PASS})
    assert patch_check.main(["tree"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["one", "pass", "CRASH", "WORSE:", "Oops"]
    assert lines[2].split() == ["two", "fail", "pass", "better"]
    assert lines[3].startswith("2 checks, 1 worse")
    monkeypatch.setattr(patch_check, "check", lambda source: {"one": PASS, "two": FAIL})
    assert patch_check.main(["tree"]) == 0


@pytest.mark.parametrize(
    ("runs", "status", "said"),
    [
        ([FAIL, PASS], 0, "worse in one run of two: one: a"),
        ([FAIL, FAIL], 1, "WORSE: a"),
        ([FAIL, CRASH], 1, "WORSE: Oops"),
        ([CRASH], 1, "WORSE: Oops"),
        ([PASS], 0, ""),
        ([None, PASS], 0, "worse in one run of two: one: not reached"),
    ],
)
def test_what_is_worse_is_tried_again(
    runs: list[Verdict | None],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = list(runs)

    def check(_source: Path) -> dict[str, Verdict]:
        verdict = left.pop(0)
        return {"two": PASS} | ({"one": verdict} if verdict else {})

    monkeypatch.setattr(patch_check, "kernel_endpoint_modules", lambda source: source)
    monkeypatch.setattr(patch_check, "unpatched", lambda: {"one": PASS, "two": PASS})
    monkeypatch.setattr(patch_check, "check", check)
    assert patch_check.main(["tree"]) == status
    assert said in capsys.readouterr().out
    assert not left


def test_tree_that_does_not_build_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(source: Path) -> Path:
        raise LabError(f"{source} does not build")

    monkeypatch.setattr(patch_check, "kernel_endpoint_modules", fail)
    assert patch_check.main(["tree"]) == 125
    assert capsys.readouterr().err == "patch_check: tree does not build\n"


@pytest.mark.parametrize("good", [1, 2, 3])
def test_the_unpatched_kernel_is_tried_again_on_a_busy_host(
    good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of the host is not cached, as it would excuse the same failure of every patch."""
    runs = 0

    def check(_source: Path | None) -> dict[str, Verdict]:
        nonlocal runs
        runs += 1
        commands = (patch_check.RING, patch_check.FUZZ, patch_check.PING)
        return {" ".join(command): PASS if runs >= good else FAIL for command in commands}

    monkeypatch.setenv("RCDRV_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(patch_check, "kernel_endpoint_modules", lambda: Path("modules"))
    monkeypatch.setattr(patch_check, "check", check)
    if good > 2:
        with pytest.raises(LabError, match=r"does not pass ring --cycles 1000 \(a\)"):
            patch_check.unpatched()
    assert set(patch_check.unpatched().values()) == {PASS}
    assert runs == good
    patch_check.unpatched()
    assert runs == good, "it is cached"


def test_a_broken_doorbell_is_not_rung_a_thousand_times(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    case = {
        "name": "pcie_ep_doorbell.DOORBELL_TEST", "verdict": "fail", "reason": "wrong-status",
    }  # fmt: skip

    def run(_one: object, *command: str) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, json.dumps({"results": [case]}), "")

    monkeypatch.setattr(patch_check, "KernelEndpoint", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(patch_check, "_rcdrv", run)
    monkeypatch.setattr(patch_check, "_outcome", lambda _one, _done: FAIL)
    found = patch_check._check_test(None)
    assert found[" ".join(patch_check.RING)] == ("fail", "wrong-status")
    assert [command[0] for command in asked] == ["--json"]
