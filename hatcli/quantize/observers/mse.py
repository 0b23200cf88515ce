"""The range of the least squared error."""

import numpy as np
import torch
from torch import Tensor

from hatcli.quantize import OBSERVERS
from hatcli.quantize.grid import Grid, grid_of_range
from hatcli.quantize.histogram import BINS, Histogram
from hatcli.quantize.target import GridOf

COARSE_RATIOS = np.geomspace(1.0, 0.01, 65)  # 7 % apart
FINE_RATIOS = 33  # between the neighbours of the best of them: 0.5 % apart
WEIGHT_RATIOS = np.linspace(1.0, 0.2, 81)  # 2 bits want as little as a third

_POINT = 1e-6  # in grid steps: a narrower bin counts as one value, lest differences cancel


@OBSERVERS.register
def mse(bins: int = BINS, grid_of: GridOf = grid_of_range) -> "MeanSquaredError":
    """The range, a part of the whole one, at which quantizing does the least squared error.

    Args:
        bins: of the histogram; a multiple of 4.
        grid_of: how the target makes a grid of a range.

    Raises:
        ConfigError: the number of bins is out of bounds.
    """
    return MeanSquaredError(Histogram(bins), grid_of)


class MeanSquaredError:
    """Tries parts of the whole range, both ends cut by the same ratio."""

    def __init__(self, histogram: Histogram, grid_of: GridOf = grid_of_range) -> None:
        self.histogram = histogram
        self.grid_of = grid_of

    def observe(self, x: Tensor) -> None:
        """Take in a tensor of any shape, float32, finite."""
        self.histogram.add(x)

    def range(self, bits: int) -> tuple[float, float]:
        """The best range for codes of a width."""
        coarse = COARSE_RATIOS
        best = int(np.argmin(self._errors(coarse, bits)))
        widest, narrowest = coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)]
        fine = np.append(coarse[best], np.linspace(widest, narrowest, FINE_RATIOS))
        ratio = float(fine[int(np.argmin(self._errors(fine, bits)))])
        return self.histogram.low * ratio, self.histogram.high * ratio

    def channel_ranges(self, weight: Tensor, highest: int) -> Tensor:
        """The best magnitude for each output channel.

        Args:
            weight: (O, ...) float32.
            highest: largest code; the smallest is its negative.

        Returns:
            (O,) float32.
        """
        rows = weight.flatten(1)
        whole = rows.abs().amax(1)
        best, least = whole, torch.full_like(whole, torch.inf)
        for ratio in WEIGHT_RATIOS:
            scale = (whole * (float(ratio) / highest)).clamp_min(torch.finfo(whole.dtype).tiny)
            codes = (rows / scale[:, None]).round_().clamp_(-highest, highest)
            error = codes.mul_(scale[:, None]).sub_(rows).square_().sum(1)
            better = error < least
            best = torch.where(better, whole * float(ratio), best)
            least = torch.where(better, error, least)
        return best

    def _errors(self, ratios: np.ndarray, bits: int) -> list[float]:
        filled = np.flatnonzero(self.histogram.counts)
        first, last = filled[0], filled[-1]
        counts = self.histogram.counts[first : last + 1]
        edges = self.histogram.edges()[first : last + 2]
        low, high = self.histogram.low, self.histogram.high
        grids = [self.grid_of(low * ratio, high * ratio, bits) for ratio in ratios.tolist()]
        return [squared_error(edges, counts, grid) for grid in grids]


def squared_error(edges: np.ndarray, counts: np.ndarray, grid: Grid) -> float:
    """The sum of squared quantization errors of values spread evenly within bins.

    Args:
        edges: (n + 1,) float64, ascending; a bin without width is a single value.
        counts: (n,) values in each bin.
        grid: where the values are rounded to, and cut.
    """
    x = edges / grid.scale  # in grid steps from here on
    code = np.clip(np.rint(x), grid.low, grid.high)
    off = x - code
    # The squared error integrated from 0 to x: each code that is passed adds 1/12, the integral
    # from -1/2 to 1/2, and the way from the nearest code, longer beyond the last, a third of its
    # cube.
    integral = code / 12 + off * off * off / 3
    width = np.diff(x)
    is_point = width < _POINT
    mean = np.where(is_point, off[1:] ** 2, np.diff(integral) / np.where(is_point, 1.0, width))
    return float(counts @ mean) * grid.scale**2
