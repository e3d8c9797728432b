"""Runs to show: a small one with each verdict, and any that Hypothesis can think of."""

from __future__ import annotations

from hypothesis import strategies as st

from rcdrv.results.observer import Observer
from rcdrv.results.result import CASE_VERDICTS, CaseName, CaseResult, Run
from rcdrv.verdict import Reason, Verdict

BAR_TEST = CaseName("pci_ep_bar", "BAR0", "BAR_TEST")
MSI_TEST = CaseName("pci_ep_basic", "", "MSI_TEST")
MSIX_TEST = CaseName("pci_ep_basic", "", "MSIX_TEST")
READ_TEST = CaseName("pci_ep_data_transfer", "dma", "READ_TEST")
COPY_TEST = CaseName("pci_ep_data_transfer", "dma", "COPY_TEST")

RESULTS = (
    CaseResult(BAR_TEST, Verdict.PASS, seconds=0.25),
    CaseResult(MSI_TEST, Verdict.PASS, message="32 vectors", seconds=1.5),
    CaseResult(
        MSIX_TEST, Verdict.SKIP, Reason.NO_VECTORS, "the function has no MSI-X", seconds=0.001
    ),
    CaseResult(
        READ_TEST,
        Verdict.FAIL,
        Reason.DATA_MISMATCH,
        "1024 B: 4 bytes differ",
        hint="look at the inbound window of the endpoint",
        diagnostics=("+0x10: expected 0xdf, got 0xff", "AER: 1 receiver error\n1 bad TLP"),
        seconds=0.5,
    ),
    CaseResult(COPY_TEST, Verdict.LOST, Reason.DEVICE_LOST, "all registers read 0xffffffff"),
)


def a_run(finished: int = len(RESULTS)) -> Run:
    """All of them planned; the first ``finished`` have a result."""
    return Run(
        "sim:rk3588",
        "Rockchip RK3588, msi",
        planned=tuple(result.name for result in RESULTS),
        results=list(RESULTS[:finished]),
    )


def play(run: Run, observer: Observer) -> None:
    """Tell an observer what a runner would have told it."""
    observer.start(run)
    for result in run.results:
        observer.case_started(result.name)
        observer.progress(result.name, 1, 2, result.message)
        observer.case_finished(result)
    observer.finish(run)


PROVOKING = (
    "# SKIP", " # TODO ", "\nok 7", "\nBail out!", "\r1..3", "\\", "\\#", "TAP version 14", "  ---",
    "\x1b[2J", "\x85", "\u2028", "\ud800", "\x00", "]]>", "<a", "&", '"', "\ufffe", "[red]", "",
)  # fmt: skip
"""What ends a line, begins a directive, moves a cursor, or is no XML."""

texts = st.lists(st.sampled_from(PROVOKING) | st.text(st.characters()), max_size=4).map("".join)

results = st.builds(
    CaseResult,
    name=st.builds(CaseName, texts, texts, texts),
    verdict=st.sampled_from(CASE_VERDICTS),
    reason=st.none() | st.sampled_from(Reason),
    message=texts,
    hint=texts,
    diagnostics=st.lists(texts, max_size=3).map(tuple),
    seconds=st.floats(0, 1e6),
)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    every = draw(st.lists(results, max_size=4, unique_by=lambda result: result.name))
    finished = draw(st.integers(0, len(every)))
    planned = tuple(result.name for result in every)
    return Run(draw(texts), draw(texts), planned, every[:finished])
