"""Between floating point and integers, and the layers that an exception keeps in float."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.base import IntegerOp, RescalingOp, quantize
from hatcli.quantize.target import Arithmetic


class Quantize(RescalingOp):
    """float32 values to centred codes: QuantizeLinear, or with a rule the same exactly.

    Args:
        ruled: rule and clip of `RescalingOp`.
    """

    def __init__(self, *, out: Grid, **ruled: Any) -> None:
        super().__init__(out, {}, **ruled)

    def forward(self, x: Tensor) -> Tensor:
        """Round to the nearest code; half to even without a rule."""
        if self.arithmetic is None:
            return quantize(x, self.result)
        return self._exactly(x, self.arithmetic)

    def _exactly(self, x: Tensor, arithmetic: Arithmetic) -> Tensor:
        """By the target's rounding, which takes integers: four times each value, or nearly.

        No quotient of float32 numbers, of which one is a code and a half times the other, comes
        nearer to a half than float64 tells apart. Whole and half steps stay what they are, and
        what lies between two of them becomes the quarter between, which rounds alike.
        """
        halves = 2 * torch.div(x.double(), x.new_tensor(self.result.scale).double())
        halves = halves.clamp_(2 * self.result.low - 2, 2 * self.result.high + 2)
        below = halves.floor()
        quarters = 2 * below + (halves != below)
        return self.cut(arithmetic.rounded(quarters.to(torch.int64), 2))


class Dequantize(IntegerOp):
    """Centred codes to float32 values: DequantizeLinear.

    Args:
        x: grid of the input.
    """

    def __init__(self, *, x: Grid) -> None:
        super().__init__(None, x=x)
        self.x = x

    def forward(self, x: Tensor) -> Tensor:
        """Each code times the scale."""
        return x * self.x.scale


class FloatConv2d(IntegerOp):
    """A convolution in float32.

    Args:
        weight: (O, I / groups, kh, kw) float32.
        bias: (O,) float32.
        stride: vertical, horizontal; so for dilation.
        padding: left, right, top, bottom.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        *,
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        super().__init__(
            None,
            stride=tuple(stride),
            padding=tuple(padding),
            dilation=tuple(dilation),
            groups=groups,
        )
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.padding = tuple(padding)
        self._rest: Any = (tuple(stride), (0, 0), tuple(dilation), groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H', W')."""
        return F.conv2d(F.pad(x, self.padding), self.weight, self.bias, *self._rest)


class FloatLinear(IntegerOp):
    """A linear layer in float32: weight (O, I), bias (O,)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, *, weight: Tensor, bias: Tensor) -> None:
        super().__init__(None)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I) to (N, O)."""
        return F.linear(x, self.weight, self.bias)


_FUNCTIONS: dict[str, Any] = {
    "Add": torch.add,
    "Multiply": torch.mul,
    "Concat": lambda *maps: torch.cat(maps, dim=1),
    "ReLU": F.relu,
    "ReLU6": F.relu6,
    "LeakyReLU": F.leaky_relu,
    "Sigmoid": torch.sigmoid,
    "Hardsigmoid": F.hardsigmoid,
    "Hardswish": F.hardswish,
    "SiLU": F.silu,
    "Softmax": F.softmax,
    "Flatten": torch.flatten,
    "ZeroPad2d": F.pad,
    "MaxPool2d": F.max_pool2d,
    "AvgPool2d": F.avg_pool2d,
    "AdaptiveAvgPool2d": F.adaptive_avg_pool2d,
    "Upsample": F.interpolate,
}


class FloatFunction(IntegerOp):
    """Any other layer in float32.

    Args:
        kind: which one, by the name of torch's module.
        arguments: the function's further arguments by name.
    """

    def __init__(self, *, kind: str, arguments: dict[str, Any]) -> None:
        super().__init__(None, kind=kind, arguments=arguments)
        self.kind, self.arguments = kind, arguments

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the function gives."""
        return _FUNCTIONS[self.kind](*inputs, **self.arguments)
