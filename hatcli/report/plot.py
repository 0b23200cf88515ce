"""The sheet that a chart is drawn on: its size, its scales, its words, and what it says aloud."""

import numpy as np
from numpy.typing import NDArray

from hatcli.report.page import Markup, element

WIDTH, HEIGHT = 340.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 8.0, 332.0, 18.0, 176.0  # of the plot within them

Values = NDArray[np.float64]


class Scale:
    """Maps values to places, linearly; both ends finite and apart."""

    def __init__(self, ends: Values, start: float, stop: float) -> None:
        self.peak = float(np.abs(ends).max())  # divided by it first: a difference can overflow
        self.low = ends[0] / self.peak
        self.extent = ends[1] / self.peak - self.low
        self.start, self.stop = start, stop

    def __call__(self, values: Values) -> Values:
        """The places of these values, of the same shape."""
        share = (values / self.peak - self.low) / self.extent
        return self.start + share * (self.stop - self.start)


def scale(ends: Values, start: float, stop: float) -> Scale | None:
    """From the value ends[0] at start to ends[1] at stop; around a single value, some room."""
    if not np.isfinite(ends).all():
        return None
    if ends[0] == ends[1]:
        room = abs(ends[0]) / 2 or 1.0
        ends = np.array([ends[0] - room, ends[1] + room])
    return Scale(ends, start, stop)


def write(x: float, y: float, text: str, anchor: str | None = None) -> Markup:
    """Words that begin at a place, or with the anchor "middle" or "end" have that there."""
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def chart(description: str, *parts: Markup) -> Markup:
    """The parts as one picture that is read out as its description."""
    size = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    return element("svg", *parts, viewBox=size, role="img", aria_label=description)
