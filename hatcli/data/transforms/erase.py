"""Hide a part of an image."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from hatcli.data.transforms import TRANSFORMS
from hatcli.errors import ConfigError

TRIES = 10


@TRANSFORMS.register
class RandomErasing:
    """The sample, in a share of the cases with a rectangle of its image painted over.

    Zhong et al., "Random Erasing Data Augmentation", arXiv 1708.04896. Area, shape and place
    are distributed as in torchvision; ten rectangles that don't fit leave the image as it is.
    A label map stays: what is hidden has to be guessed.

    Args:
        p: the share, 0 to 1.
        scale: least and largest share of the image's area.
        ratio: least and largest height over width; evenly spread on a logarithmic scale.
        fill: RGB of the rectangle, 0 to 255; "random" = a level for each pixel and channel, all
            256 equally likely, as in the paper.
    """

    def __init__(
        self,
        p: float = 0.25,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        fill: Literal["random"] | list[int] = "random",
    ) -> None:
        if not 0 <= p <= 1:
            raise ConfigError(f"RandomErasing: p must be from 0 to 1, got {p}")
        if len(scale) != 2 or not 0 <= scale[0] <= scale[1] <= 1:
            raise ConfigError(f"RandomErasing: scale must be two shares, least first, got {scale}")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ConfigError(
                f"RandomErasing: ratio must be two numbers above 0, least first, got {ratio}"
            )
        if fill != "random" and (
            len(fill) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in fill)
        ):
            raise ConfigError(
                f"RandomErasing: fill must be 'random' or 3 numbers from 0 to 255, got {fill!r}"
            )
        self.p = p
        self.scale = scale[0], scale[1]
        self.ratio = ratio[0], ratio[1]
        self.fill = fill

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Paint over a rectangle drawn from ``rng``, or give the sample back as it is."""
        if rng.random() >= self.p:
            return sample
        height, width = sample["image"].shape[:2]
        window = self.window(height, width, rng)
        if window is None:
            return sample
        image = sample["image"].copy()
        part = image[window]
        part[:] = rng.integers(0, 256, part.shape, np.uint8) if self.fill == "random" else self.fill
        return {**sample, "image": image}

    def window(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[slice, slice] | None:
        """Rows and columns of a rectangle smaller than the image; None where none was found."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(TRIES):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if tall < height and wide < width:
                top = int(rng.integers(height - tall + 1))
                left = int(rng.integers(width - wide + 1))
                return slice(top, top + tall), slice(left, left + wide)
        return None
