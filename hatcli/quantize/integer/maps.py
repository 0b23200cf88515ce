"""Pooling, and what moves codes without changing them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.base import IntegerOp, RescalingOp, ratio, requantize, single

Pair = tuple[int, int]


class IntMaxPool2d(IntegerOp):
    """The largest code of each window."""

    def __init__(
        self, *, out: Grid, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil: bool
    ) -> None:
        super().__init__(
            out,
            kernel=tuple(kernel),
            stride=tuple(stride),
            padding=tuple(padding),
            dilation=tuple(dilation),
            ceil=ceil,
        )
        self._window = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), ceil)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        return F.max_pool2d(x, *self._window)


class IntGlobalAvgPool(RescalingOp):
    """The mean over the whole map: QLinearGlobalAveragePool, a sum of integers and one product.

    Args:
        x: grid of the input.
        ruled: rule and clip of `RescalingOp`.
    """

    def __init__(self, *, x: Grid, out: Grid, **ruled: Any) -> None:
        super().__init__(out, {"x": x}, **ruled)
        self.x = x

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        total = x.double().sum((2, 3), keepdim=True)
        if self.arithmetic is not None:
            mean = ratio(self.x.scale, over=self.result) / (x.shape[2] * x.shape[3])
            return self.combined(self.arithmetic, [total], [mean], [self.x])
        places = single(float(x.shape[2] * x.shape[3]))
        multiplier = single(self.x.scale) / (single(self.result.scale) * places)
        return requantize(total.float(), float(multiplier), self.result)


class IntUpsampleNearest(IntegerOp):
    """Each place repeated.

    Args:
        factor: vertical, horizontal.
    """

    def __init__(self, *, out: Grid, factor: Pair) -> None:
        super().__init__(out, factor=tuple(factor))
        self.factor = tuple(factor)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H * factor, W * factor)."""
        return F.interpolate(x, scale_factor=[float(f) for f in self.factor], mode="nearest")


class IntPad(IntegerOp):
    """A border of zeros, or of the map's own edge.

    Args:
        padding: left, right, top, bottom.
        edge: whether the border repeats the edge.
    """

    def __init__(self, *, out: Grid, padding: tuple[int, int, int, int], edge: bool) -> None:
        super().__init__(out, padding=tuple(padding), edge=edge)
        self.padding, self.edge = tuple(padding), edge

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H + top + bottom, W + left + right)."""
        return F.pad(x, self.padding, "replicate" if self.edge else "constant")


class IntPadChannels(IntegerOp):
    """Channels of zeros behind the others: images of 4 channels are read faster than of 3.

    Args:
        count: of the channels that are added.
    """

    def __init__(self, *, out: Grid, count: int) -> None:
        super().__init__(out, count=count)
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + count, H, W)."""
        zeros = x.new_zeros((len(x), self.count, *x.shape[2:]))
        return torch.cat([x, zeros], dim=1)


class IntFlatten(IntegerOp):
    """All of an image in one row."""

    def __init__(self, *, out: Grid) -> None:
        super().__init__(out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to (N, everything)."""
        return torch.flatten(x, 1)


class IntClamp(IntegerOp):
    """A ReLU or ReLU6 on a tensor's own grid.

    Args:
        top: the largest centred code that stays.
    """

    def __init__(self, *, out: Grid, top: int) -> None:
        super().__init__(out, top=top)
        self.top = top

    def forward(self, x: Tensor) -> Tensor:
        """Codes between those of 0 and of the top."""
        return x.clamp(0, self.top)
