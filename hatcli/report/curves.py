"""How loss and metrics went over the epochs, as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hatcli.report.pictures import write_png

SIZE = (10.0, 4.0)  # inches
DPI = 120

Points = NDArray[np.float64]


def write_curves(
    path: Path,
    history: Sequence[Mapping[str, float | None]],
    *,
    metrics: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Write a PNG with the loss on the left and the metrics, in percent, on the right.

    A metric that hides another, because both are equal throughout, is left out.

    Args:
        path: its folder is made if it is missing.
        history: one {"epoch": ..., "loss": ..., metric: percent, ...} for each epoch; a value may
            be missing, None or not finite, and is then left out.
        metrics: which to draw; None = all whose name has no dot, that is, not of one class.
        title: stands above both.

    Raises:
        HatError: the disk doesn't take it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if metrics is None:
        names = dict.fromkeys(name for row in history for name in row)
        metrics = [
            name for name in names if "." not in name and name not in ("epoch", "loss", "lr")
        ]
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")  # not pyplot's: no global state
    canvas: Any = FigureCanvasAgg(figure)
    loss_axes, metric_axes = figure.subplots(1, 2)
    _draw(loss_axes, history, ["loss"], "training loss", ".4f")
    _draw(metric_axes, history, metrics, "validation, percent", ".2f")
    if title:
        figure.suptitle(title)
    canvas.draw()
    write_png(path, np.array(canvas.buffer_rgba())[..., :3])


def _draw(
    axes: Any,
    history: Sequence[Mapping[str, float | None]],
    names: Sequence[str],
    label: str,
    form: str,
) -> None:
    """Draw one line for each name that has a value, with its last value in the legend."""
    from matplotlib.ticker import MaxNLocator

    drawn: list[Points] = []
    for name in names:
        points = _points(history, name)
        if len(points) and not any(_is_alike(points, one) for one in drawn):
            drawn.append(points)
            marker = "o" if len(points) <= 40 else ""
            label_in_legend = f"{name} {points[-1, 1]:{form}}"
            axes.plot(*points.T, marker=marker, markersize=3, label=label_in_legend)
    if axes.lines:
        every = np.concatenate(drawn)
        last = max(row["epoch"] or 0 for row in history)
        axes.set_xlim(0, 1.04 * last)  # the same for both, though not each epoch is validated
        if 0 <= every[:, 1].min() < every[:, 1].max() / 2:
            axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes)
    axes.set_xlabel("epoch")
    axes.set_title(label, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _points(history: Sequence[Mapping[str, float | None]], name: str) -> Points:
    """(N, 2): epochs, and values that are finite."""
    pairs = [(row["epoch"], row.get(name)) for row in history]
    known = [pair for pair in pairs if pair[1] is not None and math.isfinite(pair[1])]
    return np.asarray(known, np.float64).reshape(-1, 2)


def _is_alike(points: Points, others: Points) -> bool:
    return len(points) == len(others) and np.allclose(points, others, rtol=1e-9, atol=0)
