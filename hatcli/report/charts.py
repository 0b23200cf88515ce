"""Small charts as SVG that stands within a page: bars, ranges, histograms, scatter plots, lines.

Each takes its colours from the page, so that it can be dark, and says in words what it shows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hatcli.report.page import Markup, element, number

BULK = 0.99  # share of the values that counts as the bulk
MOST_BARS = 90
MOST_POINTS = 1200
MOST_LINES = 4  # the page has so many colours for them
WIDE_RANGE = 20.0  # largest over smallest from which on a log scale shows more
DOTTED = 40  # points up to which each gets a dot

_WIDTH, _HEIGHT = 340.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 8.0, 332.0, 18.0, 176.0  # of the plot within them
_LABELS = 48.0  # width of the numbers beside a line chart

Values = NDArray[np.float64]


def bar(value: float | None, top: float, *, is_poor: bool = False) -> Markup:
    """A bar for a cell that has the number as text: from 0 to value, of a width that means top.

    Nothing is drawn for None, NaN and what is below 0.
    """
    share = 0.0 if value is None or not top > 0 else np.clip(np.nan_to_num(value / top), 0, 1)
    return _inline(
        _rectangle(0, 100, "rest", top=9, height=1),
        _rectangle(0, 100 * float(share), "poor" if is_poor else "bar"),
    )


def strip(low: float, high: float, bulk: tuple[float, float] | None) -> Markup:
    """A range for a cell that has the numbers as text: thin from low to high, thick the bulk.

    0 is marked; the width is from the smaller of low and 0 to the larger of high and 0.
    """
    ends = np.array([min(low, 0.0), max(high, 0.0)])
    at = _scale(ends, 0, 100)
    if at is None:
        return Markup()
    left, right = at(np.array([low, high]))
    parts = [_rectangle(left, right, "rest", top=3.5, height=3)]
    if bulk is not None:
        left, right = at(np.clip(np.array(bulk), low, high))
        parts.append(_rectangle(left, max(right, left + 1), "bar"))
    zero = at(np.zeros(1))[0]
    parts.append(element("path", d=f"M{zero:.1f} 0V10", class_="axis"))
    return _inline(*parts)


def bulk_of(histogram: Mapping[str, Any]) -> tuple[float, float] | None:
    """The ends between which the middle 99 % of the values lie; None where there are no values.

    Args:
        histogram: "edges", n + 1 ascending numbers, and "counts", n numbers.
    """
    found = _bins(histogram)
    if found is None:
        return None
    edges, counts = found
    reached = np.concatenate([[0.0], np.cumsum(counts)])
    wanted = reached[-1] * np.array([(1 - BULK) / 2, (1 + BULK) / 2])
    low, high = np.interp(wanted, reached, edges)
    return float(low), float(high)


def histogram_chart(
    histogram: Mapping[str, Any],
    *,
    label: str,
    bounds: tuple[float, float] | None = None,
) -> Markup | None:
    """Counts over values, the counts on a log scale, so that a single outlier can be seen.

    Args:
        histogram: "edges", n + 1 ascending numbers, and "counts", n numbers; of any n.
        label: what the values are.
        bounds: the range that codes reach, drawn as dashed lines where it is inside.

    Returns:
        None where there are no values.
    """
    found = _bins(histogram)
    if found is None:
        return None
    edges, counts = _merged(*found)
    x = _scale(edges[[0, -1]], _LEFT, _RIGHT)
    if x is None:
        return None
    places = x(edges)
    heights = np.log1p(counts) / np.log1p(counts.max()) * (_BOTTOM - _TOP)
    path = "".join(
        f"M{left:.1f} {_BOTTOM}V{_BOTTOM - height:.1f}H{max(right, left + 0.8):.1f}V{_BOTTOM}Z"
        for left, right, height in zip(places[:-1], places[1:], heights, strict=True)
        if height
    )
    lines = [
        element("path", d=f"M{at:.1f} {_TOP}V{_BOTTOM}", class_="bound")
        for value in bounds or ()
        if edges[0] < value < edges[-1] and _LEFT < (at := x(np.array([value]))[0]) < _RIGHT
    ]
    low, high = number(edges[0]), number(edges[-1])
    bulk = bulk_of(histogram)
    middle = "" if bulk is None else f", 99 % of them from {number(bulk[0])} to {number(bulk[1])}"
    inside = "" if bounds is None else f"; codes reach {number(bounds[0])} to {number(bounds[1])}"
    return _chart(
        f"{label}: histogram of {number(counts.sum(), ',.0f')} values "
        f"from {low} to {high}{middle}{inside}",
        element("path", d=path, class_="bar"),
        *lines,
        element("path", d=f"M{_LEFT} {_BOTTOM}H{_RIGHT}", class_="axis"),
        *_ticks(edges, x),
        _text(_LEFT, 11, f"count, log scale, up to {number(counts.max(), ',.0f')}"),
    )


def scatter_chart(
    floats: Sequence[float], integers: Sequence[float], *, label: str
) -> Markup | None:
    """What a layer gives as integers over what it gives in float, with the line of equality.

    Args:
        floats: values of the float model.
        integers: those of the integer model at the same places.
        label: what the values are.

    Returns:
        None where there is no pair of finite values.
    """
    pairs = np.stack([np.asarray(floats, np.float64), np.asarray(integers, np.float64)])
    finite = pairs[:, np.isfinite(pairs).all(0)]
    if finite.shape[1] == 0:
        return None
    ends = np.array([finite.min(), finite.max()])
    x, y = _scale(ends, _LEFT, _RIGHT), _scale(ends, _BOTTOM, _TOP)
    if x is None or y is None:
        return None
    shown = finite[:, :: -(-finite.shape[1] // MOST_POINTS)]
    path = "".join(
        f"M{across:.1f} {up:.1f}h0" for across, up in zip(x(shown[0]), y(shown[1]), strict=True)
    )
    low, high = number(ends[0]), number(ends[1])
    farthest = float(np.abs(finite[0] - finite[1]).max())
    dropped = pairs.shape[1] - finite.shape[1]
    rest = f"; {dropped} that aren't finite left out" if dropped else ""
    return _chart(
        f"{label}: {finite.shape[1]} values from {low} to {high}, "
        f"integer against float; the farthest pair is {number(farthest)} apart{rest}",
        element("path", d=f"M{_LEFT} {_BOTTOM}L{_RIGHT} {_TOP}", class_="axis"),
        element("path", d=path, class_="dots"),
        element("path", d=f"M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}", class_="axis"),
        *_ticks(ends, x),
        _text(_LEFT, 11, "integer (up) against float (across)"),
    )


def line_chart(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    label: str,
    across: str = "epoch",
    mark: float | None = None,
    may_be_log: bool = False,
) -> Markup | None:
    """Values over epochs.

    Args:
        lines: name -> points (across, up); at most `MOST_LINES` of them, in the order of the
            page's line colours. Points that aren't finite leave no gap.
        label: what the values are.
        across: what the points are counted in.
        mark: place across that gets a vertical line.
        may_be_log: whether they get a log scale where all are above 0 and far apart.

    Returns:
        None where there is no finite point.
    """
    kept = {name: _finite_points(points) for name, points in lines.items()}
    kept = {name: points for name, points in kept.items() if points.size}
    if not kept:
        return None
    every = np.concatenate(list(kept.values()))
    low, high = float(every[:, 1].min()), float(every[:, 1].max())
    is_log = may_be_log and low > 0 and high / low > WIDE_RANGE
    ends = np.array([low, high])
    x = _scale(np.array([every[:, 0].min(), every[:, 0].max()]), _LABELS, _RIGHT)
    y = _scale(np.log10(ends) if is_log else ends, _BOTTOM, _TOP + 6)
    if x is None or y is None:
        return None
    drawn = [
        part
        for place, points in enumerate(kept.values())
        for part in _line(
            x(points[:, 0]), y(np.log10(points[:, 1]) if is_log else points[:, 1]), place
        )
    ]
    if mark is not None:
        drawn.append(
            element("path", d=f"M{x(np.array([mark]))[0]:.1f} {_TOP}V{_BOTTOM}", class_="mark")
        )
    said = "; ".join(
        f"{name} from {number(points[0, 1])} to {number(points[-1, 1])}"
        for name, points in kept.items()
    )
    return _chart(
        f"{label} over {across} {number(every[:, 0].min())} to {number(every[:, 0].max())}: {said}",
        *_levels(ends, y, is_log=is_log),
        *drawn,
        *_counts(every[:, 0], x),
        _text(_LEFT, 11, f"{label}, log scale" if is_log else label),
        _text(_RIGHT, 11, across, "end"),
    )


class _Line:
    """Maps values to places, linearly; both ends finite and apart."""

    def __init__(self, ends: Values, start: float, stop: float) -> None:
        self.peak = float(np.abs(ends).max())  # divided by it first: a difference can overflow
        self.low = ends[0] / self.peak
        self.extent = ends[1] / self.peak - self.low
        self.start, self.stop = start, stop

    def __call__(self, values: Values) -> Values:
        share = (values / self.peak - self.low) / self.extent
        return self.start + share * (self.stop - self.start)


def _scale(ends: Values, start: float, stop: float) -> _Line | None:
    """From the value ends[0] at start to ends[1] at stop; around a single value, some room."""
    if not np.isfinite(ends).all():
        return None
    if ends[0] == ends[1]:
        room = abs(ends[0]) / 2 or 1.0
        ends = np.array([ends[0] - room, ends[1] + room])
    return _Line(ends, start, stop)


def _finite_points(points: Sequence[tuple[float, float]]) -> Values:
    pairs = np.asarray(points, np.float64).reshape(-1, 2)
    return pairs[np.isfinite(pairs).all(1)]


def _line(across: Values, up: Values, place: int) -> list[Markup]:
    """A line, with a dot at each of its points where these are few."""
    pairs = [f"{left:.1f} {top:.1f}" for left, top in zip(across, up, strict=True)]
    parts = [element("path", d=f"M{'L'.join(pairs)}", class_=f"line line-{place}")]
    if len(pairs) <= DOTTED:
        dots = "".join(f"M{pair}h0" for pair in pairs)
        parts.append(element("path", d=dots, class_=f"line-{place} knots"))
    return parts


def _levels(ends: Values, y: _Line, *, is_log: bool) -> list[Markup]:
    """Grid lines at round values, with their numbers."""
    if is_log:
        powers = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
        levels = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        if len([level for level in levels if ends[0] <= level <= ends[1]]) > 6:
            levels = [10.0**power for power in powers]
    else:
        levels = _round_values(*ends.tolist())
    parts = []
    for level in levels:
        if not ends[0] <= level <= ends[1]:
            continue
        top = y(np.array([math.log10(level) if is_log else level]))[0]
        parts.append(element("path", d=f"M{_LABELS} {top:.1f}H{_RIGHT}", class_="grid"))
        form = ".2g" if abs(level) >= 1e-3 or level == 0 else ".1e"
        text = number(level, form if abs(level) < 100 else ".4g").replace("e-0", "e-")
        parts.append(_text(_LABELS - 4, top + 4, text, "end"))
    return parts


def _counts(across: Values, x: _Line) -> list[Markup]:
    """The axis below, with some whole numbers."""
    low, high = float(across.min()), float(across.max())
    parts = [element("path", d=f"M{_LABELS} {_BOTTOM}H{_RIGHT}", class_="axis")]
    for value in _round_values(low, high):
        if value == int(value):
            place = x(np.array([value]))[0]
            parts.append(element("path", d=f"M{place:.1f} {_BOTTOM}v5", class_="axis"))
            parts.append(_text(place, _HEIGHT - 4, number(value, ",.0f"), "middle"))
    return parts


def _round_values(low: float, high: float) -> list[float]:
    """About four round values from low to high, or the one value there is."""
    if low == high:
        return [low]
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _bins(histogram: Mapping[str, Any]) -> tuple[Values, Values] | None:
    """Edges and counts without the empty bins at both ends; None where nothing is counted."""
    edges = np.asarray(histogram["edges"], np.float64)
    counts = np.asarray(histogram["counts"], np.float64)
    if not (np.isfinite(edges).all() and np.isfinite(counts).all()):
        return None
    used = np.flatnonzero(counts > 0)
    if used.size == 0:
        return None
    return edges[used[0] : used[-1] + 2], counts[used[0] : used[-1] + 1]


def _merged(edges: Values, counts: Values) -> tuple[Values, Values]:
    """The same with neighbouring bins put together where there are more than can be seen."""
    together = -(-counts.size // MOST_BARS)
    starts = np.arange(0, counts.size, together)
    return np.append(edges[starts], edges[-1]), np.add.reduceat(counts, starts)


def _ticks(ends: Values, x: _Line) -> list[Markup]:
    """The two ends, and 0 where it is well between them."""
    low, high = float(ends[0]), float(ends[-1])
    ticks = [_text(_LEFT, _HEIGHT - 4, number(low))]
    ticks.append(_text(_RIGHT, _HEIGHT - 4, number(high), "end"))
    zero = x(np.zeros(1))[0] if low < 0 < high else None
    if zero is not None and _LEFT + 65 < zero < _RIGHT - 65:
        ticks.append(element("path", d=f"M{zero:.1f} {_BOTTOM}v5", class_="axis"))
        ticks.append(_text(zero, _HEIGHT - 4, "0", "middle"))
    return ticks


def _text(x: float, y: float, text: str, anchor: str | None = None) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _rectangle(
    left: float, right: float, kind: str, *, top: float = 0, height: float = 10
) -> Markup:
    width = f"{max(right - left, 0):.1f}"
    return element("rect", x=f"{left:.1f}", y=top, width=width, height=height, class_=kind)


def _inline(*parts: Markup) -> Markup:
    """A picture that repeats a number beside it, so that nobody needs it read out."""
    return element(
        "svg",
        *parts,
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        class_="inline",
        aria_hidden="true",
    )


def _chart(description: str, *parts: Markup) -> Markup:
    size = f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}"
    return element("svg", *parts, viewBox=size, role="img", aria_label=description)
