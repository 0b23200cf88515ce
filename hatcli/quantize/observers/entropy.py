"""The range whose codes tell the most about the values."""

import numpy as np
from torch import Tensor

from hatcli.quantize import OBSERVERS
from hatcli.quantize.grid import grid_of_range
from hatcli.quantize.histogram import BINS, Histogram

RATIOS = np.geomspace(1.0, 0.02, 96)  # 4 % apart


@OBSERVERS.register
def entropy(bins: int = BINS) -> "Entropy":
    """The range at which quantizing loses the least information.

    Args:
        bins: of the histogram; a multiple of 4.

    Raises:
        ConfigError: the number of bins is out of bounds.
    """
    return Entropy(Histogram(bins))


class Entropy:
    """Tries parts of the whole range, both ends cut by the same ratio.

    The measure is the Kullback-Leibler divergence of Migacz, 8-bit Inference with TensorRT, GTC
    2017, which onnxruntime's entropy calibration uses too: the reference is the histogram with
    all that lies outside counted into the outermost bins, and beside it stands the histogram
    inside the range with the counts of each code spread evenly over those of its bins that aren't
    empty. That distribution doesn't get what was cut, so that cutting shows as a divergence.

    Two things differ, since grids here are not symmetric and have a code for 0.0: the ends are
    those of the grid, and zeros, which that code stands for exactly, are counted in neither.
    """

    def __init__(self, histogram: Histogram) -> None:
        self.histogram = histogram

    def observe(self, x: Tensor) -> None:
        """Take in a tensor of any shape, float32, finite."""
        self.histogram.add(x)

    def range(self, bits: int) -> tuple[float, float]:
        """The best range for codes of a width; the widest of equals."""
        low, high = self.histogram.low, self.histogram.high
        counts = self.histogram.counts.astype(np.float64)
        edges = self.histogram.edges()
        counts[self.histogram.bins // 2] = 0  # the bin of zeros
        if counts.sum() == 0:
            return low, high
        ranges = [(low * ratio, high * ratio) for ratio in RATIOS.tolist()]
        losses = [_divergence(edges, counts, part, bits) for part in ranges]
        return ranges[int(np.argmin(losses))]


def _divergence(
    edges: np.ndarray, counts: np.ndarray, part: tuple[float, float], bits: int
) -> float:
    """The divergence, in nats, of what codes of a range tell from what was seen."""
    grid = grid_of_range(*part, bits)
    middles = (edges[1:] + edges[:-1]) / 2
    steps = np.rint(middles / grid.scale)
    inside = (steps >= grid.low) & (steps <= grid.high)
    if not inside.any():
        return float("inf")
    first, last = np.flatnonzero(inside)[[0, -1]]
    seen = counts[first : last + 1].copy()
    codes = (steps[first : last + 1] - grid.low).astype(np.int64)
    filled = seen > 0
    per_code = np.bincount(codes, weights=seen, minlength=2**bits)
    share = np.bincount(codes, weights=filled, minlength=2**bits)
    told = np.where(filled, (per_code / np.maximum(share, 1))[codes], 0.0)
    seen[0] += counts[:first].sum()
    seen[-1] += counts[last + 1 :].sum()
    if told.sum() == 0:
        return float("inf")
    told[(told == 0) & (seen > 0)] = _SMALLEST * told.sum()
    used = seen > 0
    p, q = seen[used] / seen.sum(), told[used] / told.sum()
    return float(np.sum(p * np.log(p / q)))


_SMALLEST = 1e-6  # the share of an outermost bin into which only cut values were counted
