"""Fill a sample up to a size that a network can take."""

from typing import Any

import numpy as np

from hatcli.data.transforms import TRANSFORMS
from hatcli.data.transforms._boxes import MAPS, moved_maps
from hatcli.data.transforms._fill import mean_color, padded
from hatcli.errors import ConfigError


@TRANSFORMS.register
class PadToMultiple:
    """The sample, filled up right and below until a number divides both sides.

    Args:
        divisor: the number; 64 = the coarsest stride of the segmentation networks.
        fill: RGB of the filled-up part, 0 to 255; None = the image's mean.
        label_fill: id of the filled-up part of a label map; 255 = ignored.
    """

    def __init__(
        self, divisor: int = 64, fill: list[int] | None = None, label_fill: int = 255
    ) -> None:
        if divisor < 1:
            raise ConfigError(f"PadToMultiple: divisor must be at least 1, got {divisor}")
        if fill is not None and (len(fill) != 3 or not all(0 <= part <= 255 for part in fill)):
            raise ConfigError(f"PadToMultiple: fill must be 3 numbers from 0 to 255, got {fill}")
        if not 0 <= label_fill <= 255:
            raise ConfigError(f"PadToMultiple: label_fill must be from 0 to 255, got {label_fill}")
        self.divisor = divisor
        self.fill = fill
        self.label_fill = label_fill

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Fill a sample up; one that fits is given back as it is."""
        image = sample["image"]
        below, right = (-side % self.divisor for side in image.shape[:2])
        if not below and not right:
            return sample
        fill = mean_color(image) if self.fill is None else self.fill
        result = {**sample, "image": padded(image, below, right, fill)}
        fills = {**MAPS, "label": self.label_fill}
        result.update(moved_maps(sample, lambda m, fill: padded(m, below, right, fill), fills))
        return result
