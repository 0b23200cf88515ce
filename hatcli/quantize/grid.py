"""The grid that a quantized tensor lies on: scale, zero point and width."""

from dataclasses import dataclass

import numpy as np

SMALLEST_RANGE = 1e-12  # below it a tensor is all zero for us


@dataclass(frozen=True)
class Grid:
    """The values ``scale * (code - zero_point)`` of unsigned codes, of one tensor.

    Attributes:
        scale: positive, a number that float32 holds exactly.
        zero_point: the code of 0.0.
        bits: 8 or 16; codes go from 0 to 2**bits - 1.
    """

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def low(self) -> int:
        """The smallest code minus the zero point."""
        return -self.zero_point

    @property
    def high(self) -> int:
        """The largest code minus the zero point."""
        return 2**self.bits - 1 - self.zero_point


def grid_of_range(low: float, high: float, bits: int = 8) -> Grid:
    """The grid that spans a range and has a code for 0.0 (Jacob et al., arXiv 1712.05877).

    A range on one side of zero is extended to it; one of no extent, as a dead tensor has, gets a
    scale of 1, on which zero is exact.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    steps = 2**bits - 1
    if high - low < SMALLEST_RANGE:
        return Grid(1.0, 0, bits)
    scale = float(np.float32((high - low) / steps))
    zero_point = int(np.clip(np.rint(-low / scale), 0, steps))
    return Grid(scale, zero_point, bits)
