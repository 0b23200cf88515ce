"""Cut a window of a fixed size out of a sample."""

from typing import Any

import numpy as np

from hatcli.data.transforms import TRANSFORMS
from hatcli.data.transforms._boxes import cut_boxes, moved_maps, require_share
from hatcli.data.transforms._fill import mean_color
from hatcli.errors import ConfigError

TRIES = 10
IGNORE = 255


@TRANSFORMS.register
class RandomCrop:
    """A window at a random place; a sample that is too small is filled up right and below.

    Args:
        height: of the window in pixels.
        width: of the window in pixels.
        cat_max_ratio: a window is drawn again, up to 10 times, while one class takes a larger
            share of its labelled pixels; 1 = never.
        fill: RGB of the filled-up part, 0 to 255; None = the image's mean. Its label is 255.
        min_visible: boxes of which a smaller share of the area lies in the window go, 0 to 1;
            with 0 those that lie outside altogether.
    """

    def __init__(
        self,
        height: int,
        width: int,
        cat_max_ratio: float = 1.0,
        fill: list[int] | None = None,
        min_visible: float = 0.0,
    ) -> None:
        for name, side in (("height", height), ("width", width)):
            if side < 1:
                raise ConfigError(f"RandomCrop: {name} must be at least 1, got {side}")
        if not 0 < cat_max_ratio <= 1:
            raise ConfigError(
                f"RandomCrop: cat_max_ratio must be above 0 and at most 1, got {cat_max_ratio}"
            )
        if fill is not None and (len(fill) != 3 or not all(0 <= part <= 255 for part in fill)):
            raise ConfigError(f"RandomCrop: fill must be 3 numbers from 0 to 255, got {fill}")
        require_share("RandomCrop", "min_visible", min_visible)
        self.height = height
        self.width = width
        self.cat_max_ratio = cat_max_ratio
        self.fill = fill
        self.min_visible = min_visible

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Cut a window whose place is drawn from ``rng``."""
        image, label = sample["image"], sample.get("label")
        window = self._draw(image.shape, rng)
        if isinstance(label, np.ndarray) and self.cat_max_ratio < 1:
            for _ in range(TRIES - 1):
                if _largest_share(label[window]) <= self.cat_max_ratio:
                    break
                window = self._draw(image.shape, rng)
        fill = self.fill
        if fill is None and (image.shape[0] < self.height or image.shape[1] < self.width):
            fill = mean_color(image)
        result = {**sample, "image": self._filled(image[window], fill or 0)}
        result.update(moved_maps(sample, lambda values, fill: self._filled(values[window], fill)))
        corner = window[0].start, window[1].start
        return result | cut_boxes(sample, corner, (self.height, self.width), self.min_visible)

    def _draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice]:
        top = int(rng.integers(max(shape[0] - self.height, 0) + 1))
        left = int(rng.integers(max(shape[1] - self.width, 0) + 1))
        return slice(top, top + self.height), slice(left, left + self.width)

    def _filled(self, part: np.ndarray, fill: list[int] | int) -> np.ndarray:
        """A copy of a window, filled up to the full size."""
        if part.shape[:2] == (self.height, self.width):
            return part.copy()
        whole = np.empty((self.height, self.width, *part.shape[2:]), part.dtype)
        whole[:] = fill
        whole[: part.shape[0], : part.shape[1]] = part
        return whole


def _largest_share(label: np.ndarray) -> float:
    """Share of the most frequent class among the labelled pixels; 0 when there are none."""
    counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return float(counts.max() / max(counts.sum(), 1))
