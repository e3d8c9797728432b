"""Result of a benchmark, and its JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rcdrv.errors import UsageError
from rcdrv.files import LARGEST_RESULT, read_file
from rcdrv.results.distribution import PERCENTILES, Distribution
from rcdrv.results.node import Node, parse

TITLES = {
    "ring": "Doorbell to acknowledgement",
    "mmio": "Accesses to registers and memory",
    "dma": "Transfers by the endpoint",
    "irq": "Interrupts",
}
"""Title of each benchmark."""


class Series(NamedTuple):
    """Durations of one kind of operation."""

    name: str
    distribution: Distribution
    """Nanoseconds per operation."""
    size: int = 0
    """Bytes per operation; 0 where a rate has no meaning."""

    def rate(self, nanoseconds: int) -> float:
        """Return the rate in MB/s at this duration."""
        return self.size / max(1, nanoseconds) * 1e3


@dataclass
class Result:
    """One run of a benchmark, filled as it runs."""

    kind: str
    """``ring``, ``mmio``, ``dma`` or ``irq``."""
    device: str
    setup: Mapping[str, Any]
    """Conditions needed to repeat it; see :func:`rcdrv.bench.setup.describe`."""
    series: list[Series] = field(default_factory=list)
    left_enabled: bool = False
    """Whether the endpoint's doorbell may still be enabled."""

    def find(self, name: str) -> Series | None:
        return next((series for series in self.series if series.name == name), None)


def to_document(result: Result) -> dict[str, Any]:
    """Return plain JSON types. Keys are stable; new ones may be added.

    ``bench``, ``device``, ``setup``
        The benchmark, the endpoint and the conditions.
    ``doorbell_left_enabled``
        The endpoint did not confirm the last DISABLE.
    ``series``
        A list. ``name``; ``unit``, always ``ns``; ``size``, bytes per operation (0: none);
        ``count``; ``min``, ``mean``, ``p50``, ``p90``, ``p99``, ``p99.9``, ``max``;
        ``histogram``, (duration, count) pairs, durations rounded to three digits.
    """
    return {
        "bench": result.kind,
        "device": result.device,
        "setup": result.setup,
        "doorbell_left_enabled": result.left_enabled,
        "series": [
            {
                "name": series.name,
                "unit": "ns",
                "size": series.size,
                "count": series.distribution.count,
                "min": series.distribution.minimum,
                "mean": series.distribution.mean,
                **percentiles(series.distribution),
                "max": series.distribution.maximum,
                "histogram": series.distribution.histogram(),
            }
            for series in result.series
        ],
    }


def percentiles(distribution: Distribution) -> dict[str, int]:
    """Return ``{"p50": ..., "p99.9": ...}``."""
    return {f"p{percent:g}": distribution.percentile(percent) for percent in PERCENTILES}


def from_document(document: Node) -> Result:
    """Return a run from its document; percentiles have three digits then.

    :raises UsageError: not such a document
    """
    setup = {name: one.value for name, one in document["setup"].items()}
    result = Result(document["bench"].text, document["device"].text, setup)
    for entry in document["series"]:
        series = Series(entry["name"].text, distribution(entry), entry["size"].integer)
        result.series.append(series)
    return result


def distribution(entry: Node) -> Distribution:
    """Return the durations of an entry's ``histogram``, which has three digits of each."""
    counts = []
    for pair in entry["histogram"]:
        duration, times = pair.entries(2)
        counts.append((duration.nanoseconds, times.integer))
    if not sum(times for _, times in counts):
        entry["histogram"].wrong("a histogram with anything in it")
    return Distribution(counts)


def load(path: Path, kind: str) -> Result:
    """Read an earlier run of the same kind of benchmark.

    :raises UsageError: no such file, or not such a document
    """
    hint = f"make one with: rcdrv bench {kind} --json > FILE"
    result = from_document(parse(read_file(path, LARGEST_RESULT), str(path), hint))
    if result.kind != kind:
        raise UsageError(f"{path} is a result of 'rcdrv bench {result.kind}', not of {kind!r}")
    if not result.series:
        raise UsageError(f"{path} holds no measurements: that run failed before its first")
    return result
