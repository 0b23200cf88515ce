"""The whole range that was seen."""

import math

from torch import Tensor

from hatcli.quantize import OBSERVERS
from hatcli.quantize.histogram import extremes


@OBSERVERS.register
def min_max() -> "MinMax":
    """From the smallest to the largest value: nothing is cut."""
    return MinMax()


class MinMax:
    """The exact extremes of what it was shown; of a weight, those of each channel."""

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf

    def observe(self, x: Tensor) -> None:
        """Take in a tensor of any shape, float32, finite."""
        low, high = extremes(x)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self, bits: int) -> tuple[float, float]:
        """The extremes, whatever the width of the grid."""
        return self.low, self.high

    def channel_ranges(self, weight: Tensor, highest: int) -> Tensor:
        """(O,) float32: the largest magnitude in each output channel of a weight (O, ...)."""
        return weight.flatten(1).abs().amax(1)
