"""The range without its rarest values."""

from torch import Tensor

from hatcli.errors import ConfigError
from hatcli.quantize import OBSERVERS
from hatcli.quantize.histogram import BINS, Histogram


@OBSERVERS.register
def percentile(percent: float = 99.999, bins: int = BINS) -> "Percentile":
    """The range that leaves out a small share of the values at either end.

    Args:
        percent: above 50, at most 100: this share of all values lies below the upper end, and
            as much above the lower end.
        bins: of the histogram; a multiple of 4.

    Raises:
        ConfigError: an argument is out of bounds.
    """
    if not 50 < percent <= 100:
        raise ConfigError(f"percent: must be above 50 and at most 100, got {percent}")
    return Percentile(percent, Histogram(bins))


class Percentile:
    """Two quantiles of a histogram of everything it was shown."""

    def __init__(self, percent: float, histogram: Histogram) -> None:
        self.share = percent / 100
        self.histogram = histogram

    def observe(self, x: Tensor) -> None:
        """Take in a tensor of any shape, float32, finite."""
        self.histogram.add(x)

    def range(self, bits: int) -> tuple[float, float]:
        """The quantiles, whatever the width of the grid."""
        return self.histogram.quantile(1 - self.share), self.histogram.quantile(self.share)
