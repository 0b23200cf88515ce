"""Boxes and maps move with the pixels.

Boxes are (N, 4) float: left, top, right, bottom edges in pixels from the image's upper left
corner, so that a box of the whole image is (0, 0, width, height). What else is known of each box
(`PER_BOX`) stays in step with it. Maps (`MAPS`) hold an id at each pixel.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hatcli.errors import ConfigError

BOXES = "boxes"
PER_BOX = ("classes", "crowd", "difficult", "truncated", "areas", "annotation_ids")
MAPS = MappingProxyType({"label": 255, "instance": 0})
"""Fields with an id at each pixel, and the id of what comes in from outside the image."""

UNMOVED = ("masks", "segmentations")
"""Fields that no transform can move; a sample with one is refused."""

Sample = dict[str, Any]


def moved_maps(
    sample: Mapping[str, Any],
    move: Callable[[np.ndarray, int], np.ndarray],
    fills: Mapping[str, int] = MAPS,
) -> Iterator[tuple[str, np.ndarray]]:
    """Each map of a sample after a move.

    Args:
        sample: maps are (H, W) of an integer type.
        move: from a map and the id of what is filled up to the new map.
        fills: the fields that are maps, and these ids.
    """
    for name, fill in fills.items():
        if isinstance(sample.get(name), np.ndarray):
            yield name, move(sample[name], fill)


def map_picture(values: np.ndarray) -> Image.Image:
    """A map as a picture of Pillow; ids of 16 bits take 32, whose pixels it picks as those of 8."""
    return Image.fromarray(values if values.dtype == np.uint8 else values.astype(np.int32))


def resized_map(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """A map at another size; each pixel takes the id at its centre."""
    picture = map_picture(values).resize((width, height), Image.Resampling.NEAREST)
    return np.array(picture).astype(values.dtype, copy=False)


def scaled_boxes(
    sample: Mapping[str, Any], old_size: tuple[int, ...], new_size: tuple[int, int]
) -> Sample:
    """What changes in a sample whose image is resized; nothing in one without boxes.

    Args:
        old_size: height and width of the image as it was.
        new_size: height and width of the new image.
    """
    if not _has_boxes(sample):
        return {}
    down, right = (new / old for new, old in zip(new_size, old_size, strict=True))
    boxes = sample[BOXES]
    result = {BOXES: (boxes * np.array([right, down, right, down])).astype(boxes.dtype)}
    if "areas" in sample:
        result["areas"] = sample["areas"] * (down * right)
    return result


def mirrored_boxes(sample: Mapping[str, Any], width: int) -> Sample:
    """What changes in a sample whose image, of that width, is mirrored left to right."""
    if not _has_boxes(sample):
        return {}
    boxes = sample[BOXES].copy()
    boxes[:, 0::2] = width - boxes[:, 2::-2]
    return {BOXES: boxes}


def cut_boxes(
    sample: Mapping[str, Any],
    corner: tuple[int, int],
    size: tuple[int, int],
    min_visible: float = 0.0,
) -> Sample:
    """What changes in a sample of whose image a window is cut out.

    Boxes are clipped to the window; those of which nothing is left go, with all that is known
    of them.

    Args:
        corner: top and left of the window in the image; negative where it begins outside.
        size: height and width of the window.
        min_visible: boxes of which a smaller share of the area is left go as well, 0 to 1.
    """
    if not _has_boxes(sample):
        return {}
    boxes = sample[BOXES]
    top, left = corner
    shifted = boxes - np.array([left, top, left, top], boxes.dtype)
    limits = np.array([size[1], size[0], size[1], size[0]], boxes.dtype)
    clipped = np.clip(shifted, 0, limits)
    before, after = box_areas(shifted), box_areas(clipped)
    has_sides = (clipped[:, 2:] > clipped[:, :2]).all(1)
    keep = has_sides & (after >= min_visible * before)
    result = {BOXES: clipped[keep]}
    for name in PER_BOX:
        if name in sample:
            result[name] = np.asarray(sample[name])[keep]
    if "areas" in result:
        result["areas"] = result["areas"] * (after[keep] / before[keep])
    return result


def box_areas(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) square pixels of (N, 4) boxes."""
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    return sides[:, 0] * sides[:, 1]


def refuse_boxes(sample: Mapping[str, Any], part: str) -> None:
    """Refuse a sample with boxes, in the name of a transform that can't move them.

    Raises:
        ConfigError: it has some.
    """
    if BOXES in sample:
        raise ConfigError(
            f"{part}: it can't move boxes, and the samples have some",
            f"leave {part} out of the transforms of a detection set",
        )


def require_share(part: str, name: str, share: float) -> None:
    """Refuse an argument that is no share.

    Raises:
        ConfigError: it is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"{part}: {name} must be from 0 to 1, got {share}")


def _has_boxes(sample: Mapping[str, Any]) -> bool:
    """Whether boxes have to be moved.

    Raises:
        ConfigError: there is something beside them that can't be moved.
    """
    for name in UNMOVED:
        if name in sample:
            raise ConfigError(
                f"transforms: {name!r} of a sample can't be moved with its pixels",
                f"ask the dataset for samples without {name}",
            )
    return BOXES in sample
