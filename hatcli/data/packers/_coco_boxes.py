"""The annotations of one image of COCO: checked, and as arrays."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hatcli.data.packers._coco_document import ImageInfo
from hatcli.data.packers._strict_json import check_finite, short
from hatcli.errors import DataError

_ROUNDING = 1.0  # pixels that a box may reach over the border: the numbers are rounded
_POINT_NUMBERS = 6  # of the smallest polygon: three points


class Boxes(NamedTuple):
    """The boxes of an image, one for each annotation, in the file's order.

    Attributes:
        boxes: (N, 4) float32: left, top, right, bottom edges in pixels from the upper left
            corner, cut off at the image's border.
        classes: (N,) int32, index of the category.
        crowd: (N,) uint8, 1 for regions of many objects.
        areas: (N,) float64, square pixels of the object; of its box where the file doesn't say.
        annotation_ids: (N,) int64.
        kinds: how many "polygons", "rle" and "compressed_rle" there are, how many have "none",
            how many boxes are "clipped" by more than rounding, and how many are "flat".
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int32]
    crowd: NDArray[np.uint8]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    kinds: dict[str, int]


def read_boxes(
    annotations: Sequence[Mapping[str, Any]],
    places: Sequence[int],
    image: ImageInfo,
    index_of: Mapping[int, int],
    *,
    where: str,
    clip: bool,
) -> Boxes:
    """The annotations of one image as arrays.

    Args:
        annotations: as they stand in the file; their ids were checked.
        places: where they stand there, for messages.
        image: whose they are.
        index_of: from the id of a category to the index of its class.
        where: what messages call the file.
        clip: whether a box that reaches over the image's border by a pixel and more is cut off
            there; otherwise it is an error.

    Raises:
        DataError: one says something impossible; names its path in the file and its id.
    """
    rows, crowd, areas = [], [], []
    kinds: dict[str, int] = {}
    for annotation, place in zip(annotations, places, strict=True):
        path = f"annotations[{place}] (id {annotation['id']})"
        check_finite(annotation, path, where)
        one = _Annotation(annotation, f"{where}: {path}", image)
        box, note = one.box(clip=clip)
        rows.append(box)
        crowd.append(one.crowd())
        areas.append(one.area())
        for kind in (note, one.segmentation()):
            kinds[kind] = kinds.get(kind, 0) + 1
    kinds.pop("", None)
    classes = [index_of[annotation["category_id"]] for annotation in annotations]
    return Boxes(
        np.array(rows, dtype=np.float32).reshape(-1, 4),
        np.array(classes, dtype=np.int32),
        np.array(crowd, dtype=np.uint8),
        np.array(areas, dtype=np.float64),
        np.array([annotation["id"] for annotation in annotations], dtype=np.int64),
        kinds,
    )


class _Annotation:
    """The values in an annotation; messages name it."""

    def __init__(self, values: Mapping[str, Any], where: str, image: ImageInfo) -> None:
        self._values, self._where, self._image = values, where, image

    def box(self, *, clip: bool) -> tuple[tuple[float, float, float, float], str]:
        """Its edges within the image; and "clipped", "flat" or ""."""
        given = self._values.get("bbox")
        if not isinstance(given, list) or len(given) != 4 or not all(map(_is_number, given)):
            what = "is missing" if given is None else "is not a list of four numbers"
            raise DataError(f"{self._where}.bbox {what}")
        left, top, width, height = given
        for side, name, place in ((width, "width", 2), (height, "height", 3)):
            if side < 0:
                raise DataError(f"{self._where}.bbox[{place}]: {name} is {side}")
        edges = (left, top, left + width, top + height)
        sides = self._image.width, self._image.height
        over = max(-left, -top, edges[2] - sides[0], edges[3] - sides[1])
        outside = left >= sides[0] or top >= sides[1] or edges[2] <= 0 or edges[3] <= 0
        if (outside and width and height) or (over > _ROUNDING and not clip):
            raise DataError(
                f"{self._where}.bbox {given} is outside the image, {sides[0]}x{sides[1]}",
                "--boxes clip cuts off what reaches over the border",
            )
        inside = [
            float(min(max(edge, 0), side)) for edge, side in zip(edges, sides * 2, strict=True)
        ]
        note = "clipped" if over > _ROUNDING else "" if width and height else "flat"
        return (inside[0], inside[1], inside[2], inside[3]), note

    def crowd(self) -> int:
        value = self._values.get("iscrowd", 0)
        if type(value) is not int or value not in (0, 1):
            raise DataError(f"{self._where}.iscrowd is {short(value)}, not 0 or 1")
        return value

    def area(self) -> float:
        value = self._values.get("area")
        if value is None:
            return float(self._values["bbox"][2] * self._values["bbox"][3])
        if not _is_number(value) or value < 0:
            raise DataError(f"{self._where}.area is {short(value)}")
        return float(value)

    def segmentation(self) -> str:
        """Of what kind it is."""
        value = self._values.get("segmentation")
        if value is None or value == []:
            return "none"
        if isinstance(value, list):
            self._check_polygons(value)
            return "polygons"
        if not isinstance(value, dict) or not {"size", "counts"} <= value.keys():
            raise DataError(f"{self._where}.segmentation is neither polygons nor an RLE")
        return self._check_rle(value["size"], value["counts"])

    def _check_polygons(self, polygons: list[Any]) -> None:
        for place, polygon in enumerate(polygons):
            path = f"{self._where}.segmentation[{place}]"
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
                raise DataError(f"{path} is no list of numbers")
            if len(polygon) < _POINT_NUMBERS or len(polygon) % 2:
                raise DataError(
                    f"{path} has {len(polygon)} numbers, not x and y of 3 points or more"
                )

    def _check_rle(self, size: object, counts: object) -> str:
        """Refuse runs that don't fill the image exactly: decoders write behind their memory."""
        path = f"{self._where}.segmentation"
        height, width = self._image.height, self._image.width
        if size != [height, width]:
            wanted = f"[{height}, {width}] (height, width)"
            raise DataError(f"{path}.size is {short(size)}, but the image has {wanted}")
        runs = counts
        if isinstance(counts, str):
            runs = decode_counts(counts)
            if runs is None:
                raise DataError(f"{path}.counts is no compressed RLE")
        if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
            raise DataError(f"{path}.counts is no list of runs")
        if sum(runs) != height * width:
            pixels = f"{sum(runs)} pixels, but the image has {height * width}"
            raise DataError(f"{path}.counts: the runs have {pixels}")
        return "compressed_rle" if isinstance(counts, str) else "rle"


def decode_counts(text: str) -> list[int] | None:
    """The runs in COCO's compressed form; None if it is damaged.

    Each character holds 5 bits, lowest first, and whether more follow; from the fourth number on
    each is the difference to the one two places before.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        value, shift = 0, 0
    return None if shift else runs


def _is_number(value: object) -> bool:
    """Whether it is a finite number; True and False are none."""
    if type(value) is int:
        return abs(value) < 2**53
    return type(value) is float and math.isfinite(value)
