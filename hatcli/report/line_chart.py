"""A chart of lines: values over epochs, as SVG that stands within a page."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hatcli.report.page import Markup, element, number
from hatcli.report.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, Scale, Values, chart, scale, write

MOST_LINES = 4  # the page has so many colours for them
WIDE_RANGE = 20.0  # largest over smallest from which on a log scale shows more
DOTTED = 40  # points up to which each gets a dot

_LABELS = 48.0  # width of the numbers beside the lines


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
    x = scale(np.array([every[:, 0].min(), every[:, 0].max()]), _LABELS, RIGHT)
    y = scale(np.log10(ends) if is_log else ends, BOTTOM, TOP + 6)
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
            element("path", d=f"M{x(np.array([mark]))[0]:.1f} {TOP}V{BOTTOM}", class_="mark")
        )
    said = "; ".join(
        f"{name} from {number(points[0, 1])} to {number(points[-1, 1])}"
        for name, points in kept.items()
    )
    return chart(
        f"{label} over {across} {number(every[:, 0].min())} to {number(every[:, 0].max())}: {said}",
        *_levels(ends, y, is_log=is_log),
        *drawn,
        *_counts(every[:, 0], x),
        write(LEFT, 11, f"{label}, log scale" if is_log else label),
        write(RIGHT, 11, across, "end"),
    )


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


def _levels(ends: Values, y: Scale, *, is_log: bool) -> list[Markup]:
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
        parts.append(element("path", d=f"M{_LABELS} {top:.1f}H{RIGHT}", class_="grid"))
        form = ".2g" if abs(level) >= 1e-3 or level == 0 else ".1e"
        text = number(level, form if abs(level) < 100 else ".4g").replace("e-0", "e-")
        parts.append(write(_LABELS - 4, top + 4, text, "end"))
    return parts


def _counts(across: Values, x: Scale) -> list[Markup]:
    """The axis below, with some whole numbers."""
    low, high = float(across.min()), float(across.max())
    parts = [element("path", d=f"M{_LABELS} {BOTTOM}H{RIGHT}", class_="axis")]
    for value in _round_values(low, high):
        if value == int(value):
            place = x(np.array([value]))[0]
            parts.append(element("path", d=f"M{place:.1f} {BOTTOM}v5", class_="axis"))
            parts.append(write(place, HEIGHT - 4, number(value, ",.0f"), "middle"))
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
