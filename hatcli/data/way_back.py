"""From the pixels of a transformed image back to those of its source."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hatcli.data.loader import SampleTransform
from hatcli.errors import ConfigError

OUTSIDE = 255
"""What a source pixel that the transformed image doesn't show gets."""

_FIRST = 256  # mark of the first pixel: transforms fill with 0 to 255
_UNSEEN = -1


class WayBack:
    """Which pixel of the transformed image shows each pixel of the source.

    Args:
        marks: (h, w) int32: at each pixel of the transformed image 256 + the place in the
            flattened source of the pixel that it shows, or less where it shows none.
        size: height and width of the source.

    Raises:
        ConfigError: the image was turned or bent, not just padded, cut, mirrored or resized.
    """

    def __init__(self, marks: NDArray[np.int32], size: tuple[int, int]) -> None:
        height, width = size
        seen = marks >= _FIRST
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        if not len(rows):
            raise ConfigError("val.transforms: they leave nothing of the image")
        places = marks[np.ix_(rows, columns)].astype(np.int64) - _FIRST
        tops, lefts = places[:, 0] // width, places[0] % width
        if not np.array_equal(places, tops[:, None] * width + lefts):
            raise ConfigError(
                "val.transforms: they turn or bend the image, so that its pixels can't be found",
                "evaluate with PadToMultiple, Resize or CenterCrop",
            )
        self._rows = _nearest(tops, rows, height)
        self._columns = _nearest(lefts, columns, width)

    def __call__(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The classes of the source's pixels.

        Args:
            label: (h, w) of the transformed image.

        Returns:
            (H, W), of the nearest pixel; 255 where the transformed image doesn't show it.
        """
        result = label[self._rows[:, None], self._columns]
        result[self._rows == _UNSEEN] = OUTSIDE
        result[:, self._columns == _UNSEEN] = OUTSIDE
        return result


def transform_image(
    pixels: NDArray[np.uint8], transforms: Iterable[SampleTransform], name: str, *, has_map: bool
) -> tuple[NDArray[np.uint8], WayBack | None]:
    """An image as evaluation transforms leave it, and the way back to its pixels.

    The way is found by sending a map with the place of each pixel along as the label.

    Args:
        pixels: (H, W, 3) uint8 RGB; stays as it is.
        transforms: those of an evaluation; nothing that they draw at random is wanted.
        name: of the sample.
        has_map: whether results are maps, which need a way back; else the label is a 0.

    Raises:
        ConfigError: no way back is known.
    """
    height, width = pixels.shape[:2]
    label: Any = 0
    if has_map:
        label = np.arange(_FIRST, _FIRST + height * width, dtype=np.int32).reshape(height, width)
    sample: dict[str, Any] = {"image": pixels, "label": label, "name": name}
    generator = np.random.default_rng(0)
    for transform in transforms:
        sample = transform(sample, generator)
    way = WayBack(sample["label"], (height, width)) if has_map else None
    return sample["image"], way


def _nearest(shown: NDArray[np.int64], places: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """For each line of the source the place of the one that shows it, or the nearest; -1: none.

    Args:
        shown: the line of the source that each line of the transformed image shows.
        places: where these lines stand in the transformed image.
        length: lines of the source.
    """
    order = np.argsort(shown, kind="stable")
    shown, places = shown[order], places[order]
    lines = np.arange(length)
    found = places[np.searchsorted((shown[1:] + shown[:-1]) / 2, lines)]
    # A line stands for those around it, as far as half the way to the next.
    reach = (shown[-1] - shown[0]) / (len(shown) - 1) / 2 if len(shown) > 1 else 0.5
    outside = (lines < shown[0] - max(reach, 0.5)) | (lines > shown[-1] + max(reach, 0.5))
    return np.where(outside, _UNSEEN, found)
