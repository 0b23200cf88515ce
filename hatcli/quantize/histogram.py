"""A histogram of all values of a tensor, filled batch by batch in a single pass."""

import math

import numpy as np
import torch
from torch import Tensor

from hatcli.errors import ConfigError

BINS = 16384
FEWEST_BINS, MOST_BINS = 64, 2**20

_SMALLEST_TOP = 2.0**-100  # below it the bins a unit would overflow float32
_VALUES_AT_ONCE = 2**17  # what fits a cache: twice as fast as all at once
_VALUES_AT_ONCE_ON_GPU = 2**26


class Histogram:
    """Counts in equal bins from -top to top, top a power of two that grows with the values.

    When top doubles, each pair of neighbouring bins becomes one, so that the counts are exactly
    those of a histogram that was as wide from the start: they depend neither on the order of the
    values nor on how they were split into batches. Zeros, the bulk of what a ReLU gives, have a
    bin of no width in the middle.

    Args:
        bins: a multiple of 4 from 64 to 2**20, half of them for negative values.

    Attributes:
        low: the smallest value so far, exactly; inf before the first.
        high: the largest value so far, exactly; -inf before the first.
        count: how many values there were.
        top: 0.0 while there was nothing but zeros.

    Raises:
        ConfigError: the number of bins is not one of those.
    """

    def __init__(self, bins: int = BINS) -> None:
        if bins % 4 or not FEWEST_BINS <= bins <= MOST_BINS:
            raise ConfigError(
                f"bins: must be a multiple of 4 from {FEWEST_BINS} to {MOST_BINS}, got {bins}"
            )
        self.bins = bins
        self.low = math.inf
        self.high = -math.inf
        self.count = 0
        self.top = 0.0
        self._counts = torch.zeros(bins + 1, dtype=torch.int64)

    def add(self, x: Tensor) -> None:
        """Count the values of a tensor of any shape, float32, finite, on any device."""
        if x.numel() == 0:
            return
        values = in_memory_order(x)
        low, high = extremes(values)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.numel()
        self._reach(max(-low, high))
        self._counts += self._count(values).to(self._counts.device)

    @property
    def counts(self) -> np.ndarray:
        """(bins + 1,) int64."""
        return self._counts.numpy()

    def edges(self) -> np.ndarray:
        """(bins + 2,) float64, ascending: the ends of the bins, none beyond low and high."""
        magnitudes = np.linspace(0.0, self.top, self.bins // 2 + 1)
        return np.clip(np.concatenate([-magnitudes[::-1], magnitudes]), self.low, self.high)

    def quantile(self, share: float) -> float:
        """The value that a share, 0 to 1, of all values lie at or below.

        Within a bin the values count as spread evenly.
        """
        reached = np.concatenate([[0], np.cumsum(self.counts)])  # at each edge
        wanted = share * self.count
        bin_ = max(int(np.searchsorted(reached, wanted)) - 1, 0)
        if reached[bin_ + 1] == 0:  # share is 0: before the first value
            return self.low
        part = (wanted - reached[bin_]) / (reached[bin_ + 1] - reached[bin_])
        left, right = self.edges()[bin_ : bin_ + 2]
        return float(left + part * (right - left))

    def _reach(self, peak: float) -> None:
        """Widen until top is above a magnitude."""
        if peak == 0.0:
            return
        top = max(2.0 ** math.frexp(peak)[1], _SMALLEST_TOP)
        if self.top == 0.0:  # nothing but zeros so far
            self.top = top
        half, quarter = self.bins // 2, self.bins // 4
        while self.top < top:
            negative = self._counts[:half].reshape(-1, 2).sum(1)
            positive = self._counts[half + 1 :].reshape(-1, 2).sum(1)
            self._counts[:half], self._counts[half + 1 :] = 0, 0
            self._counts[quarter:half] = negative
            self._counts[half + 1 : half + 1 + quarter] = positive
            self.top *= 2

    def _count(self, values: Tensor) -> Tensor:
        """(bins + 1,) int64, on the device of the values (n,).

        A value k bins away from 0 goes into bin k + 1 on its side of the middle.
        """
        half = self.bins // 2
        bins_a_unit = half / (self.top or 1.0)  # exact
        at_once = _VALUES_AT_ONCE_ON_GPU if values.is_cuda else _VALUES_AT_ONCE
        counts = torch.zeros(self.bins + 1, dtype=torch.int64, device=values.device)
        for part in torch.split(values, at_once):
            bins = (part * bins_a_unit).to(torch.int32)  # cut off; trunc takes 20 times as long
            bins += part.sign().to(torch.int32) + half
            counts += torch.bincount(bins, minlength=self.bins + 1)
        return counts


def extremes(x: Tensor) -> tuple[float, float]:
    """The smallest and the largest value of a tensor that isn't empty; NaN if it holds one."""
    low, high = torch.stack(torch.aminmax(in_memory_order(x))).tolist()
    return low, high


def in_memory_order(x: Tensor) -> Tensor:
    """(n,) all values of a tensor, in any order: without a copy where they lie dense."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    return x.reshape(-1)
