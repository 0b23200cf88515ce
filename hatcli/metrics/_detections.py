"""Detections and what they are compared with, checked and as arrays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hatcli.errors import ConfigError, DataError

T = TypeVar("T")

PER_BOX = ("crowd", "difficult", "areas")


class Scored(NamedTuple):
    """What was found in an image.

    Attributes:
        boxes: (M, 4) float64 left, top, right, bottom.
        scores: (M,) float64.
        classes: (M,) int64.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]


class Truth(NamedTuple):
    """What is in an image.

    Attributes:
        boxes: (M, 4) float64 left, top, right, bottom.
        classes: (M,) int64.
        more: what else is known of each box, by name: (M,) arrays.
        image_id: of the image; None where it isn't known.
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    more: dict[str, NDArray[Any]]
    image_id: int | None


def class_names(metric: str, num_classes: int | None, classes: Sequence[str] | None) -> list[str]:
    """The names of the classes, by number where the dataset has none.

    Raises:
        ConfigError: neither is known, or they contradict each other.
    """
    if classes is None and num_classes is None:
        raise ConfigError(
            f"metric {metric!r}: how many classes?", "set metric.num_classes to their number"
        )
    names = [str(index) for index in range(num_classes or 0)] if classes is None else [*classes]
    if num_classes not in (None, len(names)) or not names:
        raise ConfigError(
            f"metric {metric!r}: num_classes is {num_classes}, the dataset has {len(names)} classes"
        )
    return names


def read_pairs(
    metric: str,
    detections: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    num_classes: int,
) -> list[tuple[Scored, Truth]]:
    """The detections and targets of a batch, image by image.

    Raises:
        DataError: shapes, classes or numbers aren't as they have to be.
    """
    if len(detections) != len(targets):
        raise DataError(
            f"metric {metric!r}: detections of {len(detections)} images for {len(targets)} images"
        )
    pairs = []
    for found, true in zip(detections, targets, strict=True):
        boxes, classes = _boxes_and_classes(metric, "detection", found, num_classes)
        scores = _array(found, "scores", metric, "detection").astype(np.float64)
        _require_length(metric, "detection", "scores", scores, len(boxes))
        if not np.isfinite(scores).all():
            raise DataError(f"metric {metric!r}: a score is NaN or infinite")
        truth = _boxes_and_classes(metric, "target", true, num_classes)
        more = {}
        for name in PER_BOX:
            if name in true:
                more[name] = _array(true, name, metric, "target")
                _require_length(metric, "target", name, more[name], len(truth[0]))
        image_id = None if true.get("image_id") is None else int(true["image_id"])
        pairs.append((Scored(boxes, scores, classes), Truth(*truth, more, image_id)))
    return pairs


def in_turn(parts: Sequence[Sequence[T]]) -> Iterator[T]:
    """What several have of a dataset that they took one image each of in turn, in its order."""
    for place in range(max(map(len, parts), default=0)):
        yield from (part[place] for part in parts if place < len(part))


def _boxes_and_classes(
    metric: str, kind: str, entry: Mapping[str, Any], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    boxes = _array(entry, "boxes", metric, kind).astype(np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"metric {metric!r}: {kind} boxes of shape {boxes.shape}, not (M, 4)")
    if not np.isfinite(boxes).all():
        raise DataError(f"metric {metric!r}: a {kind} box is NaN or infinite")
    classes = _array(entry, "classes", metric, kind)
    _require_length(metric, kind, "classes", classes, len(boxes))
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        raise DataError(
            f"metric {metric!r}: {kind} classes from {classes.min()} to {classes.max()}; "
            f"they must be 0 to {num_classes - 1}"
        )
    return boxes, classes.astype(np.int64)


def _array(entry: Mapping[str, Any], name: str, metric: str, kind: str) -> NDArray[Any]:
    if name not in entry:
        raise DataError(f"metric {metric!r}: a {kind} has no {name!r}; it has {sorted(entry)}")
    value = entry[name]
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _require_length(metric: str, kind: str, name: str, values: NDArray[Any], length: int) -> None:
    if values.shape != (length,):
        raise DataError(
            f"metric {metric!r}: {kind} {name} of shape {values.shape} for {length} boxes"
        )
