"""Plot of a benchmark: a histogram for each series, with its percentiles on the base line.

Needs matplotlib: ``pip install rcdrv[plot]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from rcdrv.bench.text import circumstances
from rcdrv.errors import HostError, UsageError
from rcdrv.files import replace_file
from rcdrv.results.bench import TITLES, Result, Series
from rcdrv.results.distribution import Distribution
from rcdrv.results.units import duration_text

if TYPE_CHECKING:
    import numpy
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Floats = NDArray[numpy.float64]

SUFFIXES = (".svg", ".png", ".pdf")

# Okabe and Ito's colours, distinct for every kind of colour vision, without yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_INK, _FAINT, _BEFORE = "#22262b", "#8a9099", "#9aa1aa"
_MARKS = ((50.0, "o", 7.0), (90.0, "|", 11.0), (99.0, "D", 5.5), (99.9, "s", 5.0))
_BINS = 240
_SMOOTH = 2.0  # standard deviation of the smoothing, in bins


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
    """Draw the series of a run over a common axis of time, those of an earlier run below.

    :param path: file; the suffix is one of :data:`SUFFIXES`
    :raises HostError: it cannot be written there
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    pairs = [
        (series, against.find(series.name) if against is not None else None)
        for series in result.series
    ]
    edges = _edges([one.distribution for pair in pairs for one in pair if one is not None])
    with matplotlib.rc_context(
        {"font.family": "sans-serif", "font.size": 12, "svg.fonttype": "none", "text.color": _INK}
    ):
        figure = Figure(figsize=(11, 2.6 + 0.82 * len(pairs)), layout="constrained")
        axes = figure.subplots()
        for row, (series, before) in enumerate(pairs):
            _draw_row(axes, -row, series, before, edges, _COLOURS[row % len(_COLOURS)])
        axes.set_xscale("log")
        axes.set_xlim(edges[0] / 1e9, edges[-1] / 1e9)
        axes.set_ylim(0.6 - len(pairs), 0.85)
        if edges[-1] < 300 * edges[0]:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(unit="s", sep=" "))
        axes.set_yticks([-row for row in range(len(pairs))], [one.name for one, _ in pairs])
        axes.tick_params(axis="y", length=0, pad=8, labelsize=13, labelcolor=_INK)
        axes.tick_params(axis="x", color=_FAINT, labelcolor=_INK)
        axes.grid(axis="x", which="major", color="#e3e6ea", linewidth=0.9)
        axes.set_axisbelow(True)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_FAINT)
        _legend(axes, against is not None)
        subtitle = circumstances(result)
        if against is not None:
            subtitle += f"\nbefore: {against.device}, {circumstances(against)}"
        axes.annotate(
            subtitle,
            (0, 1),
            xytext=(0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=10,
            color=_FAINT,
            linespacing=1.35,
        )
        axes.set_title(
            f"{TITLES.get(result.kind, result.kind)}, {result.device}",
            loc="left",
            pad=14 + 15 * len(subtitle.splitlines()),
            fontsize=17,
            fontweight="bold",
        )
        picture = BytesIO()
        figure.savefig(picture, format=path.suffix[1:].lower(), dpi=160)
    replace_file(path, picture.getvalue())


def _draw_row(
    axes: Axes, base: int, series: Series, before: Series | None, edges: Floats, colour: str
) -> None:
    height = 0.72 if before is None else 0.5
    _hill(axes, base, height, series.distribution, edges, colour)
    if before is not None:
        _hill(axes, base, -0.28, before.distribution, edges, _BEFORE)
    found = series.distribution
    axes.hlines(base, found.minimum / 1e9, found.maximum / 1e9, color=colour, linewidth=1.4)
    for percent, marker, size in _MARKS:
        axes.plot(
            [found.percentile(percent) / 1e9],
            [base],
            marker=marker,
            markersize=size,
            color=colour,
            markeredgecolor="white" if marker != "|" else colour,
            markeredgewidth=0.9 if marker != "|" else 2,
            zorder=3,
        )
    axes.plot([found.maximum / 1e9], [base], marker=4, markersize=7, color=colour, zorder=3)
    axes.annotate(
        _caption(series, before),
        (1.012, base),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=11,
        color=_INK,
        linespacing=1.35,
        annotation_clip=False,
    )


def _hill(
    axes: Axes, base: int, height: float, found: Distribution, edges: Floats, colour: str
) -> None:
    """Draw a histogram of this maximum height."""
    import numpy

    pairs = numpy.array(found.histogram(4), dtype=float)
    counts, _ = numpy.histogram(numpy.maximum(pairs[:, 0], 1), bins=edges, weights=pairs[:, 1])
    reach = numpy.arange(-int(4 * _SMOOTH), int(4 * _SMOOTH) + 1)
    kernel = numpy.exp(-0.5 * (reach / _SMOOTH) ** 2)
    smooth = numpy.convolve(counts, kernel / kernel.sum(), mode="same")
    middles = numpy.sqrt(edges[:-1] * edges[1:]) / 1e9
    outline = base + height * smooth / smooth.max()
    axes.fill_between(middles, base, outline, color=colour, alpha=0.32, linewidth=0)
    seen = smooth > smooth.max() * 1e-3
    axes.plot(middles, numpy.where(seen, outline, numpy.nan), color=colour, linewidth=1.3)


def _edges(found: Sequence[Distribution]) -> Floats:
    """Return the edges of bins of equal width on a logarithmic axis."""
    import numpy

    low = max(1, min(one.minimum for one in found)) / 1.25
    high = max(2, *(one.maximum for one in found)) * 1.25
    return numpy.geomspace(low, high, _BINS)


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


def _legend(axes: Axes, compared: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Line2D | Patch] = [
        Line2D([], [], color=_FAINT, linestyle="", marker=marker, markersize=size, label=label)
        for (percent, marker, size) in _MARKS
        for label in [f"p{percent:g}"]
    ]
    marks.append(Line2D([], [], color=_FAINT, linestyle="", marker=4, markersize=7, label="max"))
    if compared:
        marks.append(
            Patch(color=_BEFORE, alpha=0.4, label="before (\N{MULTIPLICATION SIGN}: now / before)")
        )
    axes.legend(
        handles=marks,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.5 / max(1, -axes.get_ylim()[0] + 1)),
        ncols=len(marks),
        frameon=False,
        fontsize=10,
        labelcolor=_FAINT,
        handletextpad=0.2,
    )
