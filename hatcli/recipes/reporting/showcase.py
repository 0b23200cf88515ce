"""Picks the best and the worst pictures out of an evaluation, and keeps a few of each."""

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hatcli.metrics.mean_iou import predictions
from hatcli.report.gallery import Shown, shrunk, shrunk_map

TASKS = ("segmentation", "classification")

_FIRST = 3  # classes named below a classified image
_CONFUSED = 0.05  # share of a class's pixels from which a confusion is named


class Showcase:
    """Looks at each sample of an evaluation; is called as `evaluate` calls ``on_scores``.

    A segmentation is judged by the mean IoU of the picture, over the classes that are labelled or
    predicted in it; a classification by the probability that the model gives to the label.

    Args:
        task: of `TASKS`.
        classes: their names.
        count: of best pictures, and of worst ones, to keep.
        ignore_index: label of pixels that don't count.
        upsample: how scores meet the labels; that of the metric.

    Attributes:
        by: what is judged, in words.
        seen: samples so far.
    """

    def __init__(
        self,
        task: str,
        classes: Sequence[str],
        count: int,
        *,
        ignore_index: int = 255,
        upsample: Literal["nearest", "bilinear"] = "nearest",
    ) -> None:
        self.by = "mIoU of the picture" if task == TASKS[0] else "probability of the label"
        self.seen = 0
        self._is_map, self._classes, self._count = task == TASKS[0], classes, count
        self._ignore, self._upsample = ignore_index, upsample
        # A heap's first is the one that leaves it next; the number settles equal scores.
        self._best: list[tuple[float, int, Shown]] = []
        self._worst: list[tuple[float, int, Shown]] = []

    @property
    def best(self) -> list[Shown]:
        """The best first."""
        return [shown for *_, shown in sorted(self._best, key=lambda one: one[:2], reverse=True)]

    @property
    def worst(self) -> list[Shown]:
        """The worst first, without those that are among the best of a small set."""
        best = {number for _, number, _ in self._best}
        ordered = sorted(self._worst, key=lambda one: one[:2], reverse=True)
        return [shown for _, number, shown in ordered if number not in best]

    def __call__(self, images: Tensor, scores: Any, targets: Tensor, names: list[str]) -> None:
        """Judge the samples of a batch.

        Args:
            images: (N, 3, H, W) uint8.
            scores: raw scores, or a tuple of them, finest first; or what has an argmax inside.
            targets: (N, H, W) label maps or (N,) labels.
        """
        finest = scores if isinstance(scores, Tensor) else scores[0]
        if self._is_map:
            size = (targets.shape[1], targets.shape[2])
            maps = predictions(finest, size, self._upsample).cpu().numpy()
            labels = targets.cpu().numpy().astype(np.uint8)
            for image, predicted, label, name in zip(images, maps, labels, names, strict=True):
                self._judge_map(image, predicted, label, name)
            return
        shares = finest.float().softmax(1).cpu()
        for image, share, label, name in zip(images, shares, targets.tolist(), names, strict=True):
            self._judge_class(image, share, label, name)

    def _judge_map(
        self, image: Tensor, predicted: NDArray[np.uint8], label: NDArray[np.uint8], name: str
    ) -> None:
        classes = len(self._classes)
        counted = (label != self._ignore) & (label < classes)
        if not counted.any():
            return
        codes = label[counted].astype(np.intp) * (classes + 1)
        codes += np.minimum(predicted[counted], classes)
        pairs = np.bincount(codes, minlength=classes * (classes + 1)).reshape(classes, classes + 1)
        hits = pairs[:, :classes].diagonal()
        union = pairs.sum(1) + pairs[:, :classes].sum(0) - hits
        score = 100 * float(np.mean(hits[union > 0] / union[union > 0]))

        def show() -> Shown:
            height, width = _without_padding(label, self._ignore)
            shown = label[:height, :width].copy()
            shown[~counted[:height, :width]] = 255
            lines = [
                f"mIoU {score:.1f} %, {100 * hits.sum() / pairs.sum():.1f} % of the pixels right"
            ]
            return Shown(
                shrunk(_as_picture(image)[:height, :width]),
                name,
                [*lines, *self._confused(pairs)],
                shrunk_map(shown),
                shrunk_map(np.ascontiguousarray(predicted[:height, :width])),
            )

        self._offer(score, show)

    def _confused(self, pairs: NDArray[np.intp]) -> list[str]:
        """The confusion that takes the most pixels, if it is worth naming."""
        wrong = pairs[:, : len(self._classes)].copy()
        np.fill_diagonal(wrong, 0)
        label, other = divmod(int(wrong.argmax()), wrong.shape[1])
        share = wrong[label, other] / max(int(pairs[label].sum()), 1)
        if share < _CONFUSED:
            return []
        names = self._classes
        return [f"most wrong: {100 * share:.0f} % of {names[label]} taken for {names[other]}"]

    def _judge_class(self, image: Tensor, shares: Tensor, label: int, name: str) -> None:
        score = float(shares[label]) if not shares.isnan().any() else -1.0

        def show() -> Shown:
            values, order = shares.topk(min(_FIRST, len(shares)))
            found = [
                f"{self._classes[index]} {100 * value:.1f} %"
                for value, index in zip(values.tolist(), order.tolist(), strict=True)
            ]
            word = "right" if order[0] == label else "wrong"
            lines = [f"{self._classes[label]}: {word}", f"predicted: {', '.join(found)}"]
            return Shown(shrunk(_as_picture(image)), name, lines)

        self._offer(score, show)

    def _offer(self, score: float, show: Callable[[], Shown]) -> None:
        """Keep a sample that is among the best or the worst; only then it is drawn."""
        number = self.seen
        self.seen += 1
        places = ((self._best, (score, -number)), (self._worst, (-score, -number)))
        entering = [
            (heap, key) for heap, key in places if len(heap) < self._count or key > heap[0][:2]
        ]
        if not entering or self._count < 1:
            return
        shown = show()
        for heap, key in entering:
            if len(heap) < self._count:
                heapq.heappush(heap, (*key, shown))
            else:
                heapq.heapreplace(heap, (*key, shown))


def _as_picture(image: Tensor) -> NDArray[np.uint8]:
    return image.to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()


def _without_padding(label: NDArray[np.uint8], ignore: int) -> tuple[int, int]:
    """Height and width of what is left without the rows and columns at the end that don't count.

    Validation pads right and below; the padding has no label.
    """
    rows, columns = (
        np.flatnonzero((label != ignore).any(1)),
        np.flatnonzero((label != ignore).any(0)),
    )
    return int(rows[-1]) + 1, int(columns[-1]) + 1
