"""Windows for classification: a random part at a fixed size, and the middle."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hatcli.data.transforms import TRANSFORMS
from hatcli.errors import ConfigError

TRIES = 10
INTERPOLATIONS = ("bilinear", "bicubic")
IGNORE = 255

Window = tuple[int, int, int, int]  # top, left, height, width


@TRANSFORMS.register
class RandomResizedCrop:
    """A random part of a sample, resized to a fixed size.

    Area, shape and place are distributed as in torchvision. The image has the bytes that
    torchvision gives for the same part of a uint8 tensor, with antialiasing: in half the time of
    Pillow's filter, and about 6 levels in 100 differ from it by one (60 dB), bicubic ones beside
    white or black by more (57 dB). `Resize`, for evaluation, has Pillow's bytes. A label map
    takes the nearest id.

    Args:
        size: [height, width] in pixels, or one number for both.
        scale: least and largest share of the image's area.
        ratio: least and largest width over height; evenly spread on a logarithmic scale.
        interpolation: filter for the image.
    """

    def __init__(
        self,
        size: int | list[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(
                f"RandomResizedCrop: scale must be two shares, least first, got {scale}"
            )
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ConfigError(
                f"RandomResizedCrop: ratio must be two numbers above 0, least first, got {ratio}"
            )
        if interpolation not in INTERPOLATIONS:
            raise ConfigError(
                "RandomResizedCrop: interpolation must be one of "
                f"{', '.join(INTERPOLATIONS)}, got {interpolation!r}"
            )
        self.height, self.width = _sides("RandomResizedCrop", size)
        self.scale = scale[0], scale[1]
        self.ratio = ratio[0], ratio[1]
        self.interpolation = interpolation

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Cut a part that is drawn from ``rng`` and resize it."""
        image, label = sample["image"], sample.get("label")
        top, left, height, width = self.window(image.shape[0], image.shape[1], rng)
        part = slice(top, top + height), slice(left, left + width)
        result = {**sample, "image": self._resized(image[part])}
        if isinstance(label, np.ndarray):
            small = Image.fromarray(label[part].copy())
            small = small.resize((self.width, self.height), Image.Resampling.NEAREST)
            result["label"] = np.array(small)
        return result

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Top, left, height and width of a part of an image.

        After ten parts that don't fit into the image it is the largest in the middle that keeps
        to the ratios.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(TRIES):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < tall <= height and 0 < wide <= width:
                top = int(rng.integers(height - tall + 1))
                return top, int(rng.integers(width - wide + 1)), tall, wide
        return self._middle(height, width)

    def _middle(self, height: int, width: int) -> Window:
        tall, wide = height, width
        if width / height < self.ratio[0]:
            tall = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            wide = round(height * self.ratio[1])
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def _resized(self, part: np.ndarray) -> np.ndarray:
        if part.shape[:2] == (self.height, self.width):
            return part.copy()
        pixels = torch.from_numpy(part.copy())  # a view may be read-only, which torch warns of
        images: Tensor = F.interpolate(
            pixels.permute(2, 0, 1)[None],  # (1, 3, h, w) in channels_last memory
            (self.height, self.width),
            mode=self.interpolation,
            antialias=True,
        )
        return images[0].permute(1, 2, 0).contiguous().numpy()


@TRANSFORMS.register
class CenterCrop:
    """The middle of a sample, to the bit as torchvision cuts it.

    What a smaller sample lacks is black around it, and 255 in its label map.

    Args:
        size: [height, width] in pixels, or one number for both.
    """

    def __init__(self, size: int | list[int]) -> None:
        self.height, self.width = _sides("CenterCrop", size)

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Cut the middle; draws nothing."""
        result = {**sample, "image": self._middle(sample["image"], 0)}
        if isinstance(sample.get("label"), np.ndarray):
            result["label"] = self._middle(sample["label"], IGNORE)
        return result

    def _middle(self, array: np.ndarray, fill: int) -> np.ndarray:
        rows, above = _middle_of(array.shape[0], self.height)
        columns, left = _middle_of(array.shape[1], self.width)
        part = array[rows, columns]
        if part.shape[:2] == (self.height, self.width):
            return part.copy()
        whole = np.full((self.height, self.width, *array.shape[2:]), fill, array.dtype)
        whole[above : above + part.shape[0], left : left + part.shape[1]] = part
        return whole


def _middle_of(length: int, wanted: int) -> tuple[slice, int]:
    """What to take of a side, and how much to leave free in front of it."""
    if wanted > length:
        return slice(0, length), (wanted - length) // 2
    start = round((length - wanted) / 2)  # halves go to the even neighbour, as in torchvision
    return slice(start, start + wanted), 0


def _sides(part: str, size: int | list[int]) -> tuple[int, int]:
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ConfigError(f"{part}: size must be [height, width] or one number, got {size}")
    return sides[0], sides[1]
