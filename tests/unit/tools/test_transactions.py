"""Counting accesses in an endpoint's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.transactions import WHOLE, Count, Counter, count, documented, of_rcdrv, table


def _line(**entry: object) -> str:
    return json.dumps({"t": 1, **entry}) + "\n"


def test_each_kind_counts_apart() -> None:
    log = (
        _line(op="read", region="BAR0", offset=8, size=4, value=0)
        + _line(op="write", region="BAR0", offset=8, size=4, value=0)
        + _line(op="write", region="BAR0", offset=4, size=8, value=0)
        + _line(op="read", region="CONFIG", offset=0, size=2, value=0)
        + _line(event="dma", op="read", address=0, size=4096)
    )
    assert count(log) == Count(reads=1, writes=2, config=1, size=16)


def test_a_message_of_many_words_is_no_access() -> None:
    """Over vfio-user its receiver chooses their width."""
    log = _line(op="read", region="BAR2", offset=0, size=4096, data="00" * 4096)
    with pytest.raises(ValueError, match="4096 bytes"):
        count(log)


def test_a_line_counts_once_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    read = _line(op="read", region="BAR0", offset=8, size=4, value=0)
    counter = Counter(log)
    counts = []
    for text in (read + read[:9], 2 * read, 3 * read):
        log.write_text(text)
        counts.append(counter.take().reads)
    assert counts == [1, 1, 1]


def test_the_table_leaves_out_what_the_kernel_has_not() -> None:
    rows = table({"open": Count(3, 0, 9, 12), "X": Count(2, 1, 0, 8)}, {"X": Count(1, 1, 7, 6)})
    assert "| `open` | 3 |  | 0 |  | 9 |  | 12 |  | 1.6 |  |" in rows
    assert "| `X` | 2 | 1 | 1 | 1 | 0 | 7 | 8 | 6 | 1.1 | 0.6 |" in rows


# -- the table in the documentation ---------------------------------------------------------------


def test_rcdrv_accesses_are_those_of_the_documentation(tmp_path: Path) -> None:
    ours = of_rcdrv(tmp_path / "access")
    told = documented()
    assert {name: row[0] for name, row in told.items()} == ours


def test_no_case_has_more_accesses_than_the_kernels_driver() -> None:
    """pci_endpoint_test reads STATUS once a command, and writes IRQ_TYPE and IRQ_NUMBER first."""
    both = {name: row for name, row in documented().items() if row[1] is not None}
    assert WHOLE in both
    for name, (mine, kernels) in both.items():
        assert kernels is not None
        assert mine.reads <= kernels.reads, name
        assert mine.writes <= kernels.writes, name
