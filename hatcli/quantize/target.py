"""What a target computes with, as data and small functions; nothing here loads torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from hatcli.quantize.grid import Grid, grid_of_range

if TYPE_CHECKING:
    from fractions import Fraction

    from torch import Tensor

GridOf = Callable[[float, float, int], Grid]
"""The grid of a range from its lowest to its highest value, of so many bits."""


class Arithmetic(Protocol):
    """How sums of integers become codes on another grid, bit for bit.

    A result is ``rounded(a * m_a + b * m_b + ..., shift)``, cut to the codes that it may have.
    ``a``, ``b``, ... are integers: a convolution's sum of products with its bias, the product of
    two codes, the sum of a map, or codes themselves. Each counts for an exact ratio of scales.
    """

    def multipliers(self, ratios: "Sequence[Fraction]", bits: int) -> tuple[list[int], int]:
        """The integers that stand for ratios: one each, and the shift that they have in common.

        Args:
            ratios: positive.
            bits: of the widest tensor that comes in, 8 or 16.
        """
        ...

    def rounded(self, total: "Tensor", shift: "Tensor | int") -> "Tensor":
        """``total / 2**shift`` as an integer; int64 of the shape of ``total``.

        Args:
            total: int64.
            shift: one, or a tensor that broadcasts.
        """
        ...


@dataclass(frozen=True)
class Target:
    """Whose integers a model becomes.

    Attributes:
        grid: how a range becomes a grid.
        input_grid: bits -> the grid of the images; None where it is calibrated like others.
        shared: class names of the layers, as `hatcli.quantize.layers` has them, whose inputs and
            result are to lie on one grid.
        power_of_two: whether scales of weights and of trained activations are rounded up to
            powers of two; ``grid`` has to give such scales itself.
        caps_relu6: whether the largest code behind a ReLU6 may not stand for more than 6.
        arithmetic: of all operations; None where each follows onnxruntime's kernel.
        rule: {"type": registered name, option: value}: what builds the arithmetic again, as the
            operations of an integer graph keep it; None where ``arithmetic`` is.
    """

    name: str
    grid: GridOf = grid_of_range
    input_grid: Callable[[int], Grid] | None = None
    shared: frozenset[str] = frozenset()
    power_of_two: bool = False
    caps_relu6: bool = False
    arithmetic: Arithmetic | None = None
    rule: Mapping[str, Any] | None = field(default=None)
