"""The second suite: no false verdict, and each fault is caught by its cases and by no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more import DESTRUCTIVE_MORE, MORE
from rcdrv.epf_test.suite import cases, run_cases
from rcdrv.function import Function
from rcdrv.results.observer import Observer
from rcdrv.results.result import CaseResult, Run
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import load_layout, preset_names
from tools.more import rows

from .virtual import endpoint

PRESETS = [name for name in preset_names() if load_layout(name).function == "epf_test"]
EVERY = (*MORE, *DESTRUCTIVE_MORE.values())


def run(spec: str) -> list[CaseResult]:
    with (
        endpoint(spec) as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        results = run_cases(EpfTest(function), EVERY, Run("test"), Observer()).results
    assert not device.left_behind()
    return results


def failed(spec: str) -> dict[str, str]:
    """{test, without fixture and variant: reason} of what neither passed nor was skipped."""
    return {
        result.name.test.removesuffix("_TEST"): result.reason.value
        for result in run(spec)
        if result.reason is not None and result.verdict.value not in ("pass", "skip")
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_healthy_endpoint_passes(preset: str) -> None:
    assert failed(preset) == {}
    passed = {result.name.test for result in run(preset) if result.verdict.value == "pass"}
    assert {"WALKING_ONES_TEST", "READ_SIZES_TEST", "READ_ONLY_TEST", "RETENTION_TEST"} <= passed


def test_nothing_of_generic_is_skipped_but_what_nobody_knows() -> None:
    skipped = {str(r.name) for r in run("generic") if r.verdict.value == "skip"}
    assert skipped == {"more_bar.PRESENT_TEST"}


def test_names_are_unique_and_none_is_the_kselftests() -> None:
    names = [str(case.name) for case in (*cases(), *EVERY)]
    assert len(set(names)) == len(names)
    assert not {str(case.name) for case in MORE} & set(map(str, DESTRUCTIVE_MORE))


MISMATCH, CONFIG = "data-mismatch", "bad-config"
CAUGHT: dict[str, dict[str, str]] = {
    "data-line": {"WALKING_ONES": MISMATCH, "ADDRESS": MISMATCH, "WIDTH": MISMATCH},
    "address-line": {"WALKING_ONES": MISMATCH, "ADDRESS": MISMATCH},
    "byte-enables": {"WIDTH": MISMATCH},
    "write-order": {"ORDER": MISMATCH},
    "bar-forgets": {"RETENTION": MISMATCH},
    "cap-loop": {"CAPABILITIES": CONFIG},
    "rebar-empty": {"CAPABILITIES": CONFIG},
    "id-writable": {"READ_ONLY": CONFIG},
    "bar-mask": {"BAR_SIZE": CONFIG},
    "msix-outside": {"MSIX_PLACE": CONFIG},
    "master-ignored": {"BUS_MASTER": CONFIG},
    "intx-disable-ignored": {"INTX_DISABLE": CONFIG},
    "ring-overrun": {"BURST": "silent"},
    "ring-vector": {"VECTORS": "wrong-vector"},
    "doorbell-leaks": {"CYCLES": "enable-failed"},
    "crosses-4k": {
        "READ_SIZES": MISMATCH,
        "WRITE_SIZES": "transfer-failed",
        "COPY_SIZES": MISMATCH,
    },
    "high-address-cut": {"HIGH_ADDRESS": MISMATCH},
    "reset-loses": {"RESET": "lost-by-reset"},
    "reset-loses=msi": {"RESET": "lost-by-reset"},
}


@pytest.mark.parametrize("fault", CAUGHT)
def test_a_fault_is_caught_by_its_cases_alone(fault: str) -> None:
    assert failed(f"generic,fault={fault}") == CAUGHT[fault]


def test_every_fault_for_this_suite_is_here() -> None:
    assert {name for name, fault in FAULTS.items() if fault.more} <= set(CAUGHT)


def test_a_bar_that_the_part_has_and_the_host_does_not_find() -> None:
    assert failed("rk3588,fault=bar-empty=5") == {"PRESENT": "bar-disabled"}


def test_ats_that_does_not_work() -> None:
    assert failed("rk3588,ats=true") == {"ATS": CONFIG}


def test_the_docs_say_of_every_case_what_it_proves() -> None:
    docs = Path(__file__).parents[3] / "docs"
    assert "\n".join(rows()) in (docs / "commands/test.md").read_text()
    faults = (docs / "faults.md").read_text()
    for name in (name for name, fault in FAULTS.items() if fault.more):
        row = next(line for line in faults.splitlines() if line.startswith(f"| `{name}`"))
        cell = row.split("|")[3]
        for test, reason in CAUGHT[name].items():
            assert test in cell
            assert f"`{reason}`" in cell


def test_every_harmless_case_is_offered_by_the_command_line() -> None:
    from rcdrv.cli import whole_parser
    from rcdrv.manual.grammar import command_tree

    tree = command_tree(whole_parser())
    test = next(command for command in tree.children if command.path[-1] == "test")
    words = next(one.words for one in test.arguments if one.words)
    assert {str(case.name) for case in MORE} <= set(words)
