"""Latency plots as SVG: the distribution over logarithmic time, and the course.

Colours and fonts come from the page's style sheet (light and dark). Each plot has a title and a
description for screen readers; the page has the numbers as a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rcdrv.report.html.markup import Markup, drawing, element
from rcdrv.report.text import wrapped
from rcdrv.results.bench import Series
from rcdrv.results.distribution import Distribution
from rcdrv.results.units import duration_text

WIDTH = 960
_LEFT, _RIGHT = 150, 120
_FEWEST_BINS, _MOST_BINS = 24, 110
_TICKS = (1, 2, 5)
_DOTS = 700
"""Maximum number of columns of a course; with more points each shows the range of several."""


class _Axis:
    """Logarithmic axis of time."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        # Never of length 0: a single value stands in the middle of a range.
        self.low, self.high = max(1.0, low) / 1.15, max(1.0, high, low) * 1.15
        self._start = start
        self._scale = (end - start) / math.log(self.high / self.low)

    def __call__(self, nanoseconds: float) -> float:
        return self._start + self._scale * math.log(max(1.0, nanoseconds) / self.low)

    def ticks(self) -> Iterator[float]:
        """Return round durations, at least two: fewer per decade, the more decades."""
        decades = math.log10(self.high / self.low)
        steps: Sequence[float] = (1,) if decades > 3 else _TICKS
        if decades < 0.7:
            steps = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for exponent in range(first, last + 1):
            for step in steps:
                value = step * 10.0**exponent
                if self.low <= value <= self.high:
                    yield value


def distributions(series: Sequence[Series], title: str, colours: Sequence[int] = ()) -> Markup:
    """Draw one row per series, over one axis.

    :param colours: number of each one's look; default a look of its own
    """
    tall = len(series) == 1
    row, hill = (150, 104) if tall else (92, 54)
    top, bottom = 14, 34
    height = top + row * len(series) + bottom
    axis = _Axis(
        min(one.distribution.minimum for one in series),
        max(one.distribution.maximum for one in series),
        _LEFT,
        WIDTH - _RIGHT,
    )
    floor = height - bottom
    parts: list[Markup] = [
        element(
            "g",
            [
                (
                    element("line", x1=axis(tick), x2=axis(tick), y1=top, y2=floor),
                    element("text", _tick_text(tick), x=axis(tick), y=floor + 20),
                )
                for tick in axis.ticks()
            ],
            class_="axis",
        )
    ]
    for index, one in enumerate(series):
        base = top + row * index + row - 30
        parts.append(_row(one, axis, base, hill, colours[index] if colours else index))
    words = "; ".join(map(_in_words, series))
    return drawing(WIDTH, height, title, words, parts, "plot")


def _row(one: Series, axis: _Axis, base: float, hill: float, colour: int) -> Markup:
    found = one.distribution
    high = max(count for _, _, count in _bins(found, axis))
    bars = [
        element(
            "rect",
            x=axis(first),
            y=base - max(1.5, hill * count / high),
            width=max(1.2, axis(last) - axis(first) - 0.8),
            height=max(1.5, hill * count / high),
        )
        for first, last, count in _bins(found, axis)
    ]
    first, *more = wrapped(one.name, 18)
    middle, high_text = (duration_text(found.percentile(share)) for share in (50, 99))
    return element(
        "g",
        element("g", bars, class_="bars"),
        element(
            "line", x1=axis(found.minimum), x2=axis(found.maximum), y1=base, y2=base, class_="reach"
        ),
        _marks(found, axis, base),
        element("text", first, x=_LEFT - 16, y=base - 8 - 16 * len(more), class_="name"),
        [
            element("text", line, x=_LEFT - 16, y=base - 8 - 16 * (len(more) - 1 - number),
                    class_="name")
            for number, line in enumerate(more)
        ],
        element("text", f"n = {found.count}", x=_LEFT - 16, y=base + 9, class_="count"),
        element("text", f"p50 {middle}", x=WIDTH - _RIGHT + 14, y=base - 8, class_="value"),
        element("text", f"p99 {high_text}", x=WIDTH - _RIGHT + 14, y=base + 9, class_="value"),
        class_=f"series s{colour % 6}",
    )  # fmt: skip


def _marks(found: Distribution, axis: _Axis, base: float) -> Markup:
    """Mark the percentiles on the base line, named where there is room."""
    marks = [(f"p{share:g}", found.percentile(share)) for share in (50.0, 99.0, 99.9, 90.0)]
    marks.insert(1, ("max", found.maximum))
    taken: list[float] = []
    parts = []
    for name, value in marks:
        x = axis(value)
        parts.append(element("circle", cx=x, cy=base, r=3.6 if name == "p50" else 2.6))
        room = 4.0 * len(name) + 9
        if all(abs(x - other) > room + 10 for other in taken):
            taken.append(x)
            parts.append(element("text", name, x=x, y=base + 15))
    return element("g", parts, class_="marks")


def _bins(found: Distribution, axis: _Axis) -> list[tuple[float, float, int]]:
    """Return (from, to, count) of the bins that are not empty, of equal width on the axis."""
    # Few samples need wide bins.
    bins = min(_MOST_BINS, max(_FEWEST_BINS, round(4 * math.sqrt(found.count))))
    step = math.log(axis.high / axis.low) / bins
    counts: dict[int, int] = {}
    for value, times in found.histogram(6):
        slot = min(bins - 1, max(0, int(math.log(max(1.0, value) / axis.low) / step)))
        counts[slot] = counts.get(slot, 0) + times
    return [
        (axis.low * math.exp(slot * step), axis.low * math.exp((slot + 1) * step), count)
        for slot, count in sorted(counts.items())
    ]


def course(points: Sequence[int | None], title: str, unit: str) -> Markup:
    """Draw the latencies in order, with the failures.

    :param points: nanoseconds, at least one; None if it failed
    :param unit: unit of the axis, such as ``ring``
    """
    top, floor, height = 16, 176, 222
    measured = [one for one in points if one is not None]
    axis = _Axis(min(measured), max(measured), floor, top)
    count = len(points)

    def across(index: float) -> float:
        return _LEFT + (WIDTH - _RIGHT - _LEFT) * (index + 0.5) / count

    grid = element(
        "g",
        [
            (
                element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=axis(tick), y2=axis(tick)),
                element("text", _tick_text(tick), x=_LEFT - 16, y=axis(tick) + 4, class_="end"),
            )
            for tick in axis.ticks()
        ],
        [
            element("text", str(number), x=across(number - 1), y=floor + 24)
            for number in _numbers(count)
        ],
        element("text", unit, x=_LEFT - 16, y=floor + 24, class_="end"),
        class_="axis",
    )
    dots, failed = [], []
    width = -(-count // _DOTS)
    for start in range(0, count, width):
        part = points[start : start + width]
        x = across(start + (len(part) - 1) / 2)
        values = sorted(one for one in part if one is not None)
        if len(values) > 1:
            dots.append(
                element("line", x1=x, x2=x, y1=axis(values[0]), y2=axis(values[-1]), class_="range")
            )
        if values:
            dots.append(
                element(
                    "circle", cx=x, cy=axis(values[len(values) // 2]), r=2 if count < 300 else 1.4
                )
            )
        if len(values) < len(part):
            failed.append(element("path", d=f"M{x - 4:.1f} {floor + 8}h8l-4 -8z"))
    words = f"{count} in order, {count - len(measured)} without an answer"
    if width > 1:
        words += f"; each line is the range of {width}, its dot their median"
    return drawing(
        WIDTH,
        height,
        title,
        words,
        [
            grid,
            element("g", dots, class_="series s0 dots"),
            element("g", failed, class_="failed"),
            element("text", words, x=WIDTH - _RIGHT, y=height - 4, class_="note"),
        ],
        "plot",
    )


def _numbers(count: int) -> list[int]:
    """Return 1, the last, and round numbers between."""
    step = 10 ** max(0, len(str(count)) - 1)
    if count // step < 3:
        step = max(1, step // 2) if count // step == 2 else max(1, step // 5)
    between = [number for number in range(step, count, step) if count - number > step * 0.6]
    return sorted({1, *(number for number in between if number > step * 0.6), count})


def _tick_text(nanoseconds: float) -> str:
    """Format a round duration: ``1 ms``, not ``1.00 ms``."""
    value, _, unit = duration_text(nanoseconds).partition(" ")
    return f"{float(value):g} {unit}"


def _in_words(one: Series) -> str:
    found = one.distribution
    values = ", ".join(
        f"{name} {duration_text(value)}"
        for name, value in (
            ("min", found.minimum),
            ("p50", found.percentile(50)),
            ("p99", found.percentile(99)),
            ("max", found.maximum),
        )
    )
    return f"{one.name}: {values}"
