"""int8 symmetric activations and weights with fixed-point requantization, as NPUs compute.

Every tensor has a code 0 for 0.0 and codes from -128 to 127 (16 bits: -32768 to 32767), stored
with a zero point of 128 (32768). Behind a ReLU only the codes from 0 up occur. With integer sums
``a``, ``b`` and integer multipliers ``m`` the result of each operation is

    clamp(round((a * m_a + b * m_b) / 2**shift), low, high)

with one rounding. What it is for each operation, with s the scales of inputs and result:

    convolution, linear     sum of products + bias (int32)   m ~ 2**shift * s_x * s_w[c] / s_out
    average pool, bilinear  the same: depthwise convolutions with one fixed kernel
    global average pool     sum over the map                 m ~ 2**shift * s_x / (s_out * places)
    multiply                product of two codes             m ~ 2**shift * s_a * s_b / s_out
    add                     two codes                        m_a ~ 2**shift * s_a / s_out, and m_b
    concat, ReLU            the code                         m ~ 2**shift * s_x / s_out
    images                  round(x / s), exactly

Calibration gives the inputs and the result of a concatenation one grid, so that it only copies.
How multipliers and shift are found stands with `FixedPoint.multipliers`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Literal

from hatcli.errors import ConfigError
from hatcli.quantize import TARGETS
from hatcli.quantize.grid import Grid, centred_grid, power_of_two_from, symmetric_grid
from hatcli.quantize.target import Target

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLIER_BITS = range(16, 32)
LARGEST_SHIFT = 62  # a sum of 31 bits and a sign times a multiplier of 31 bits stays below 2**62
BITS_BESIDE_WIDE_SUMS = (
    16  # sums of 16-bit codes have up to 46 bits: the multiplier has to be short
)

ROUNDINGS = ("half_up", "half_even", "half_away")


@TARGETS.register
def sym8(
    multiplier_bits: int = 31,
    rounding: Literal["half_up", "half_even", "half_away"] = "half_up",
    power_of_two: bool = False,
    input_scale: float | None = None,
) -> Target:
    """int8 symmetric, fixed-point multiplier and shift, one grid around each concatenation.

    Args:
        multiplier_bits: 16 to 31, of the unsigned multipliers.
        rounding: where a value half-way goes: "half_up" as floor(x + 0.5), "half_even" to the
            even code, "half_away" away from zero.
        power_of_two: whether all scales are rounded up to powers of two.
        input_scale: of the images, e.g. 1/128 for centred YUV; calibrated where it is left out.

    Raises:
        ConfigError: an argument is out of bounds.
    """
    if multiplier_bits not in MULTIPLIER_BITS:
        raise ConfigError(f"multiplier_bits: must be 16 to 31, got {multiplier_bits}")
    rule = {"type": "sym8", "multiplier_bits": multiplier_bits, "rounding": rounding}
    return Target(
        name="sym8",
        grid=partial(symmetric_grid, power_of_two=power_of_two),
        input_grid=_input_grid(input_scale, power_of_two=power_of_two),
        shared=frozenset({"Concat"}),
        power_of_two=power_of_two,
        arithmetic=FixedPoint(multiplier_bits, rounding),
        rule=rule,
    )


@dataclass(frozen=True)
class FixedPoint:
    """A product with an integer, a shift to the right, and one rounding.

    Attributes:
        bits: of the multipliers.
        rounding: one of `ROUNDINGS`.
    """

    bits: int
    rounding: str

    def multipliers(self, ratios: Sequence[Fraction], bits: int) -> tuple[list[int], int]:
        """The nearest multiples of 2**-shift, a tie to the even one, of at most so many bits.

        The shift is the largest from 1 to 62 with which that of the largest ratio fits; what is
        too large even for a shift of 1 gets the largest multiplier.
        """
        width = self.bits if bits == 8 else min(self.bits, BITS_BESIDE_WIDE_SUMS)
        top, largest = 2**width - 1, max(ratios)
        exponent = largest.numerator.bit_length() - largest.denominator.bit_length()
        shift = min(max(width - exponent + 1, 1), LARGEST_SHIFT)
        while shift > 1 and _multiple(largest, shift) > top:
            shift -= 1
        return [min(_multiple(ratio, shift), top) for ratio in ratios], shift

    def rounded(self, total: "Tensor", shift: "Tensor | int") -> "Tensor":
        """``total / 2**shift``, rounded."""
        half = 1 << (shift - 1)
        if self.rounding == "half_up":
            return (total + half) >> shift
        if self.rounding == "half_away":
            return (total + half - 1 * (total < 0)) >> shift
        floor = total >> shift
        rest = total - (floor << shift)
        return floor + ((rest > half) | ((rest == half) & ((floor & 1) == 1)))


def _multiple(ratio: Fraction, shift: int) -> int:
    return round(ratio * 2**shift)


def _input_grid(scale: float | None, *, power_of_two: bool) -> "partial[Grid] | None":
    if scale is None:
        return None
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"input_scale: must be a number above 0, got {scale}")
    if power_of_two and power_of_two_from(scale) != scale:
        raise ConfigError(
            f"input_scale: {scale} is no power of two, which power_of_two asks for",
            "e.g. 0.0078125, which is 1/128",
        )
    return partial(centred_grid, scale)
