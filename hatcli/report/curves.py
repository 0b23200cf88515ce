"""How loss and metrics went over the epochs, as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hatcli.report.pictures import write_png

SIZE = (10.0, 4.0)  # inches
DPI = 120


def write_curves(
    path: Path,
    history: Sequence[Mapping[str, float | None]],
    *,
    metrics: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Write a PNG with the loss on the left and the metrics, in percent, on the right.

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

    for name in names:
        points = [
            (row["epoch"], value)
            for row in history
            if (value := row.get(name)) is not None and math.isfinite(value)
        ]
        if points:
            epochs, values = zip(*points, strict=True)
            marker = "o" if len(points) <= 40 else ""
            axes.plot(
                epochs, values, marker=marker, markersize=3, label=f"{name} {values[-1]:{form}}"
            )
    if axes.lines:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes)
    axes.set_xlabel("epoch")
    axes.set_title(label, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
