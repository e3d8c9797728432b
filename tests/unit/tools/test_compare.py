"""The comparison with the kernel's driver, without a guest: what it reads and what it finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcdrv.epf_test.suite import cases
from rcdrv.sim.layout import load_layout, preset_names
from tools.compare import __main__ as command
from tools.compare import judges, render
from tools.compare.explanations import EXPLANATIONS, Explanation
from tools.compare.judges import Comparison, Judgement, Square, Timing
from tools.compare.outcome import MISSING, NOT_RUN, Line, Outcome, from_document, from_tap, stamped
from tools.compare.rows import Row, explain, rows_of, stale, unexplained
from tools.lab.endpoint import Endpoint
from tools.lab.errors import LabError
from tools.lab.guest import Guest
from tools.lab.kernel_driver import SELFTEST

TAP = """\
TAP version 13
1..6
# Starting 6 tests from 6 test cases.
#  RUN           pci_ep_bar.BAR0.BAR_TEST ...
#            OK  pci_ep_bar.BAR0.BAR_TEST
ok 1 pci_ep_bar.BAR0.BAR_TEST
#  RUN           pci_ep_bar.BAR0.BAR_SUBRANGE_TEST ...
#      SKIP      BAR is test register space
#            OK  pci_ep_bar.BAR0.BAR_SUBRANGE_TEST
ok 2 pci_ep_bar.BAR0.BAR_SUBRANGE_TEST # SKIP BAR is test register space
#  RUN           pci_ep_basic.LEGACY_IRQ_TEST ...
# pci_endpoint_test.c:132:LEGACY_IRQ_TEST:Expected 0 (0) == ret (-110)
# pci_endpoint_test.c:132:LEGACY_IRQ_TEST:Test failed for Legacy IRQ
# LEGACY_IRQ_TEST: Test failed
#          FAIL  pci_ep_basic.LEGACY_IRQ_TEST
not ok 3 pci_ep_basic.LEGACY_IRQ_TEST
#  RUN           pci_ep_data_transfer.dma.COPY_TEST ...
# pci_endpoint_test.c:255:COPY_TEST:Expected 0 (0) == ret (-5)
# pci_endpoint_test.c:255:COPY_TEST:Test failed for size (1)
# pci_endpoint_test.c:255:COPY_TEST:Expected 0 (0) == ret (-5)
# pci_endpoint_test.c:255:COPY_TEST:Expected 0 (0) == ret (-22)
# COPY_TEST: Test failed
#          FAIL  pci_ep_data_transfer.dma.COPY_TEST
not ok 4 pci_ep_data_transfer.dma.COPY_TEST
#  RUN           pci_ep_basic.MSI_TEST ...
# MSI_TEST: Test terminated by timeout
#          FAIL  pci_ep_basic.MSI_TEST
not ok 5 pci_ep_basic.MSI_TEST
#  RUN           pcie_ep_doorbell.DOORBELL_TEST ...
# pci_endpoint_test.c:287:DOORBELL_TEST:Expected 0 (0) == ret (-22)
# pci_endpoint_test.c:287:DOORBELL_TEST:Test failed for Doorbell

# DOORBELL_TEST: Test failed
#          FAIL  pcie_ep_doorbell.DOORBELL_TEST
not ok 6 pcie_ep_doorbell.DOORBELL_TEST
# FAILED: 2 / 6 tests passed.
# Totals: pass:1 fail:4 xfail:0 xpass:0 skip:1 error:0
"""


def lines(text: str) -> list[Line]:
    """Each line a second later than the one before it."""
    return [Line(float(at), line) for at, line in enumerate(text.splitlines())]


# -- what the judges say ------------------------------------------------------------------------


def test_tap_as_the_harness_prints_it() -> None:
    found = from_tap(lines(TAP))
    assert {case.rpartition(".")[2]: str(outcome) for case, outcome in found.items()} == {
        "BAR_TEST": "pass",
        "BAR_SUBRANGE_TEST": "skip BAR is test register space",
        "LEGACY_IRQ_TEST": "fail ETIMEDOUT",
        "COPY_TEST": "fail EIO,EINVAL",
        "MSI_TEST": "fail timeout",
        "DOORBELL_TEST": "fail EINVAL",
    }


def test_tap_keeps_what_was_said_of_each_case_and_how_long_it_took() -> None:
    found = from_tap(lines(TAP))
    assert found["pci_ep_bar.BAR0.BAR_TEST"].words == ()
    assert found["pci_ep_bar.BAR0.BAR_SUBRANGE_TEST"].words == ()
    legacy = found["pci_ep_basic.LEGACY_IRQ_TEST"]
    assert legacy.words[0].endswith("ret (-110)")
    assert legacy.words[-1] == "LEGACY_IRQ_TEST: Test failed"
    assert (legacy.seconds, found["pci_ep_bar.BAR0.BAR_TEST"].seconds) == (5.0, 2.0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ok 1 a.B", "pass"),
        ("ok 1 a.B #  as it should", "pass"),
        ("ok 1 a.B # SKIP", "skip"),
        ("ok 1 a.B # XFAIL known", "xfail known"),
        ("ok 1 a.B # XPASS", "xpass"),
        ("not ok 1 a.B", "fail"),
        ("not ok 1 a.B # SKIPPED?", "fail"),
    ],
)
def test_tap_directives(line: str, said: str) -> None:
    assert str(from_tap(lines(line))["a.B"]) == said


def test_a_skip_does_not_hide_what_failed_before_it() -> None:
    tap = """\
#  RUN           pci_ep_basic.MSIX_TEST ...
# pci_endpoint_test.c:169:MSIX_TEST:Expected 0 (0) == ret (-5)
# pci_endpoint_test.c:169:MSIX_TEST:Test failed for MSI-X1
#      SKIP      MSI-X33 is disabled
#            OK  pci_ep_basic.MSIX_TEST
ok 1 pci_ep_basic.MSIX_TEST # SKIP MSI-X33 is disabled
"""
    assert str(from_tap(lines(tap))["pci_ep_basic.MSIX_TEST"]) == "fail EIO"


@pytest.mark.parametrize("text", ["", "1..3", "insmod: no such device", "ok 1", "# ok 1 a.B"])
def test_tap_without_results(text: str) -> None:
    assert from_tap(lines(text)) == {}


def test_stamped_lines() -> None:
    text = "1795369687.25 TAP version 13\n1795369687.5 \n1795369688.0 # FAILED:  1 / 2\n"
    assert stamped(text) == [
        (1795369687.25, "TAP version 13"),
        (1795369687.5, ""),
        (1795369688.0, "# FAILED:  1 / 2"),
    ]


def test_the_document_of_rcdrv() -> None:
    result = {
        "name": "pci_ep_basic.MSI_TEST",
        "verdict": "fail",
        "reason": "irq-lost",
        "message": "no interrupt",
        "diagnostics": ["AER: 1"],
        "hint": "",
        "seconds": 0.5,
    }
    passed = {**result, "name": "x.Y", "verdict": "pass", "reason": None, "message": ""}
    assert from_document(json.dumps({"results": [result, passed]})) == {
        "pci_ep_basic.MSI_TEST": Outcome("fail", "irq-lost", ("no interrupt", "AER: 1"), 0.5),
        "x.Y": Outcome("pass", "", ("AER: 1",), 0.5),
    }


@pytest.mark.parametrize("text", ["", "Traceback", "[]", '{"error": {}}'])
def test_no_document_of_rcdrv(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        from_document(text)


# -- how they compare ---------------------------------------------------------------------------

PASS = Outcome("pass")
LEGACY, MSIX = "pci_ep_basic.LEGACY_IRQ_TEST", "pci_ep_basic.MSIX_TEST"
KNOWN = (
    Explanation(("a", "b"), (LEGACY,), "fail ETIMEDOUT", "fail irq-lost", "cannot", "there"),
    Explanation(("a",), (MSIX,), "fail EINVAL", "skip no-vectors", "has none", "here"),
)
BOTH_FAIL = Row("a", LEGACY, Outcome("fail", "ETIMEDOUT"), Outcome("fail", "irq-lost"))
DIFFERS = Row("a", MSIX, Outcome("fail", "EINVAL"), Outcome("skip", "no-vectors"))


def skips(kernel: str, reason: str, words: str) -> Row:
    return Row("a", MSIX, Outcome("skip", kernel), Outcome("skip", reason, (words,)))


@pytest.mark.parametrize(
    "row",
    [
        Row("a", MSIX, PASS, PASS),
        skips("BAR is reserved", "bar-reserved", "BAR is reserved"),
        skips("MSI-X33 is disabled", "no-vectors", "MSI-X33 is disabled; 32 before it passed"),
        skips("Doorbell test is not supported", "no-caps", "CAPS lacks it"),
    ],
)
def test_agreement_needs_no_explanation(row: Row) -> None:
    assert row.fine
    assert unexplained([row], KNOWN) == []


@pytest.mark.parametrize(
    "row",
    [
        Row("a", MSIX, PASS, Outcome("fail", "irq-lost")),
        Row("a", MSIX, Outcome("fail", "EIO"), PASS),
        Row("a", MSIX, PASS, Outcome("skip", "no-vectors", ("MSI-X33 is disabled",))),
        Row("a", MSIX, PASS, MISSING),
        Row("a", MSIX, MISSING, PASS),
        Row("a", MSIX, MISSING, MISSING),
        Row("a", MSIX, NOT_RUN, PASS),
        Row("a", MSIX, Outcome("fail", "EIO"), Outcome("fail", "data-mismatch")),
        Row("a", MSIX, Outcome("xfail"), Outcome("xfail")),
        skips("BAR is reserved", "bar-disabled", "BAR is disabled"),
        skips("MSI-X33 is disabled", "no-vectors", "MSI-X17 is disabled; 16 before it passed"),
        skips("", "bar-disabled", "BAR is disabled"),
        replace(DIFFERS, kernel=Outcome("fail", "ENOSPC")),
        replace(DIFFERS, rcdrv=Outcome("skip", "no-caps")),
        replace(DIFFERS, preset="b"),
        replace(DIFFERS, case=LEGACY),
    ],
)
def test_a_row_that_nothing_accounts_for_is_found(row: Row) -> None:
    assert unexplained([BOTH_FAIL, row, DIFFERS], KNOWN) == [row]


def test_what_an_explanation_accounts_for() -> None:
    assert unexplained([BOTH_FAIL, DIFFERS], KNOWN) == []
    assert [explain(row, KNOWN) for row in (BOTH_FAIL, DIFFERS)] == list(KNOWN)
    assert [entry.differs for entry in KNOWN] == [False, True]
    assert [row.differs for row in (BOTH_FAIL, DIFFERS)] == [False, True]


@pytest.mark.parametrize(
    ("rows", "presets", "expected"),
    [
        ([BOTH_FAIL, DIFFERS], ["a"], []),
        ([BOTH_FAIL, replace(DIFFERS, kernel=PASS, rcdrv=PASS)], ["a"], [("a", MSIX)]),
        ([BOTH_FAIL, replace(DIFFERS, kernel=Outcome("fail", "EIO"))], ["a"], [("a", MSIX)]),
        ([BOTH_FAIL], ["a"], [("a", MSIX)]),
        ([BOTH_FAIL, DIFFERS], ["a", "b"], [("b", LEGACY)]),
        ([], ["c"], []),
    ],
)
def test_an_outdated_explanation_is_found(
    rows: list[Row], presets: list[str], expected: list[tuple[str, str]]
) -> None:
    assert [(found.preset, found.case) for found in stale(rows, presets, KNOWN)] == expected


def test_rows_hold_all_that_either_knows() -> None:
    rcdrv = {LEGACY: PASS, "f.dma.READ_TEST": PASS, "f.dma.COPY_TEST": PASS}
    kernel = {LEGACY: PASS, "f.dma.COPY_TEST": PASS, MSIX: PASS}
    rows = rows_of("a", kernel, rcdrv, left_out=["dma"])
    assert [(row.case, str(row.kernel), str(row.rcdrv)) for row in rows] == [
        (LEGACY, "pass", "pass"),
        ("f.dma.READ_TEST", "not run", "pass"),
        ("f.dma.COPY_TEST", "pass", "pass"),
        (MSIX, "pass", "missing"),
    ]
    assert rows_of("a", {}, rcdrv)[1].kernel == MISSING


def test_the_explanations_are_about_what_there_is_and_only_once() -> None:
    covered = [
        (preset, case) for entry in EXPLANATIONS for preset in entry.presets for case in entry.cases
    ]
    assert len(covered) == len(set(covered))
    assert {preset for preset, _ in covered} <= set(command.PRESETS)
    assert {case for _, case in covered} <= {str(case.name) for case in cases()}


def test_every_preset_of_pci_epf_test_is_compared() -> None:
    theirs = [name for name in preset_names() if load_layout(name).function == "epf_test"]
    assert sorted(command.PRESETS) == theirs


def test_the_page_has_every_preset_on_the_kernels_endpoint_and_no_cell_that_differs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "fidelity.md").read_text()
    found = render.columns(page, render.SQUARE_HEADING)
    assert list(found) == ["case", *command.PRESETS]
    assert {len(cells) for cells in found.values()} == {len(cases())}
    assert not [cell for cells in found.values() for cell in cells if "!" in cell]


# -- the guest ----------------------------------------------------------------------------------


class FakeGuest:
    """Notes the commands; answers the judges with ``said``, and others with a kernel's log."""

    def __init__(self, said: str) -> None:
        self.commands: list[Sequence[str]] = []
        self.endpoints: list[Any] = []
        self._said = said

    def run(self, argv: Sequence[str], timeout: float = 60.0) -> Any:
        self.commands.append(argv)
        if "time" in argv:
            return SimpleNamespace(status=1, stdout=self._said, stderr="rcdrv: hm\n")
        log = "[1.0] pci-endpoint-test 0000:01:00.0: hm\n[1.1] random: crng init done\n"
        return SimpleNamespace(status=0, stdout=log, stderr="")

    def get(self, path: str) -> bytes:
        return b"Command exited with non-zero status 1\n2.50\n"


def endpoint(spec: str) -> Endpoint:
    return cast(Endpoint, SimpleNamespace(spec=spec, address="0000:01:00.0"))


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("generic", []),
        ("rk3588", []),
        ("am654", ["-V", "dma"]),
        ("tegra194", ["-V", "dma"]),
        ("j721e", ["-V", "dma"]),
        ("generic,dma=none", ["-V", "dma"]),
    ],
)
def test_what_hangs_the_kernels_driver_is_never_asked_of_it(spec: str, options: list[str]) -> None:
    guest = FakeGuest("".join(f"{at} {text}\n" for at, text in lines(TAP)))
    judgement = judges.judge_by_kernel(cast(Guest, guest), endpoint(spec))
    program = str(judges.FOLDER / SELFTEST)
    (selftest,) = (list(argv) for argv in guest.commands if program in argv)
    assert selftest[selftest.index(program) + 1 :] == options
    assert len(judgement.outcomes) == 6
    assert judgement.process == 2.5
    assert judgement.log == ("[1.0] pci-endpoint-test 0000:01:00.0: hm",)
    drivers = [argv[-1] for argv in guest.commands if "hand-over" in argv]
    assert drivers == ["pci-endpoint-test", "vfio-pci"]


def test_rcdrv_says_more_on_stderr() -> None:
    guest = FakeGuest(json.dumps({"results": []}))
    judgement = judges.judge_by_rcdrv(cast(Guest, guest), endpoint("generic"))
    assert judgement == Judgement({}, 2.5, ("rcdrv: hm",))


def test_rcdrv_that_does_not_get_so_far() -> None:
    with pytest.raises(LabError, match="rcdrv test ended with 1: rcdrv: hm"):
        judges.judge_by_rcdrv(cast(Guest, FakeGuest("")), endpoint("generic"))


# -- the command --------------------------------------------------------------------------------


def judgement(**outcomes: Outcome) -> Judgement:
    return Judgement({f"pci_ep_basic.{name}": each for name, each in outcomes.items()}, 2.0)


GOOD = Comparison("generic", judgement(MSI_TEST=PASS), judgement(MSI_TEST=PASS))
BAD = Comparison(
    "generic",
    replace(GOOD.kernel, log=("something happened",)),
    judgement(MSI_TEST=Outcome("fail", "irq-lost", ("no interrupt",))),
)
OLD = replace(GOOD, preset="rcar-s4")


@pytest.mark.parametrize(
    ("comparison", "status", "said"),
    [
        (GOOD, 0, ["MSI_TEST  pass", "Every verdict is accounted for"]),
        (
            BAD,
            1,
            ["pass/fail [!]", "MSI_TEST: not accounted for", "no interrupt", "something happened"],
        ),
        (OLD, 1, ["MSIX_TEST: explanation 6 does not apply"]),
    ],
)
def test_the_command(
    comparison: Comparison,
    status: int,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    class Booted(FakeGuest):
        def __enter__(self) -> Booted:
            self.endpoints = [endpoint(comparison.preset)]
            return self

        def __exit__(self, *_: object) -> None:
            pass

    timed = replace(comparison.kernel, outcomes={"a.B": Outcome("pass", seconds=1.0)})
    timing = Timing(comparison.preset, 3, timed, timed)
    booted: list[list[str]] = []

    def laboratory(specs: list[str]) -> Booted:
        booted.append(specs)
        return Booted("")

    monkeypatch.setattr(judges, "laboratory", laboratory)
    monkeypatch.setattr(judges, "compare", lambda *_: comparison)
    monkeypatch.setattr(judges, "measure", lambda *_: timing)
    written, page = tmp_path / "all.json", tmp_path / "page.md"
    options = ["--preset", comparison.preset, "--json", str(written), "--markdown", str(page)]
    assert command.main(options) == status
    shown = capsys.readouterr().out
    for text in said:
        assert text in shown
    document = json.loads(written.read_text())
    assert document["rows"][0]["accounted_for"] is (comparison is not BAD)
    assert bool(document["stale"]) is (comparison is OLD)
    assert render.verdicts([comparison]) in page.read_text()
    assert booted == [[comparison.preset], [f"kernel:{comparison.preset}"]]
    assert render.columns(page.read_text(), render.SQUARE_HEADING)[comparison.preset]


@pytest.mark.parametrize(
    ("real", "said"),
    [
        (GOOD.rcdrv, []),
        (
            BAD.rcdrv,
            ["    software endpoint, rcdrv: pass", "    kernel's endpoint, rcdrv: fail irq-lost"],
        ),
        (judgement(), ["    kernel's endpoint, rcdrv: missing"]),
    ],
)
def test_a_case_that_ends_otherwise_on_the_kernels_endpoint(
    real: Judgement, said: list[str]
) -> None:
    square = Square(GOOD, replace(GOOD, rcdrv=real))
    wrong = command.problems([GOOD], [], [square]).splitlines()
    assert bool(wrong) is bool(said)
    assert set(said) <= set(wrong)
    (cell,) = render.columns(render.square([square]), render.SQUARE_HEADING)["generic"]
    assert cell.endswith(" !") is bool(said)


def test_a_lab_that_does_not_work_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise LabError("no guest today")

    monkeypatch.setattr(judges, "laboratory", fail)
    assert command.main([]) == command.STATUS_LAB
    assert "no guest today" in capsys.readouterr().err
