"""Windows for classification: a random part at a fixed size, and the middle."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hatcli.data.transforms import TRANSFORMS
from hatcli.data.transforms._boxes import (
    cut_boxes,
    moved_maps,
    require_share,
    resized_map,
    scaled_boxes,
)
from hatcli.errors import ConfigError

TRIES = 10
INTERPOLATIONS = ("bilinear", "bicubic")

Window = tuple[int, int, int, int]  # top, left, height, width


@TRANSFORMS.register
class RandomResizedCrop:
    """A random part of a sample, resized to a fixed size.

    Area, shape and place are distributed as in torchvision. The image has the bytes that
    torchvision gives for the same part of a uint8 tensor, with antialiasing: in half the time of
    Pillow's filter, and about 6 levels in 100 differ from it by one (60 dB), bicubic ones beside
    white or black by more (57 dB). `Resize`, for evaluation, has Pillow's bytes. A label map
    takes the nearest id.

    Of an image that isn't decoded yet, only the rows above the part's lower edge are.

    Args:
        size: [height, width] in pixels, or one number for both.
        scale: least and largest share of the image's area.
        ratio: least and largest width over height; evenly spread on a logarithmic scale.
        interpolation: filter for the image.
        min_visible: boxes of which a smaller share of the area lies in the part go, 0 to 1;
            with 0 those that lie outside altogether.
        scaled_decode: decode a JPEG at a half, a quarter or an eighth of its size where the
            result is smaller still. The part's edges are then rounded to multiples of 2, 4 or 8
            pixels, and the image is a little softer. For training only.
    """

    takes_stored = True

    def __init__(
        self,
        size: int | list[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        min_visible: float = 0.0,
        scaled_decode: bool = False,
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
        require_share("RandomResizedCrop", "min_visible", min_visible)
        self.min_visible = min_visible
        self.scaled_decode = scaled_decode

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Cut a part that is drawn from ``rng`` and resize it."""
        image = sample["image"]
        window = self.window(image.shape[0], image.shape[1], rng)
        shrink = self._shrink(image, window)
        if shrink > 1:
            window = _rounded(window, image.shape, shrink)
        top, left, height, width = window
        part = slice(top, top + height), slice(left, left + width)
        pixels = image[part] if isinstance(image, np.ndarray) else image.region(*window, shrink)
        result = {**sample, "image": self._resized(pixels)}
        size = self.width, self.height
        result.update(moved_maps(sample, lambda values, _: resized_map(values[part], *size)))
        result |= cut_boxes(sample, (top, left), (height, width), self.min_visible)
        return result | scaled_boxes(result, (height, width), (self.height, self.width))

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

    def _shrink(self, image: Any, window: Window) -> int:
        """By what an image can be shrunk while it is decoded, and still be no smaller than asked.

        Args:
            image: pixels, or a `StoredImage`.
            window: of it.
        """
        if not self.scaled_decode or isinstance(image, np.ndarray):
            return 1
        _, _, height, width = window
        most = min(height / self.height, width / self.width)
        return max((shrink for shrink in image.shrinks if shrink <= most), default=1)

    def _resized(self, part: np.ndarray) -> np.ndarray:
        if part.shape[:2] == (self.height, self.width):
            return part.copy()
        pixels = np.empty((1, *part.shape), np.uint8)  # a batch, else its result isn't in
        pixels[0] = part  #                              channels_last memory
        images: Tensor = F.interpolate(
            torch.from_numpy(pixels).permute(0, 3, 1, 2),  # (1, 3, h, w)
            (self.height, self.width),
            mode=self.interpolation,
            antialias=True,
        )
        return images[0].permute(1, 2, 0).contiguous().numpy()


def _rounded(window: Window, shape: tuple[int, ...], step: int) -> Window:
    """A window with edges on multiples of a step, as near as there are such within the image."""
    top, height = _rounded_side(window[0], window[2], shape[0], step)
    left, width = _rounded_side(window[1], window[3], shape[1], step)
    return top, left, height, width


def _rounded_side(start: int, length: int, whole: int, step: int) -> tuple[int, int]:
    length = max(length // step, 1) * step
    last = (whole - length) // step * step
    return min(round(start / step) * step, last), length


@TRANSFORMS.register
class CenterCrop:
    """The middle of a sample, to the bit as torchvision cuts it.

    What a smaller sample lacks is black around it, and 255 in its label map.

    Args:
        size: [height, width] in pixels, or one number for both.
        min_visible: boxes of which a smaller share of the area lies in the middle go, 0 to 1;
            with 0 those that lie outside altogether.
    """

    def __init__(self, size: int | list[int], min_visible: float = 0.0) -> None:
        self.height, self.width = _sides("CenterCrop", size)
        require_share("CenterCrop", "min_visible", min_visible)
        self.min_visible = min_visible

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Cut the middle; draws nothing."""
        image = sample["image"]
        result = {**sample, "image": self._middle(image, 0)}
        result.update(moved_maps(sample, self._middle))
        rows, above = _middle_of(image.shape[0], self.height)
        columns, before = _middle_of(image.shape[1], self.width)
        corner = rows.start - above, columns.start - before
        return result | cut_boxes(sample, corner, (self.height, self.width), self.min_visible)

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
