"""Scale, crop and mirror in one step, of which only the pixels that are used are computed."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hatcli.data.transforms import TRANSFORMS
from hatcli.data.transforms._boxes import (
    cut_boxes,
    mirrored_boxes,
    moved_maps,
    require_share,
    scaled_boxes,
)
from hatcli.data.transforms._fill import mean_color
from hatcli.errors import ConfigError

TRIES = 10
IGNORE = 255


class _Window(NamedTuple):
    """Where a window lies in the scaled image: its corner, and how much of it is filled.

    Attributes:
        size: height and width of the whole image as it is.
        scaled: height and width of the whole image when it is scaled.
        top: of the window in the scaled image.
        left: of the window in the scaled image.
        height: rows of the window that lie in the scaled image.
        width: its columns that do.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    top: int
    left: int
    height: int
    width: int


@TRANSFORMS.register
class RandomScaleCropFlip:
    """`RandomScale`, `RandomCrop` and `RandomFlip` in one, in a fraction of their time.

    All is drawn first, in the order of the three and with the same distribution. Then only the
    rows that the window shows are decoded, where the image isn't yet, and only the window is
    resampled. From the same draws it gives the label map of the three, and their image but for
    a difference of one level in a few pixels of 1000.

    Args:
        height: of the window in pixels.
        width: of the window in pixels.
        low: smallest factor, > 0.
        high: largest factor; each in between is as likely as any other.
        flip: share of the cases in which left and right are exchanged, 0 to 1.
        cat_max_ratio: a window is drawn again, up to 10 times, while one class takes a larger
            share of its labelled pixels; 1 = never.
        fill: RGB of the part of a window that lies outside, 0 to 255; None = the mean of the part
            inside. Its label is 255.
        min_visible: boxes of which a smaller share of the area lies in the window go, 0 to 1;
            with 0 those that lie outside altogether.
    """

    takes_stored = True

    def __init__(
        self,
        height: int,
        width: int,
        low: float = 0.5,
        high: float = 2.0,
        flip: float = 0.5,
        cat_max_ratio: float = 1.0,
        fill: list[int] | None = None,
        min_visible: float = 0.0,
    ) -> None:
        name = type(self).__name__
        if min(height, width) < 1:
            raise ConfigError(f"{name}: height and width must be at least 1, got {height}, {width}")
        if not 0 < low <= high < math.inf:
            raise ConfigError(f"{name}: low must be above 0 and at most high, got {low}, {high}")
        if not 0 < cat_max_ratio <= 1:
            raise ConfigError(
                f"{name}: cat_max_ratio must be above 0 and at most 1, got {cat_max_ratio}"
            )
        if fill is not None and (len(fill) != 3 or not all(0 <= part <= 255 for part in fill)):
            raise ConfigError(f"{name}: fill must be 3 numbers from 0 to 255, got {fill}")
        require_share(name, "flip", flip)
        require_share(name, "min_visible", min_visible)
        self.height = height
        self.width = width
        self.low = low
        self.high = high
        self.flip = flip
        self.cat_max_ratio = cat_max_ratio
        self.fill = fill
        self.min_visible = min_visible

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Cut a window whose scale, place and side are drawn from ``rng``."""
        image = sample["image"]
        window = self._draw(sample, rng)
        is_mirrored = rng.random() < self.flip
        pixels = _resampled(image, window, is_mirrored)
        fill = self.fill
        if fill is None and pixels.shape[:2] != (self.height, self.width):
            fill = mean_color(pixels)
        result = {**sample, "image": self._filled(pixels, fill or 0, is_mirrored)}
        result.update(
            moved_maps(
                sample,
                lambda values, outside: self._filled(
                    _nearest(values, window, is_mirrored), outside, is_mirrored
                ),
            )
        )
        result |= scaled_boxes(sample, window.size, window.scaled)
        corner = window.top, window.left
        result |= cut_boxes(result, corner, (self.height, self.width), self.min_visible)
        return result | mirrored_boxes(result, self.width) if is_mirrored else result

    def _draw(self, sample: dict[str, Any], rng: np.random.Generator) -> _Window:
        height, width = sample["image"].shape[:2]
        factor = rng.uniform(self.low, self.high)
        scaled = max(1, round(height * factor)), max(1, round(width * factor))
        label = sample.get("label")
        window = self._place((height, width), scaled, rng)
        if isinstance(label, np.ndarray) and self.cat_max_ratio < 1:
            for _ in range(TRIES - 1):
                if _largest_share(_nearest(label, window, False)) <= self.cat_max_ratio:
                    break
                window = self._place((height, width), scaled, rng)
        return window

    def _place(
        self, size: tuple[int, int], scaled: tuple[int, int], rng: np.random.Generator
    ) -> _Window:
        top = int(rng.integers(max(scaled[0] - self.height, 0) + 1))
        left = int(rng.integers(max(scaled[1] - self.width, 0) + 1))
        inside = min(self.height, scaled[0]), min(self.width, scaled[1])
        return _Window(size, scaled, top, left, *inside)

    def _filled(self, part: np.ndarray, fill: list[int] | int, is_mirrored: bool) -> np.ndarray:
        """The full window: the part is its upper left corner, or its upper right when mirrored."""
        if part.shape[:2] == (self.height, self.width):
            return np.ascontiguousarray(part)
        whole = np.empty((self.height, self.width, *part.shape[2:]), part.dtype)
        whole[:] = fill
        height, width = part.shape[:2]
        columns = slice(self.width - width, None) if is_mirrored else slice(width)
        whole[:height, columns] = part
        return whole


def _largest_share(label: np.ndarray) -> float:
    """Share of the most frequent class among the labelled pixels; 0 when there are none."""
    counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return float(counts.max() / max(counts.sum(), 1))


def _resampled(image: Any, window: _Window, is_mirrored: bool) -> NDArray[np.uint8]:
    """The part of a window that lies in the scaled image.

    Pillow's filter with the edges of the window in the coordinates of the source: the pixels are
    those of the whole image, resized, but for the rounding of the coordinates.

    Args:
        image: pixels, or a `StoredImage`.
    """
    rows = _source(window.top, window.height, window.size[0], window.scaled[0])
    columns = _source(window.left, window.width, window.size[1], window.scaled[1])
    part = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
    if isinstance(image, np.ndarray):
        pixels = image[part]
    else:
        sides = rows.stop - rows.start, columns.stop - columns.start
        pixels = image.region(rows.start, columns.start, *sides)
    box = columns.low, rows.low, columns.high, rows.high
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (window.width, window.height), Image.Resampling.BILINEAR, box
    )
    if is_mirrored:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(resized)


class _Source(NamedTuple):
    """What a side of a window needs of the image.

    Attributes:
        start: first row or column that has a share in it.
        stop: behind the last one.
        low: where the window begins, counted from ``start``.
        high: where it ends.
    """

    start: int
    stop: int
    low: float
    high: float


def _source(first: int, length: int, size: int, scaled: int) -> _Source:
    step = size / scaled  # source pixels a pixel of the window
    low, high = first * step, min((first + length) * step, size)
    reach = math.ceil(max(step, 1.0)) + 1  # of the bilinear filter beyond an edge
    start, stop = max(math.floor(low) - reach, 0), min(math.ceil(high) + reach, size)
    return _Source(start, stop, low - start, high - start)


def _nearest(values: np.ndarray, window: _Window, is_mirrored: bool) -> np.ndarray:
    """The ids of a map at the centres of a window's pixels, those that Pillow takes."""
    rows = _centres(window.top, window.height, window.size[0], window.scaled[0])
    columns = _centres(window.left, window.width, window.size[1], window.scaled[1])
    if is_mirrored:
        columns = columns[::-1]
    return values.take(rows, axis=0).take(columns, axis=1)


def _centres(first: int, length: int, size: int, scaled: int) -> NDArray[np.intp]:
    steps = np.full(first + length, size / scaled)
    steps[0] /= 2
    # Added one by one, as Pillow does: a centre on the edge of two pixels then goes the same way.
    return np.minimum(steps.cumsum()[first:].astype(np.intp), size - 1)
