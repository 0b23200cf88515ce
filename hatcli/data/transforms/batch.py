"""From the uint8 batch of the loader to the float32 input of the network, on the device.

The same modules serve training, evaluation and calibration, and go into an exported model that
takes RGB bytes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.data.transforms import BATCH_TRANSFORMS
from hatcli.errors import ConfigError

_PIXELS = 4  # in a row of a product
_ROWS = 12_544


@BATCH_TRANSFORMS.register
class RgbToYuv444(nn.Module):
    """Brightness and two colour differences in [-1, 1): (yuv - 128) / 128.

    BT.601 in full swing with the integer rows (77, 150, 29), (-43, -84, 127), (127, -106, -21)
    over 256 and offsets 0, 128, 128, without the rounding to integers that a byte-sized YUV image
    would need. On whole RGB levels the result is exact in float32, in any order of summation (all
    terms are multiples of 2**-15 below 4), so every runtime gives the same bits, and so do the
    two ways that it is computed here.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        rows = [[77, 150, 29], [-43, -84, 127], [127, -106, -21]]
        weight = torch.tensor(rows, dtype=torch.float32).view(3, 3, 1, 1) / (256 * 128)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", torch.tensor([-1.0, 0.0, 0.0]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convert a batch.

        Args:
            images: (N, 3, H, W) RGB, uint8 or float, 0 to 255.

        Returns:
            (N, 3, H, W) float32 YUV in [-1, 1), in the memory format of the input.
        """
        if _are_plain(images) and images.numel() % (3 * _PIXELS) == 0:
            return self._multiplied(images)
        return F.conv2d(images.to(torch.float32), self.weight, self.bias)

    def matrix(self) -> Tensor:
        """(3, 4) float32: what a result is in red, green, blue and 1."""
        return torch.cat([self.weight.view(3, 3), self.bias[:, None]], dim=1)

    def _multiplied(self, images: Tensor) -> Tensor:
        """The same with products of matrices: on a CPU a quarter of the convolution's time.

        A few pixels make a row, and their matrix stands on the diagonal as often, since a
        product with three columns is slow. Some rows at a time stay in the cache.
        """
        matrix = torch.kron(torch.eye(_PIXELS), self.weight.view(3, 3).T.contiguous())
        bias = self.bias.repeat(_PIXELS)
        count, _, height, width = images.shape
        levels = images.permute(0, 2, 3, 1).reshape(-1, 3 * _PIXELS)
        result = torch.empty(levels.shape, dtype=torch.float32)
        for start in range(0, len(levels), _ROWS):
            some = slice(start, start + _ROWS)
            torch.addmm(bias, levels[some].to(torch.float32), matrix, out=result[some])
        return result.view(count, height, width, 3).permute(0, 3, 1, 2)


@BATCH_TRANSFORMS.register
class Normalize(nn.Module):
    """Each channel less its mean, over its standard deviation.

    Args:
        mean: of red, green and blue, in levels from 0 to 255.
        std: of red, green and blue, in levels, > 0.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ConfigError(f"Normalize: {name} must be 3 numbers, got {values}")
        if min(std) <= 0:
            raise ConfigError(f"Normalize: std must be above 0, got {std}")
        if max(std) < 1:  # shares of 1, as torchvision has them, would give inputs near 1000
            raise ConfigError(
                f"Normalize: std is in levels from 0 to 255, got {std}", "multiply both by 255"
            )
        scale = 1 / torch.tensor(std, dtype=torch.float64)
        shift = -torch.tensor(mean, dtype=torch.float64) * scale
        self.register_buffer("scale", scale.float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convert a batch.

        Args:
            images: (N, 3, H, W) RGB, uint8 or float, 0 to 255.

        Returns:
            (N, 3, H, W) float32, in the memory format of the input.
        """
        if _are_plain(images):
            return self._row_by_row(images)
        return images.to(torch.float32) * self.scale + self.shift

    def matrix(self) -> Tensor:
        """(3, 4) float32: what a result is in red, green, blue and 1."""
        return torch.cat([self.scale.view(3).diag(), self.shift.view(3, 1)], dim=1)

    def _row_by_row(self, images: Tensor) -> Tensor:
        """The same in place and over rows of pixels, which on a CPU takes a fifth of the time."""
        count, _, height, width = images.shape
        result = images.permute(0, 2, 3, 1).to(torch.float32).reshape(-1, 3 * width)
        result.mul_(self.scale.view(3).repeat(width)).add_(self.shift.view(3).repeat(width))
        return result.view(count, height, width, 3).permute(0, 3, 1, 2)


def _are_plain(images: Tensor) -> bool:
    """Whether they are bytes as the loader gives them, on a CPU, and nobody records what happens.

    What traces or exports a module has tensors of a type of its own, or says so.
    """
    return (
        type(images) is Tensor
        and images.dtype == torch.uint8
        and images.device.type == "cpu"
        and images.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )
