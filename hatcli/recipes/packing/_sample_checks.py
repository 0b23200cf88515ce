"""Whether decoded samples are what the metadata of their pack says: labels, boxes, images, sums."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hatcli.data.packers._headers import glance
from hatcli.data.packers._images import load_pixels, open_image
from hatcli.errors import DataError


class SampleChecks:
    """Takes the samples of one pack, one after the other.

    Args:
        meta: of the pack.
        decode_images: whether each encoded image is decoded.
    """

    def __init__(self, meta: Mapping[str, Any], *, decode_images: bool) -> None:
        self._meta = meta
        self._decode_images = decode_images
        self._num_classes = meta.get("num_classes")
        # Pixels of each label value of maps, samples of each class of single labels.
        self._seen = np.zeros(256, dtype=np.int64)
        self._labels: dict[int, int] = {}

    def add(self, sample: Mapping[str, Any]) -> None:
        """Look at one sample.

        Raises:
            DataError: something in it isn't legal.
        """
        label = sample.get("label")
        if isinstance(label, np.ndarray):
            self._check_map(label, sample)
        elif isinstance(label, int):
            self._check_class(label)
        if "boxes" in sample:
            self._check_boxes(sample)
        if "image" in sample:
            self._check_image(sample)

    def find_wrong_sums(self) -> list[str]:
        """Where the sums over all samples aren't those of the metadata."""
        findings = []
        if "class_pixels" in self._meta and self._num_classes is not None:
            counted = self._seen[: self._num_classes].tolist()
            if counted != self._meta["class_pixels"]:
                findings.append("the pixels of each class aren't those of the metadata")
        if "class_images" in self._meta and self._labels:
            counted = [self._labels.get(place, 0) for place in range(self._num_classes or 0)]
            if counted != self._meta["class_images"]:
                findings.append("the images of each class aren't those of the metadata")
        return findings

    def _check_map(self, label: np.ndarray, sample: Mapping[str, Any]) -> None:
        if "height" in sample and label.shape != (sample["height"], sample["width"]):
            raise DataError(
                f"label map of shape {label.shape}, image {sample['height']}x{sample['width']}"
            )
        if label.dtype != np.uint8 or self._num_classes is None:
            return
        counts = np.bincount(label.ravel(), minlength=256)
        ignored = self._meta.get("ignore_index")
        illegal = [
            value
            for value in np.flatnonzero(counts[self._num_classes :]) + self._num_classes
            if value != ignored
        ]
        if illegal:
            raise DataError(f"label values outside 0..{self._num_classes - 1}: {_few(illegal)}")
        self._seen += counts

    def _check_class(self, label: int) -> None:
        if self._num_classes is not None and not 0 <= label < self._num_classes:
            raise DataError(f"label {label} is outside 0..{self._num_classes - 1}")
        self._labels[label] = self._labels.get(label, 0) + 1

    def _check_boxes(self, sample: Mapping[str, Any]) -> None:
        boxes, classes = sample["boxes"], sample.get("classes")
        if not isinstance(boxes, np.ndarray) or boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(f"boxes of shape {getattr(boxes, 'shape', None)}, not (N, 4)")
        if not np.isfinite(boxes).all():
            raise DataError("a box isn't finite")
        if isinstance(classes, np.ndarray):
            if len(classes) != len(boxes):
                raise DataError(f"{len(boxes)} boxes and {len(classes)} classes")
            top = self._num_classes
            illegal = classes[(classes < 0) | (classes >= (top if top is not None else np.inf))]
            if illegal.size:
                raise DataError(f"classes outside 0..{(top or 0) - 1}: {_few(illegal)}")

    def _check_image(self, sample: Mapping[str, Any]) -> None:
        image, size = sample["image"], (sample.get("height"), sample.get("width"))
        if isinstance(image, np.ndarray):
            if None not in size and image.shape[:2] != size:
                raise DataError(f"image of shape {image.shape}, said to be {size[0]}x{size[1]}")
            return
        head = glance(image)
        if head is not None and None not in size and (head.height, head.width) != size:
            found = f"{head.height}x{head.width}"
            raise DataError(f"image of {found}, said to be {size[0]}x{size[1]}")
        if head is not None and head.format != sample.get("image_format", head.format):
            raise DataError(f"image is {head.format}, said to be {sample['image_format']}")
        if self._decode_images:
            load_pixels(open_image(image, "image", None), "image")


def _few(values: Any) -> str:
    """The first of some numbers."""
    found = sorted({int(value) for value in values})
    return ", ".join(map(str, found[:8])) + (" ..." if len(found) > 8 else "")
