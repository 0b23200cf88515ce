"""Small charts as SVG that stands within a page: bars, ranges, histograms, scatter plots.

Each takes its colours from the page, so that it can be dark, and says in words what it shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hatcli.report.page import Markup, element, number
from hatcli.report.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, Scale, Values, chart, scale, write

BULK = 0.99  # share of the values that counts as the bulk
MOST_BARS = 90
MOST_POINTS = 1200


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
    at = scale(ends, 0, 100)
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
    x = scale(edges[[0, -1]], LEFT, RIGHT)
    if x is None:
        return None
    places = x(edges)
    heights = np.log1p(counts) / np.log1p(counts.max()) * (BOTTOM - TOP)
    path = "".join(
        f"M{left:.1f} {BOTTOM}V{BOTTOM - height:.1f}H{max(right, left + 0.8):.1f}V{BOTTOM}Z"
        for left, right, height in zip(places[:-1], places[1:], heights, strict=True)
        if height
    )
    lines = [
        element("path", d=f"M{at:.1f} {TOP}V{BOTTOM}", class_="bound")
        for value in bounds or ()
        if edges[0] < value < edges[-1] and LEFT < (at := x(np.array([value]))[0]) < RIGHT
    ]
    low, high = number(edges[0]), number(edges[-1])
    bulk = bulk_of(histogram)
    middle = "" if bulk is None else f", 99 % of them from {number(bulk[0])} to {number(bulk[1])}"
    inside = "" if bounds is None else f"; codes reach {number(bounds[0])} to {number(bounds[1])}"
    return chart(
        f"{label}: histogram of {number(counts.sum(), ',.0f')} values "
        f"from {low} to {high}{middle}{inside}",
        element("path", d=path, class_="bar"),
        *lines,
        element("path", d=f"M{LEFT} {BOTTOM}H{RIGHT}", class_="axis"),
        *_ticks(edges, x),
        write(LEFT, 11, f"count, log scale, up to {number(counts.max(), ',.0f')}"),
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
    x, y = scale(ends, LEFT, RIGHT), scale(ends, BOTTOM, TOP)
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
    return chart(
        f"{label}: {finite.shape[1]} values from {low} to {high}, "
        f"integer against float; the farthest pair is {number(farthest)} apart{rest}",
        element("path", d=f"M{LEFT} {BOTTOM}L{RIGHT} {TOP}", class_="axis"),
        element("path", d=path, class_="dots"),
        element("path", d=f"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}", class_="axis"),
        *_ticks(ends, x),
        write(LEFT, 11, "integer (up) against float (across)"),
    )


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


def _ticks(ends: Values, x: Scale) -> list[Markup]:
    """The two ends, and 0 where it is well between them."""
    low, high = float(ends[0]), float(ends[-1])
    ticks = [write(LEFT, HEIGHT - 4, number(low))]
    ticks.append(write(RIGHT, HEIGHT - 4, number(high), "end"))
    zero = x(np.zeros(1))[0] if low < 0 < high else None
    if zero is not None and LEFT + 65 < zero < RIGHT - 65:
        ticks.append(element("path", d=f"M{zero:.1f} {BOTTOM}v5", class_="axis"))
        ticks.append(write(zero, HEIGHT - 4, "0", "middle"))
    return ticks


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
