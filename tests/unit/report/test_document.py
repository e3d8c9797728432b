"""The JSON document: its keys are a contract."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from rcdrv.results.document import to_document
from rcdrv.results.result import CaseResult, Run
from rcdrv.verdict import Verdict

from .samples import BAR_TEST, COPY_TEST, MSI_TEST, RESULTS, a_run, runs


def test_the_keys() -> None:
    document = to_document(a_run())
    results = document.pop("results")
    assert document == {
        "device": "sim:rk3588",
        "description": "Rockchip RK3588, msi",
        "not_run": [],
        "totals": {"pass": 2, "fail": 1, "skip": 1, "lost": 1, "error": 0},
        "verdict": "lost",
    }
    assert [result["name"] for result in results] == [str(result.name) for result in RESULTS]
    assert results[3] == {
        "name": "pci_ep_data_transfer.dma.READ_TEST",
        "fixture": "pci_ep_data_transfer",
        "variant": "dma",
        "test": "READ_TEST",
        "verdict": "fail",
        "reason": "data-mismatch",
        "message": "1024 B: 4 bytes differ",
        "hint": "look at the inbound window of the endpoint",
        "diagnostics": ["+0x10: expected 0xdf, got 0xff", "AER: 1 receiver error\n1 bad TLP"],
        "seconds": 0.5,
    }
    assert (results[1]["variant"], results[1]["reason"]) == ("", None)


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [
        ([], "pass"),
        ([Verdict.PASS, Verdict.SKIP], "pass"),
        ([Verdict.PASS, Verdict.FAIL], "fail"),
        ([Verdict.ERROR, Verdict.FAIL], "error"),
        ([Verdict.ERROR, Verdict.LOST], "lost"),
    ],
)
def test_the_verdict_is_the_worst(verdicts: list[Verdict], overall: str) -> None:
    results = [CaseResult(BAR_TEST, verdict) for verdict in verdicts]
    assert to_document(Run("", results=results))["verdict"] == overall


def test_a_run_that_ended_early_is_an_error() -> None:
    run = Run("", planned=(BAR_TEST, MSI_TEST, COPY_TEST), results=[RESULTS[0]])
    document = to_document(run)
    assert document["verdict"] == "error"
    assert document["not_run"] == [str(MSI_TEST), str(COPY_TEST)]


@given(runs())
def test_it_is_plain_json(run: Run) -> None:
    document = to_document(run)
    assert json.loads(json.dumps(document)) == document
