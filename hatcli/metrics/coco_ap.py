"""Average precision and recall as COCO defines them."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hatcli.errors import ConfigError, DataError
from hatcli.metrics import METRICS
from hatcli.metrics._detections import Scored, Truth, class_names, in_turn, read_pairs

LIBRARY = "faster_coco_eval"
INSTALL = "pip install 'hatcli[det]'"

NAMES = (
    "mAP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""Of the twelve numbers, in COCO's order."""


@METRICS.register
class CocoAP:
    """The twelve numbers of COCO's detection challenge.

    They are computed by faster-coco-eval, whose numbers are those of pycocotools: AP at overlaps
    of 0.50 to 0.95, at 100 detections an image; "small" is below 32 x 32 square pixels, "large"
    above 96 x 96. The size of an object is its area in the target ("areas": in COCO that of its
    outline), or that of its box where there is none.

    COCO's images have ids, and detections of equal scores are taken in their order; targets
    without an id are numbered as they come.

    Args:
        num_classes: None for as many as the dataset has.
        classes: names in the order of the labels; the program passes those of the dataset.
    """

    best_by = "mAP"

    def __init__(
        self, num_classes: int | None = None, classes: Sequence[str] | None = None
    ) -> None:
        if importlib.util.find_spec(LIBRARY) is None:
            raise ConfigError("metric 'CocoAP' needs faster-coco-eval", INSTALL)
        self.classes = class_names("CocoAP", num_classes, classes)
        self.reset()

    def reset(self) -> None:
        """Forget everything counted so far."""
        self._images: dict[int, tuple[Scored, Truth]] = {}

    def update(
        self, detections: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the detections of a batch and what is there, for `compute`.

        Args:
            detections: of each image {"boxes": (M, 4) left, top, right, bottom in pixels,
                "scores": (M,), "classes": (M,)}.
            targets: of each image {"boxes": (M, 4), "classes": (M,)} and where it is known
                "crowd": (M,), "areas": (M,) square pixels and "image_id".

        Raises:
            DataError: shapes, classes or numbers aren't as they have to be, or an image comes
                twice.
        """
        for found, truth in read_pairs("CocoAP", detections, targets, len(self.classes)):
            self._add(found, truth)

    def compute(self) -> dict[str, float]:
        """The twelve numbers and the AP of each class, in percent.

        Returns:
            "mAP", "AP50", "AP75", "AP_small", ... "AR1", "AR10", "AR100", "AR_small", ... and
            "AP.<name>"; nan where there is nothing to find.
        """
        numbers, of_classes = self._evaluate()
        values = dict(zip(NAMES, numbers, strict=True))
        values |= {f"AP.{name}": ap for name, ap in zip(self.classes, of_classes, strict=True)}
        return {name: 100 * value if value >= 0 else math.nan for name, value in values.items()}

    def counted(self) -> list[tuple[Scored, Truth]]:
        """All that was taken in, for `merge`."""
        return list(self._images.values())

    def merge(self, parts: Sequence[Sequence[tuple[Scored, Truth]]]) -> None:
        """Hold what several have `counted`, who took one image each in turn.

        Raises:
            DataError: an image comes twice.
        """
        self.reset()
        for found, truth in in_turn(parts):
            self._add(found, truth)

    def _add(self, found: Scored, truth: Truth) -> None:
        number = len(self._images) + 1 if truth.image_id is None else truth.image_id
        if number in self._images:
            raise DataError(f"metric 'CocoAP': image {number} comes twice")
        self._images[number] = found, truth

    def _evaluate(self) -> tuple[list[float], list[float]]:
        """Shares of 1, and -1 where there is nothing to find."""
        truths = self._truths()
        if not truths["annotations"]:
            return [-1.0] * len(NAMES), [-1.0] * len(self.classes)
        from faster_coco_eval import COCO, COCOeval_faster  # noqa: PLC0415 - an extra

        objects = COCO(truths)
        found = COCO({**truths, "annotations": self._found()})
        evaluation = COCOeval_faster(objects, found, iouType="bbox", extra_calc=False)
        evaluation.run()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # overlaps, recalls, classes
        of_classes = [_mean(precision[:, :, index]) for index in range(len(self.classes))]
        return [float(value) for value in evaluation.stats[: len(NAMES)]], of_classes

    def _truths(self) -> dict[str, Any]:
        """What COCO's annotation file would hold."""
        annotations: list[dict[str, Any]] = []
        for number, (_, truth) in self._images.items():
            sides = _as_sides(truth.boxes)
            areas = truth.more.get("areas", sides[:, 2] * sides[:, 3])
            crowd = truth.more.get("crowd", np.zeros(len(sides), int))
            for box, area, is_crowd, label in zip(
                sides.tolist(), areas.tolist(), crowd.tolist(), truth.classes.tolist(), strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": label + 1,
                        "bbox": box,
                        "area": area,
                        "iscrowd": int(is_crowd),
                    }
                )
        return {
            "images": [{"id": number} for number in self._images],
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.classes, 1)],
            "annotations": annotations,
        }

    def _found(self) -> list[dict[str, Any]]:
        """What COCO's result file would hold, with what its reader adds."""
        results: list[dict[str, Any]] = []
        for number, (found, _) in self._images.items():
            sides = _as_sides(found.boxes)
            for box, score, label in zip(
                sides.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
            ):
                results.append(
                    {
                        "id": len(results) + 1,
                        "image_id": number,
                        "category_id": label + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                        "score": score,
                    }
                )
        return results


def _as_sides(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Left, top, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def _mean(precisions: NDArray[np.float64]) -> float:
    """Of what is known; -1 for nothing."""
    known = precisions[precisions > -1]
    return float(known.mean()) if known.size else -1.0
