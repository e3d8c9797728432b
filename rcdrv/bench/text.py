"""A run of a benchmark as a table for a terminal, alone or beside an earlier one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rcdrv.results.bench import Result, Series
from rcdrv.results.distribution import PERCENTILES, Distribution

_NAME = 30
_CELL = 10


def table(result: Result, against: Result | None = None) -> str:
    """Return percentiles in microseconds, one line per series; with ``against``, its and the ratio.

    Series that only one run has stand alone.
    """
    return "\n".join(_lines(result, against)) + "\n"


def circumstances(result: Result) -> str:
    """Return the conditions in one line, the most important first."""
    setup = result.setup
    parts = [
        f"{setup.get('backend')}, {setup.get('irq')}",
        str(setup.get("cpu") or setup.get("machine")),
        f"governor {setup.get('governor') or 'unknown'}",
        _nodes(setup),
        f"Linux {setup.get('kernel')}",
        f"Python {setup.get('python')}",
    ]
    return ", ".join(filter(None, parts))


def _nodes(setup: Mapping[str, Any]) -> str:
    if setup.get("numa_node") is None:
        return ""
    mine = ",".join(map(str, setup.get("cpu_nodes") or ["?"]))
    return f"NUMA node {setup['numa_node']}, CPUs on {mine}"


def duration(nanoseconds: float) -> str:
    """Return microseconds with three digits or more: ``0.043``, ``7.21``, ``112.4``."""
    value = nanoseconds / 1e3
    return f"{value:.{1 if value >= 100 else 2 if value >= 1 else 3}f}"


def _lines(result: Result, against: Result | None) -> Iterator[str]:
    yield f"{result.kind}: {result.device}, {result.setup.get('part')}"
    yield circumstances(result)
    if against is not None:
        yield f"before: {against.device}, {circumstances(against)}"
    yield ""
    if not result.series:
        return
    rates = any(series.size for series in result.series)
    heads = ["count", *(f"p{percent:g}" for percent in PERCENTILES), "max"]
    yield _line("us", [*heads, *(["MB/s"] if rates else [])])
    for series in result.series:
        yield _line(series.name, _cells(series))
        before = against.find(series.name) if against is not None else None
        if before is not None:
            yield _line("  before", _cells(before))
            yield _line("  ratio", _ratios(series.distribution, before.distribution))


def _line(name: str, cells: list[str]) -> str:
    return f"{name:{_NAME}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def _cells(series: Series) -> list[str]:
    found = series.distribution
    cells = [str(found.count), *(duration(value) for value in _values(found))]
    if series.size:
        cells.append(f"{series.rate(found.percentile(50)):.1f}")
    return cells


def _ratios(now: Distribution, before: Distribution) -> list[str]:
    pairs = zip(_values(now), _values(before), strict=True)
    return ["", *(f"{one / other:.2f}" if other else "-" for one, other in pairs)]


def _values(found: Distribution) -> list[int]:
    return [*(found.percentile(percent) for percent in PERCENTILES), found.maximum]
