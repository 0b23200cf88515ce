"""Sums, products and joins of tensors on different grids: QLinearAdd, QLinearMul, QLinearConcat."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.base import RescalingOp, quantize, ratio, single


class IntAdd(RescalingOp):
    """The sum of two tensors, as onnxruntime's kernel has it, with its fused multiply-adds.

    With codes a and b, ra = sa / sc and rb = sb / sc in float32 (mlas, qladd_avx2.cpp):
    ``k = zc - fma(ra, za, rb * zb)``, ``c = round(fma(a, ra, fma(b, rb, k)))``. A product of an
    8-bit code and a float32 is exact in float64, so that one addition there and a conversion to
    float32 are a fused multiply-add.

    Args:
        a: grid of the first tensor.
        b: grid of the second.
        ruled: rule and clip of `RescalingOp`.
    """

    def __init__(self, *, a: Grid, b: Grid, out: Grid, **ruled: Any) -> None:
        super().__init__(out, {"a": a, "b": b}, **ruled)
        self.a, self.b = a, b
        self._ratio_a = single(a.scale) / single(out.scale)
        self._ratio_b = single(b.scale) / single(out.scale)
        product_b = self._ratio_b * b.zero_point
        self._constant = single(float(out.zero_point)) - _fma(
            self._ratio_a, single(float(a.zero_point)), product_b
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The centred codes of the sum of two tensors of one shape."""
        if self.arithmetic is not None:
            grids = (self.a, self.b)
            ratios = [ratio(grid.scale, over=self.result) for grid in grids]
            return self.combined(self.arithmetic, [a, b], ratios, grids)
        if _is_wide(self.a, self.b, self.result):
            return quantize(a * self.a.scale + b * self.b.scale, self.result)
        part = b.double().add_(self.b.zero_point).mul_(float(self._ratio_b))
        part = part.add_(float(self._constant)).float().double()
        total = a.double().add_(self.a.zero_point).mul_(float(self._ratio_a)).add_(part).float()
        zero_point = self.result.zero_point
        codes = total.clamp_(0, self.result.high + zero_point).round_()
        return codes.sub_(zero_point)


class IntMultiply(RescalingOp):
    """The product of two tensors of shapes that fit each other.

    As onnxruntime's kernel has it (mlas, qlmul.cpp), the zero point is added to the float32
    product before it is rounded: ``c = round(fp32(fp32(a * b * (sa * sb / sc)) + zc))``.

    Args:
        a: grid of the first tensor.
        b: grid of the second.
        ruled: rule and clip of `RescalingOp`.
    """

    def __init__(self, *, a: Grid, b: Grid, out: Grid, **ruled: Any) -> None:
        super().__init__(out, {"a": a, "b": b}, **ruled)
        self.a, self.b = a, b
        self._multiplier = float(single(a.scale) * single(b.scale) / single(out.scale))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The centred codes of the product."""
        if self.arithmetic is not None:
            product = a.to(torch.int64) * b.to(torch.int64)
            ratios = [ratio(self.a.scale, self.b.scale, over=self.result)]
            return self.combined(self.arithmetic, [product], ratios, (self.a, self.b))
        if _is_wide(self.a, self.b, self.result):
            return quantize((a * self.a.scale) * (b * self.b.scale), self.result)
        zero_point = self.result.zero_point
        total = (a * b).mul_(self._multiplier).add_(zero_point)
        codes = total.clamp_(0, self.result.high + zero_point).round_()
        return codes.sub_(zero_point)


class IntConcat(RescalingOp):
    """Maps on different grids behind each other along the channels, on one grid.

    Args:
        inputs: the grid of each map.
        ruled: rule and clip of `RescalingOp`.
    """

    def __init__(self, *, inputs: Sequence[Grid], out: Grid, **ruled: Any) -> None:
        super().__init__(out, {"inputs": tuple(inputs)}, **ruled)
        self.inputs = tuple(inputs)

    def forward(self, *maps: Tensor) -> Tensor:
        """(N, C_i, H, W) centred codes to (N, sum of C_i, H, W)."""
        moved = [
            x if grid == self.result else self._moved(x, grid)
            for x, grid in zip(maps, self.inputs, strict=True)
        ]
        joined = torch.cat(moved, dim=1)
        return joined if self.arithmetic is None else joined.clamp_(*self.clip)

    def _moved(self, x: Tensor, grid: Grid) -> Tensor:
        if self.arithmetic is None:
            return quantize(x * grid.scale, self.result)
        return self.combined(self.arithmetic, [x], [ratio(grid.scale, over=self.result)], [grid])


class Requantize(RescalingOp):
    """A tensor brought to another grid, negative values cut off where a ReLU asks for it.

    Args:
        x: grid of the input.
        relu: whether negative values become 0 before.
        ruled: rule and clip of `RescalingOp`.
    """

    def __init__(self, *, x: Grid, out: Grid, relu: bool = False, **ruled: Any) -> None:
        super().__init__(out, {"x": x, "relu": relu}, **ruled)
        self.x, self.relu = x, relu

    def forward(self, x: Tensor) -> Tensor:
        """Centred codes of the same shape."""
        x = x.clamp_min(0) if self.relu else x
        if self.arithmetic is not None:
            ratios = [ratio(self.x.scale, over=self.result)]
            return self.combined(self.arithmetic, [x], ratios, [self.x])
        return quantize(x * self.x.scale, self.result)


def _is_wide(*grids: Grid) -> bool:
    """Whether a tensor has 16 bits, of which onnxruntime has no kernel: it computes in float."""
    return any(grid.bits == 16 for grid in grids)


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The sum a * b + c of float32 numbers, rounded once."""
    return (a.double() * b.double() + c.double()).float()
