"""Fake quantization with its gradient: what integers will give, computed in float32.

Each is one autograd.Function of plain tensor operations: clamp, then scale, round and scale back
in place. A ReLU costs nothing more, since it is the lower end of the clamp, and the gradient is
that of a clamp (the straight-through estimator, Bengio et al., arXiv 1308.3432).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class FakeQuantize(Function):
    """Round a tensor to ``scale * integer`` within bounds; bounds and scale are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: int, high: int) -> Tensor:
        """``scale * clamp(round(x / scale), low, high)`` of any shape, float32."""
        ctx.save_for_backward(x)
        ctx.bounds = (low * scale, high * scale)
        return torch.clamp(x, *ctx.bounds).mul_(1 / scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        """The gradient passes where x lies between the bounds."""
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, *ctx.bounds), None, None, None


class CappedScale(Function):
    """A learned scale that stays in a range, and finds back from outside of it."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, smallest: float, largest: float) -> Tensor:
        """The magnitude of a scale of any shape, within both bounds."""
        ctx.save_for_backward(scale)
        ctx.largest = largest
        return scale.abs().clamp(smallest, largest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient passes, unless it would move a scale further above its bound.

        That of a clamp would stop it altogether: a scale beyond the bound would stay there.
        """
        (scale,) = ctx.saved_tensors
        is_outward = (scale.abs() > ctx.largest) & (grad < 0)
        return torch.where(is_outward, 0.0, grad * torch.where(scale < 0, -1.0, 1.0)), None, None


class LearnedFakeQuantize(Function):
    """`FakeQuantize` whose scale gets a gradient too: LSQ, Esser et al., arXiv 1902.08153."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        """As `FakeQuantize`; ``scale`` is a tensor of one number."""
        step = float(scale)
        ctx.bounds = (low * step, high * step)
        ctx.step, ctx.highest = step, max(high, -low)
        y = torch.clamp(x, *ctx.bounds).mul_(1 / step).round_().mul_(step)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """Equation 3 of the paper: round(x/s) - x/s inside, the bound outside; times its g."""
        x, y = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(grad, x, *ctx.bounds)
        total = _dot(grad, y) - _dot(inside, x)
        weight = (x.numel() * ctx.highest) ** -0.5
        return inside, (total / ctx.step * weight).reshape(()), None, None


def fake_quantize_weight(weight: Tensor, scale: Tensor, highest: int) -> Tensor:
    """Round each output channel to ``scale[channel] * integer``, symmetric.

    Differentiable in the weight, and in the scale where that needs a gradient (LSQ).

    Args:
        weight: (O, ...) float32.
        scale: (O,) float32, positive; or (1,), the same for all channels.
        highest: largest code; the smallest is its negative.
    """
    by_channel = scale.reshape(-1, *[1] * (weight.ndim - 1))
    # Beside a fixed scale a weight that rounds to the last code isn't clipped: the largest one of
    # each channel is what the scale was made of, and without a gradient it would never move.
    bound = highest + 0.5
    if scale.requires_grad:
        bound = highest
        per_scale = weight.numel() / scale.numel()
        by_channel = _scaled_gradient(by_channel, (per_scale * highest) ** -0.5)
    steps = (weight / by_channel).clamp(-bound, bound)
    codes = steps.detach().round().clamp(-highest, highest)
    return (steps + (codes - steps).detach()) * by_channel


def _scaled_gradient(x: Tensor, factor: float) -> Tensor:
    return x * factor + (x - x * factor).detach()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of a * b; without a copy where both lie alike in memory."""
    if a.ndim == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))
