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


@BATCH_TRANSFORMS.register
class RgbToYuv444(nn.Module):
    """Brightness and two colour differences in [-1, 1): (yuv - 128) / 128.

    BT.601 in full swing with the integer rows (77, 150, 29), (-43, -84, 127), (127, -106, -21)
    over 256 and offsets 0, 128, 128, without the rounding to integers that a byte-sized YUV image
    would need. On whole RGB levels the result is exact in float32, in any order of summation (all
    terms are multiples of 2**-15 below 4), so every runtime gives the same bits.
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
        return F.conv2d(images.to(torch.float32), self.weight, self.bias)


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
        return images.to(torch.float32) * self.scale + self.shift
