"""Average precision as the PASCAL VOC challenge defines it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hatcli.errors import ConfigError
from hatcli.metrics import METRICS
from hatcli.metrics._detections import Scored, Truth, class_names, in_turn, read_pairs

Flags = NDArray[np.bool_]


class _Judged(NamedTuple):
    """Detections of one class in one image, best first.

    Attributes:
        objects: of the class that aren't difficult.
        scores: (M,) float64, of the detections that count.
        right: (M,) whether each is.
    """

    label: int
    objects: int
    scores: NDArray[np.float64]
    right: Flags


@METRICS.register
class VocAP:
    """Average precision of each class as in VOC's own evaluation, and its mean.

    Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010. Detections
    of a class are taken in the order of their scores, of equal ones in the order of the images.
    Each is compared with that object of its class and image which it overlaps most: at an overlap
    of ``min_iou`` or more it is right the first time that this object is found and wrong from
    then on. A difficult object counts neither as found nor as missed. The classes of the mean are
    those with an object that isn't difficult.

    Boxes are edges: a box over pixel columns 1 to 3 of VOC's files has left 0 and right 3, which
    gives the areas of VOC's evaluation, where both ends belong to the box.

    Args:
        num_classes: None for as many as the dataset has.
        classes: names in the order of the labels; the program passes those of the dataset.
        year: of the challenge. Up to 2009 AP is the mean of the best precision at eleven recalls,
            0 to 1; from 2010 on the area under it. A recall of 3 of 10 reaches 0.3, which
            programs that compare in binary fractions may miss.
        min_iou: least overlap, above 0 and at most 1.
    """

    best_by = "mAP"

    def __init__(
        self,
        num_classes: int | None = None,
        classes: Sequence[str] | None = None,
        year: int = 2012,
        min_iou: float = 0.5,
    ) -> None:
        self.classes = class_names("VocAP", num_classes, classes)
        if not 2005 <= year <= 2012:
            raise ConfigError(f"metric 'VocAP': no challenge in {year}", "give 2005 to 2012")
        if not 0 < min_iou <= 1:
            raise ConfigError(
                f"metric 'VocAP': min_iou must be above 0 and at most 1, got {min_iou}"
            )
        self.method: Literal["11point", "area"] = "11point" if year < 2010 else "area"
        self.min_iou = min_iou
        self.reset()

    def reset(self) -> None:
        """Forget everything counted so far."""
        self._images: list[list[_Judged]] = []

    def update(
        self, detections: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]
    ) -> None:
        """Compare the detections of a batch with what is there.

        Args:
            detections: of each image {"boxes": (M, 4) left, top, right, bottom in pixels,
                "scores": (M,), "classes": (M,)}.
            targets: of each image {"boxes": (M, 4), "classes": (M,)} and, where objects are
                difficult, "difficult": (M,).

        Raises:
            DataError: shapes, classes or numbers aren't as they have to be.
        """
        for found, truth in read_pairs("VocAP", detections, targets, len(self.classes)):
            labels = np.union1d(found.classes, truth.classes).tolist()
            self._images.append([self._judged(label, found, truth) for label in labels])

    def counted(self) -> list[list[_Judged]]:
        """All that was taken in, for `merge`."""
        return self._images

    def merge(self, parts: Sequence[list[list[_Judged]]]) -> None:
        """Hold what several have `counted`, who took one image each in turn."""
        self._images = list(in_turn(parts))

    def compute(self) -> dict[str, float]:
        """Average precisions in percent.

        Returns:
            "mAP" and "AP.<name>" for each class; nan where there is nothing to find.
        """
        of_class: list[list[_Judged]] = [[] for _ in self.classes]
        for image in self._images:
            for judged in image:
                of_class[judged.label].append(judged)
        values = [self._average_precision(images) for images in of_class]
        known = [value for value in values if not math.isnan(value)]
        mean = sum(known) / len(known) if known else math.nan
        named = {f"AP.{name}": ap for name, ap in zip(self.classes, values, strict=True)}
        return {"mAP": mean, **named}

    def _judged(self, label: int, found: Scored, truth: Truth) -> _Judged:
        of_class = truth.classes == label
        difficult = truth.more.get("difficult", np.zeros(len(of_class)))[of_class].astype(bool)
        mine = found.classes == label
        order = np.argsort(-found.scores[mine], kind="stable")
        scores, boxes = found.scores[mine][order], found.boxes[mine][order]
        counts, right = _judge(boxes, truth.boxes[of_class], difficult, self.min_iou)
        return _Judged(label, int((~difficult).sum()), scores[counts], right[counts])

    def _average_precision(self, images: list[_Judged]) -> float:
        objects = sum(judged.objects for judged in images)
        if not objects:
            return math.nan
        scores = np.concatenate([judged.scores for judged in images])
        right = np.concatenate([judged.right for judged in images])
        right = right[np.argsort(-scores, kind="stable")]
        found = np.cumsum(right)
        best = np.maximum.accumulate((found / np.arange(1, len(found) + 1))[::-1])[::-1]
        if self.method == "area":
            return 100 * float(best[right].sum()) / objects
        # Recall k / 10 is reached where 10 * found >= k * objects: whole numbers, no rounding.
        first = [int(np.searchsorted(10 * found, tenth * objects)) for tenth in range(11)]
        return 100 * sum(float(best[place]) for place in first if place < len(best)) / 11


def _judge(
    boxes: NDArray[np.float64], objects: NDArray[np.float64], difficult: Flags, min_iou: float
) -> tuple[Flags, Flags]:
    """Which detections of an image count, and which of them are right; best score first."""
    counts, right = np.ones(len(boxes), bool), np.zeros(len(boxes), bool)
    if len(objects) == 0:
        return counts, right
    overlaps = overlaps_of(boxes, objects)
    taken = np.zeros(len(objects), bool)
    for place, nearest in enumerate(overlaps.argmax(1)):
        if overlaps[place, nearest] < min_iou:
            continue
        counts[place] = not difficult[nearest]
        right[place] = not taken[nearest] and not difficult[nearest]
        taken[nearest] = True
    return counts, right


def overlaps_of(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) intersection over union of (N, 4) and (M, 4) boxes; 0 where both are empty."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
