"""The grid that a quantized tensor lies on: scale, zero point and width; without numpy or torch."""

import math
import struct
from dataclasses import dataclass

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
    scale = _single((high - low) / steps)
    zero_point = min(max(round(-low / scale), 0), steps)
    return Grid(scale, zero_point, bits)


def symmetric_grid(low: float, high: float, bits: int = 8, *, power_of_two: bool = False) -> Grid:
    """The finest grid with its zero in the middle that spans a range.

    Its codes minus the zero point go from -2**(bits - 1) to 2**(bits - 1) - 1. A range of no
    extent gets a scale of 1.

    Args:
        power_of_two: whether the scale is the next power of two from there up.
    """
    middle = 2 ** (bits - 1)
    scale = max(high / (middle - 1), -low / middle)
    if max(high, 0.0) - min(low, 0.0) < SMALLEST_RANGE:
        scale = 1.0
    return centred_grid(power_of_two_from(scale) if power_of_two else scale, bits)


def centred_grid(scale: float, bits: int = 8) -> Grid:
    """The grid of a scale, rounded to float32, with its zero in the middle of the codes."""
    return Grid(_single(scale), 2 ** (bits - 1), bits)


def power_of_two_from(value: float) -> float:
    """The smallest power of two that isn't below a positive number."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)


def _single(value: float) -> float:
    """The nearest number that float32 holds."""
    nearest: float = struct.unpack("f", struct.pack("f", value))[0]
    return nearest
