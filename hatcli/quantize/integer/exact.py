"""Integer sums of products by the floating point units, with proof that nothing is rounded.

Integers up to 2**24 in magnitude are exact in float32, sums and products included. A convolution
in float32 is therefore exact, in whatever order it adds, if no partial sum can leave that range;
`choose_way` proves it from the weights and the range of the input. What it can't prove is split
into two convolutions of 4-bit halves that it can, or done in float64 (exact up to 2**53).

That holds for algorithms that add products of inputs and weights and nothing else: no Winograd,
no FFT, no TF32, no bfloat16. `exact_arithmetic` keeps these out.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from hatcli.quantize.grid import Grid

EXACT = 2**24  # float32 holds all integers up to here
LARGEST_BIAS = 2**30

Way = Literal["float32", "float32_then_bias", "split", "float64"]


def largest_sum(weight: Tensor, x: Grid) -> int:
    """The largest magnitude that any partial sum of a convolution can reach, in any order.

    For each output channel the products that can be positive are added, and those that can be
    negative: every partial sum lies between the two.

    Args:
        weight: (O, ...) integers.
        x: the grid of the input; zeros of a border lie inside its range.
    """
    flat = weight.detach().flatten(1).to(torch.int64)
    ends = torch.stack([flat * x.low, flat * x.high])
    positive = ends.amax(0).clamp_min(0).sum(1)
    negative = ends.amin(0).clamp_max(0).sum(1)
    return int(torch.maximum(positive, -negative).max())


def choose_way(weight: Tensor, bias: Tensor, x: Grid, device: torch.device) -> Way:
    """How a convolution of these integers is exact and fastest."""
    if device.type != "cpu":
        return "float64"
    bound = largest_sum(weight, x)
    if bound + int(bias.abs().max()) < EXACT:
        return "float32"
    if bound < EXACT:
        return "float32_then_bias"
    high, low = split(weight)
    if largest_sum(high, x) < EXACT and largest_sum(low, x) < EXACT:
        return "split"
    return "float64"


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two int8 tensors, high and low, for which 16 * high + low is the weight."""
    high = (weight.to(torch.int16) + 8) >> 4
    low = weight.to(torch.int16) - (high << 4)
    return high.to(torch.int8), low.to(torch.int8)


def float32_integer(values: Tensor) -> Tensor:
    """Integers rounded to the nearest that float32 holds, int32: the last bits of large ones go.

    A sum with such a bias, rounded once to float32, is what onnxruntime gets from its int32 sum.
    """
    return values.clamp(-LARGEST_BIAS, LARGEST_BIAS).to(torch.float32).to(torch.int32)


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Keep autocast, reduced precision and Winograd away from the products inside."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cpu":
            yield  # there all is float64, which has no reduced form
            return
        backend: Any = torch.backends.mkldnn
        operators = (backend.conv, backend.matmul)
        before = [operator.fp32_precision for operator in operators]
        with torch.backends.nnpack.flags(enabled=False):  # it may take Winograd
            try:
                for operator in operators:
                    operator.fp32_precision = "ieee"
                yield
            finally:
                for operator, precision in zip(operators, before, strict=True):
                    operator.fp32_precision = precision
