"""The average of each batch's range."""

from torch import Tensor

from hatcli.errors import ConfigError
from hatcli.quantize import OBSERVERS
from hatcli.quantize.histogram import extremes


@OBSERVERS.register
def moving_average(constant: float = 0.01) -> "MovingAverage":
    """The averages of the batches' smallest and of their largest values; later ones weigh more.

    Args:
        constant: above 0, at most 1: the weight of the last batch among very many.

    Raises:
        ConfigError: the constant is out of bounds.
    """
    if not 0 < constant <= 1:
        raise ConfigError(f"constant: must be above 0 and at most 1, got {constant}")
    return MovingAverage(constant)


class MovingAverage:
    """Averages with weights that fall off by ``1 - constant`` for each batch into the past.

    The weights are divided by their sum, as in Adam, so that the first batch counts no more than
    its share; with few batches and a small constant it is nearly the plain average.
    """

    def __init__(self, constant: float) -> None:
        self.constant = constant
        self._low = 0.0
        self._high = 0.0
        self._weight = 0.0  # the sum of the weights

    def observe(self, x: Tensor) -> None:
        """Take in a batch: a tensor of any shape, float32, finite."""
        low, high = extremes(x)
        self._low += self.constant * (low - self._low)
        self._high += self.constant * (high - self._high)
        self._weight += self.constant * (1.0 - self._weight)

    def range(self, bits: int) -> tuple[float, float]:
        """The averages, whatever the width of the grid."""
        return self._low / self._weight, self._high / self._weight
