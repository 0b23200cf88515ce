"""What all integer operations share."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Self

import torch
from torch import Tensor, nn

from hatcli.quantize import TARGETS
from hatcli.quantize.grid import Grid
from hatcli.quantize.target import Arithmetic


class IntegerOp(nn.Module):
    """An operation that is known by its settings and tensors alone.

    Args:
        out: the grid of the result; None where that is float32.
        settings: what else its constructor takes that is no tensor.

    Attributes:
        settings: all of the constructor's arguments that are no tensors; with `tensors` they
            build an equal operation.
    """

    def __init__(self, out: Grid | None, **settings: Any) -> None:
        super().__init__()
        self.out = out
        self.settings: dict[str, Any] = settings if out is None else {"out": out, **settings}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Constructor argument -> tensor."""
        return dict(self.named_buffers(recurse=False))

    def extra_repr(self) -> str:
        """For ``print(graph)``."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


class RescalingOp(IntegerOp):
    """An operation that sums integers and brings them to a grid of their own.

    Args:
        out: the grid of the result.
        settings: what else its constructor takes that is no tensor.
        rule: {"type": target, option: value} of the target whose arithmetic it follows; without
            it the operation is onnxruntime's.
        clip: smallest and largest code, minus the zero point, of the result; only with a rule.

    Attributes:
        arithmetic: None without a rule.
        clip: all codes of the grid without a rule.
    """

    def __init__(
        self,
        out: Grid,
        settings: Mapping[str, Any],
        *,
        rule: Mapping[str, Any] | None = None,
        clip: tuple[int, int] | None = None,
    ) -> None:
        ruled = {} if rule is None else {"rule": dict(rule), "clip": None}
        super().__init__(out, **settings, **ruled)
        self.result = out
        self.arithmetic: Arithmetic | None = None
        self.clip = (out.low, out.high)
        if rule is None:
            if clip is not None:
                raise ValueError("codes are clipped without a rule")
            return
        self.arithmetic = TARGETS.build(rule).arithmetic
        if self.arithmetic is None:
            raise ValueError(f"no arithmetic of its own: {rule}")
        if clip is not None:
            low, high = clip
            if not out.low <= low <= high <= out.high:
                raise ValueError(f"no codes of its grid: {clip}")
            self.clip = (low, high)
        self.settings["clip"] = self.clip

    def ruled(self, rule: Mapping[str, Any], clip: tuple[int, int]) -> Self:
        """The same operation by a target's arithmetic."""
        arguments: dict[str, Any] = {**self.settings, **self.tensors, "rule": rule, "clip": clip}
        return type(self)(**arguments)

    def combined(
        self,
        arithmetic: Arithmetic,
        sums: Sequence[Tensor],
        ratios: Sequence[Fraction],
        grids: Sequence[Grid],
    ) -> Tensor:
        """The centred codes of sums of integers, each times its ratio.

        Args:
            sums: of any type that holds them exactly, of shapes that fit each other.
            grids: of all tensors that come in.
        """
        multipliers, shift = arithmetic.multipliers(ratios, max(grid.bits for grid in grids))
        total = sum_of_products(sums, multipliers)
        return self.cut(arithmetic.rounded(total, shift))

    def cut(self, codes: Tensor) -> Tensor:
        """Integers as centred codes of the result, float32."""
        return codes.clamp(*self.clip).to(torch.float32)


def sum_of_products(sums: Sequence[Tensor], multipliers: Sequence[Tensor | int]) -> Tensor:
    """The integers of each tensor times a multiplier, added up, int64."""
    terms = [x.to(torch.int64).mul(m) for x, m in zip(sums, multipliers, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def ratio(*factors: float, over: Grid) -> Fraction:
    """The exact product of numbers, over the scale of a grid."""
    product = Fraction(1)
    for factor in factors:
        product *= Fraction(factor)
    return product / Fraction(over.scale)


def requantize(accumulated: Tensor, multiplier: Tensor | float, out: Grid) -> Tensor:
    """The centred codes of ``accumulated * multiplier``, rounded half to even; in place.

    ``out = clamp(round(fp32(acc) * fp32(m)))``, as MlasRequantizeOutput of onnxruntime has it.

    Args:
        accumulated: integers that float32 rounds as a conversion from int32 would.
        multiplier: input scale times weight scale over output scale, each step in float32.
    """
    return accumulated.mul_(multiplier).clamp_(out.low, out.high).round_()


def quantize(x: Tensor, out: Grid) -> Tensor:
    """The centred codes of float32 values: ONNX's QuantizeLinear.

    The scale is a tensor on the device: CUDA multiplies by the reciprocal of a plain number.
    """
    return torch.div(x, x.new_tensor(out.scale)).clamp_(out.low, out.high).round_()


def single(value: float) -> Tensor:
    """A number as float32, on which arithmetic rounds as onnxruntime's does."""
    return torch.tensor(value, dtype=torch.float32)
