"""Counting accesses in an endpoint's log."""

from __future__ import annotations

import json

from tools.transactions import Count, count, table


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
    assert count(log) == Count(reads=1, writes=2, config=1)


def test_a_bulk_access_counts_its_words() -> None:
    """One message of vfio-user is many accesses on a link."""
    log = _line(op="read", region="BAR2", offset=0, size=4096, data="00" * 4096)
    assert count(log).reads == 1024


def test_the_table_leaves_out_what_the_kernel_has_not() -> None:
    rows = table({"open": Count(3, 0, 0), "X": Count(2, 1, 0)}, {"X": Count(1, 1, 0)})
    assert "| `open` | 3 |  | 0 |  | 1.6 |  |" in rows
    assert "| `X` | 2 | 1 | 1 | 1 | 1.1 | 0.6 |" in rows
