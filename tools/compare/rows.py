"""Compares the two judges, case by case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tools.compare.explanations import EXPLANATIONS, Explanation
from tools.compare.outcome import MISSING, NOT_RUN, Outcome

OTHER_WORDS = {"Doorbell test is not supported": "no-caps"}
"""rcdrv's reason for a skip where its words are not those of the kselftest, but say more."""


@dataclass(frozen=True)
class Row:
    """One case on one preset."""

    preset: str
    case: str
    kernel: Outcome
    rcdrv: Outcome

    @property
    def fine(self) -> bool:
        """Whether both passed, or both skipped for the same reason: no explanation is needed."""
        if self.kernel.verdict == self.rcdrv.verdict == "skip":
            words = self.rcdrv.words[0] if self.rcdrv.words else ""
            return (
                # rcdrv may know more: "MSI-X33 is disabled; all 32 before it passed".
                bool(self.kernel.cause and words.startswith(self.kernel.cause))
                or OTHER_WORDS.get(self.kernel.cause) == self.rcdrv.cause
            )
        return self.kernel.verdict == self.rcdrv.verdict == "pass"

    @property
    def said(self) -> tuple[str, str]:
        """What both judges say, with the reasons."""
        return str(self.kernel), str(self.rcdrv)

    @property
    def differs(self) -> bool:
        return self.kernel.verdict != self.rcdrv.verdict

    def is_explained_by(self, explanation: Explanation) -> bool:
        return (
            self.preset in explanation.presets
            and self.case in explanation.cases
            and str(self.kernel) == explanation.kernel
            and str(self.rcdrv) == explanation.rcdrv
        )


def lacking(row: Row) -> Row:
    """The row of an endpoint for which no judge knows the case."""
    return Row(row.preset, row.case, MISSING, MISSING)


@dataclass(frozen=True)
class Stale:
    """Something that an explanation accounts for, and that is not so."""

    explanation: Explanation
    preset: str
    case: str


def rows_of(
    preset: str,
    kernel: Mapping[str, Outcome],
    rcdrv: Mapping[str, Outcome],
    left_out: Iterable[str] = (),
) -> list[Row]:
    """All cases that one of the judges knows.

    :param left_out: variants that the kernel's driver was not asked for
    """
    skipped = {f".{variant}." for variant in left_out}

    def absent(case: str) -> Outcome:
        return NOT_RUN if any(variant in case for variant in skipped) else MISSING

    # The order of rcdrv's, which is the kselftest's; what only the kselftest has comes last.
    return [
        Row(preset, case, kernel.get(case, absent(case)), rcdrv.get(case, MISSING))
        for case in dict.fromkeys((*rcdrv, *kernel))
    ]


def explain(row: Row, known: Sequence[Explanation] = EXPLANATIONS) -> Explanation | None:
    """Explanation of a row that is not fine; None without one."""
    if row.fine:
        return None
    return next((entry for entry in known if row.is_explained_by(entry)), None)


def unexplained(rows: Iterable[Row], known: Sequence[Explanation] = EXPLANATIONS) -> list[Row]:
    """The rows where something is wrong."""
    return [row for row in rows if not row.fine and explain(row, known) is None]


def stale(
    rows: Iterable[Row],
    presets: Iterable[str],
    known: Sequence[Explanation] = EXPLANATIONS,
) -> Iterator[Stale]:
    """Explanations that no row of these presets needs."""
    happened = {(row.preset, row.case): row for row in rows}
    present = set(presets)
    for entry in known:
        for preset in entry.presets:
            if preset not in present:
                continue
            for case in entry.cases:
                row = happened.get((preset, case))
                if row is None or not row.is_explained_by(entry):
                    yield Stale(entry, preset, case)
