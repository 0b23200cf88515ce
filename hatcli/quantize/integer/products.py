"""Convolution and linear layer of integers, requantized: QLinearConv and QGemm."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hatcli.errors import HatError
from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.base import (
    RescalingOp,
    ratio,
    requantize,
    single,
    sum_of_products,
)
from hatcli.quantize.integer.exact import Way, choose_way, exact_arithmetic, split
from hatcli.quantize.target import Arithmetic

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_Parts = tuple[Way, list[Tensor], Tensor, Tensor]


class _WeightedOp(RescalingOp):
    """An exact sum of products with int8 weights and an int32 bias, then one requantization.

    Args:
        weight: (O, ...) int8.
        bias: (O,) int32 in units of ``x.scale * weight_scale``; float32 holds each exactly.
        weight_scale: (O,) float32.
        x: grid of the input.
        out: grid of the result.
        rule: see `RescalingOp`; and so for clip.

    Attributes:
        way: how the sum is computed; see `choose_way`.
    """

    weight: Tensor
    bias: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        *,
        weight: Tensor,
        bias: Tensor,
        weight_scale: Tensor,
        x: Grid,
        out: Grid,
        rule: Mapping[str, Any] | None = None,
        clip: tuple[int, int] | None = None,
        **settings: object,
    ) -> None:
        super().__init__(out, {"x": x, **settings}, rule=rule, clip=clip)
        self.x = x
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("weight_scale", weight_scale)
        self._prepared: tuple[torch.device, _Parts] | None = None
        self._fixed: tuple[torch.device, tuple[Tensor, Tensor]] | None = None

    @property
    def way(self) -> Way:
        """How the sum is computed on the device that the weights are on."""
        return choose_way(self.weight, self.bias, self.x, self.weight.device)

    def _exactly(self, x: Tensor, product: Product, broadcast: tuple[int, ...]) -> Tensor:
        """The requantized product.

        Args:
            product: (input, weight, bias or None) to their product, in the dtype of the input.
            broadcast: shape of a number a channel beside the result.
        """
        way, weights, bias, multiplier = self._parts(x.device)
        with exact_arithmetic(x.device):
            if way == "float32":
                total = product(x, weights[0], bias)
            elif way == "float32_then_bias":
                total = product(x, weights[0], None)
                total = total if self.arithmetic is None else total.double()
                total.add_(bias.reshape(broadcast))
            elif way == "split":
                high = product(x, weights[0], None).double().mul_(16)
                low = product(x, weights[1], None)
                total = high.add_(low).add_(bias.reshape(broadcast))
            else:
                total = product(x.double(), weights[0], None).add_(bias.reshape(broadcast))
                total.round_()  # FFT in float64 may miss an integer by a hair
        if self.arithmetic is None:
            return requantize(total.float(), multiplier.reshape(broadcast), self.result)
        fixed, shift = self._fixed_point(self.arithmetic, x.device)
        scaled = sum_of_products([total], [fixed.reshape(broadcast)])
        return self.cut(self.arithmetic.rounded(scaled, shift.reshape(broadcast)))

    def _fixed_point(self, arithmetic: Arithmetic, device: torch.device) -> tuple[Tensor, Tensor]:
        """Multiplier and shift of each channel, (O,) int64."""
        if self._fixed is None or self._fixed[0] != device:
            pairs = [
                arithmetic.multipliers([ratio(self.x.scale, scale, over=self.result)], self.x.bits)
                for scale in self.weight_scale.tolist()
            ]
            multipliers = torch.tensor([multiplier for (multiplier,), _ in pairs], device=device)
            shifts = torch.tensor([shift for _, shift in pairs], device=device)
            self._fixed = device, (multipliers, shifts)
        return self._fixed[1]

    def _parts(self, device: torch.device) -> _Parts:
        """Way, weights and bias in the dtype of their arithmetic, and the multipliers."""
        if self._prepared is None or self._prepared[0] != device:
            way = self.way
            parts = split(self.weight) if way == "split" else (self.weight,)
            dtype = torch.float64 if way == "float64" else torch.float32
            weights = [part.to(device, dtype) for part in parts]
            if self.weight.ndim == 4:
                weights = [part.contiguous(memory_format=torch.channels_last) for part in weights]
            scale = single(self.x.scale).to(device) * self.weight_scale.to(device)
            multiplier = scale / single(self.result.scale).to(device)
            self._prepared = device, (way, weights, self.bias.to(device, dtype), multiplier)
        return self._prepared[1]


class IntConv2d(_WeightedOp):
    """A convolution: centred codes (N, I, H, W) to centred codes (N, O, H', W').

    Args:
        stride: vertical, horizontal; so for dilation.
        padding: left, right, top, bottom.
        covers: whether the windows must cover the map to its last row and column, as those of a
            pool that rounds up do.
    """

    def __init__(
        self,
        *,
        weight: Tensor,
        bias: Tensor,
        weight_scale: Tensor,
        x: Grid,
        out: Grid,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        covers: bool = False,
        rule: Mapping[str, Any] | None = None,
        clip: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(
            weight=weight,
            bias=bias,
            weight_scale=weight_scale,
            x=x,
            out=out,
            stride=tuple(stride),
            padding=tuple(padding),
            dilation=tuple(dilation),
            groups=groups,
            covers=covers,
            rule=rule,
            clip=clip,
        )
        self.covers = covers
        self.stride, self.dilation = tuple(stride), tuple(dilation)
        self.padding, self.groups = tuple(padding), groups

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and requantize; a border of zeros is the real zero.

        Raises:
            HatError: the windows don't cover a map of this size, and must.
        """
        if self.covers:
            self._require_cover(x.shape[2], x.shape[3])
        left, right, top, bottom = self.padding
        padding = (top, left)
        if left != right or top != bottom:
            x, padding = F.pad(x, self.padding), (0, 0)

        def product(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv2d(values, weight, bias, self.stride, padding, self.dilation, self.groups)

        return self._exactly(x, product, (1, -1, 1, 1))

    def _require_cover(self, height: int, width: int) -> None:
        left, right, top, bottom = self.padding
        rest = (
            (height + top + bottom - self.weight.shape[2]) % self.stride[0],
            (width + left + right - self.weight.shape[3]) % self.stride[1],
        )
        if any(rest):
            raise HatError(
                f"an average pool of stride {self.stride[0]}x{self.stride[1]} meets a map of "
                f"{height}x{width}, whose last places it would round up to in float",
                "take images whose sides the strides of the network divide",
            )


class IntLinear(_WeightedOp):
    """A linear layer: centred codes (N, I) to centred codes (N, O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and requantize."""
        return self._exactly(x, F.linear, (1, -1))
