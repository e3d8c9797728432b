"""Plot of a benchmark: a histogram for each series, with its percentiles.

Needs matplotlib: ``pip install rcdrv[plot]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcdrv.bench.text import circumstances
from rcdrv.errors import HostError, UsageError
from rcdrv.files import replace_file
from rcdrv.results.bench import TITLES, Result, Series
from rcdrv.results.distribution import PERCENTILES, Distribution
from rcdrv.results.units import duration_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf")

# Okabe and Ito's colours, distinct for every kind of colour vision, without yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_FAINT = "#8a9099"
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (1, 4)))
"""Of each percentile, and of the maximum."""
_BINS = 120


def check(path: Path) -> None:
    """Check that a plot can be written, before the measurement.

    :raises UsageError: the suffix is not a format, or there is no such folder
    :raises HostError: matplotlib is not installed
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"`path` {path}: the name has to end in {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"`path` {path}: there is no folder {path.parent}")
    try:
        import matplotlib.figure  # noqa: F401 - only whether it is there
    except ImportError:
        raise HostError(
            "`path` needs matplotlib, which is not installed", hint="pip install 'rcdrv[plot]'"
        ) from None


def draw(result: Result, path: Path, against: Result | None = None) -> None:
    """Draw the series of a run over a common axis of time, those of an earlier run behind them.

    :param path: file; the suffix is one of :data:`SUFFIXES`
    :raises HostError: it cannot be written there
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    pairs = [(one, against.find(one.name) if against else None) for one in result.series]
    found = [one.distribution for pair in pairs for one in pair if one is not None]
    low = max(1, min(one.minimum for one in found)) / 1.25e9
    high = max(2, *(one.maximum for one in found)) * 1.25e-9
    edges = [low * (high / low) ** (edge / _BINS) for edge in range(_BINS + 1)]
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 12}):
        figure = Figure(figsize=(11, 1.8 + 0.9 * len(pairs)), layout="constrained")
        rows = figure.subplots(len(pairs), sharex=True, squeeze=False)[:, 0]
        for axes, (series, before), colour in zip(rows, pairs, cycle(_COLOURS), strict=False):
            if before is not None:
                _histogram(axes, before.distribution, edges, _FAINT)
            _histogram(axes, series.distribution, edges, colour)
            axes.set_ylabel(series.name, rotation=0, ha="right", va="center", fontsize=13)
            axes.set_yticks([])
            axes.spines[["left", "right", "top"]].set_visible(False)
            caption = _caption(series, before)
            axes.text(1.01, 0.5, caption, transform=axes.transAxes, va="center", fontsize=11)
        rows[0].set_xscale("log")
        if high < 300 * low:
            rows[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        rows[0].xaxis.set_major_formatter(EngFormatter(unit="s", sep=" "))
        rows[0].xaxis.set_minor_formatter(NullFormatter())
        title = [f"{TITLES.get(result.kind, result.kind)}, {result.device}", circumstances(result)]
        if against is not None:
            title.append(f"before: {against.device}, {circumstances(against)}, in grey")
        figure.suptitle("\n".join(title), x=0.01, ha="left", fontsize=12)
        figure.legend(*rows[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        picture = BytesIO()
        figure.savefig(picture, format=path.suffix[1:].lower(), dpi=160)
    replace_file(path, picture.getvalue())


def _histogram(axes: Axes, found: Distribution, edges: Sequence[float], colour: str) -> None:
    """Draw the share of each duration, with a line at each percentile."""
    values, counts = zip(*found.histogram(4), strict=True)
    weights = [count / found.count for count in counts]
    seconds = [max(1, value) / 1e9 for value in values]
    axes.hist(seconds, edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.4)
    marks = {f"p{percent:g}": found.percentile(percent) for percent in PERCENTILES}
    for (name, value), style in zip({**marks, "max": found.maximum}.items(), _LINES, strict=True):
        label = "" if colour == _FAINT else name
        axes.axvline(max(1, value) / 1e9, color=colour, linestyle=style, label=label)


def _caption(series: Series, before: Series | None) -> str:
    found = series.distribution
    middle, high = found.percentile(50), found.percentile(99)
    first = f"p50 {duration_text(middle)}"
    second = f"p99 {duration_text(high)}"
    if series.size:
        second = f"{series.rate(middle):.0f} MB/s"
    if before is None:
        return f"{first}\n{second}"
    was = before.distribution
    return (
        f"{first}  \N{MULTIPLICATION SIGN}{middle / max(1, was.percentile(50)):.2f}\n"
        f"p99 {duration_text(high)}  \N{MULTIPLICATION SIGN}{high / max(1, was.percentile(99)):.2f}"
    )
