"""The table of the second suite's cases in docs/commands/test.md.

python3 -m tools.more
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rcdrv.epf_test.more import DESTRUCTIVE_MORE, MORE
from rcdrv.epf_test.suite import Case


def rows() -> Iterator[str]:
    """One row a case; those that each BAR has share one."""
    yield "| case | proves that | may do to a board | needs |"
    yield "| --- | --- | --- | --- |"
    for case in MORE:
        if case.name.variant in ("", "BAR0"):
            yield _row(f"`{case.name}`", case)
    for option, cases in DESTRUCTIVE_MORE.items():
        for case in cases:
            yield _row(f"`{case.name}`, with `--destructive {option}`", case)


def _row(name: str, case: Case) -> str:
    name = name.replace("BAR0", "BARn")
    return f"| {name} | {case.summary} | {case.risk} | {case.needs} |"


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python3 -m tools.more", description=__doc__).parse_args()
    print(*rows(), sep="\n")
