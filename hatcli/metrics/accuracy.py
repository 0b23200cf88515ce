"""Share of images whose class is among the best scores."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from hatcli.errors import ConfigError, DataError
from hatcli.metrics import METRICS

MOST_CONFUSED = 2000
"""More classes than this are not counted by pairs: that would be 32 MB and more."""


@METRICS.register
class Accuracy:
    """Top-k accuracy of a classifier over a dataset, and accuracy by class.

    Of equal scores the lower class comes first, as an argmax has it (`torch.topk` leaves it
    open), so that a model scores the same with an argmax inside and on every device. An image
    with a NaN among its scores is wrong. A model that gives class indices tells nothing beyond
    its first choice: top1 is counted, the others are nan.

    Attribute `counts` holds int64 images: right for each k, all, and those with scores;
    `class_counts`, (C, 2) int64, for each class right and all; `confusion`, (C, C + 1) int64, row
    = label, column = first choice, the last column for images with a NaN: as in `MeanIoU`, but
    empty where the number of classes isn't known or above `MOST_CONFUSED`.

    Args:
        topk: numbers of best scores that the true class may be among.
        num_classes: None takes that of the dataset's names, or else of the first scores.
        classes: names in the order of the labels; the program passes those of the dataset.
        per_class: whether `compute` tells the top-1 accuracy of each class, too.
    """

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        num_classes: int | None = None,
        classes: Sequence[str] | None = None,
        per_class: bool = False,
    ) -> None:
        if not topk or min(topk) < 1:
            raise ConfigError(f"metric 'Accuracy': topk must be numbers above 0, got {topk}")
        if num_classes is not None and num_classes < 1:
            raise ConfigError(
                f"metric 'Accuracy': num_classes must be at least 1, got {num_classes}"
            )
        if num_classes is not None and classes is not None and len(classes) != num_classes:
            raise ConfigError(
                f"metric 'Accuracy': num_classes is {num_classes}, "
                f"the dataset has {len(classes)} classes"
            )
        if classes is not None:
            num_classes = len(classes)
        if per_class and num_classes is None:
            raise ConfigError(
                "metric 'Accuracy': per_class needs the number of classes",
                "set metric.num_classes",
            )
        self.topk = sorted(set(topk))
        self.best_by = f"top{self.topk[0]}"
        self.num_classes = num_classes
        self.per_class = per_class
        self.names = _distinct(classes or [str(label) for label in range(num_classes or 0)])
        if num_classes is not None:
            self._require_topk(num_classes)
        self.reset()

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.counts = torch.zeros(len(self.topk) + 2, dtype=torch.int64)
        self.class_counts = torch.zeros(len(self.names), 2, dtype=torch.int64)
        self.confusion = torch.zeros(0, 1, dtype=torch.int64)

    def update(self, scores: Tensor | tuple[Tensor, ...], targets: Tensor) -> None:
        """Count the images of a batch.

        Args:
            scores: (N, C) scores of any type, or class indices (N,) or (N, 1) of an integer
                type; of several heads the first is counted.
            targets: (N,) labels of any integer type, 0 to C - 1.

        Raises:
            DataError: the shapes don't fit each other, or a label is no class.
            ConfigError: one of ``topk`` is larger than the number of classes.
        """
        first = scores if isinstance(scores, Tensor) else scores[0]
        has_scores = not _is_index(first)
        if (has_scores and first.ndim != 2) or targets.shape != first.shape[:1]:
            raise DataError(
                f"metric 'Accuracy': scores {tuple(first.shape)} and labels "
                f"{tuple(targets.shape)}; it takes (N, C) scores or (N,) indices, and (N,) labels"
            )
        if len(targets) == 0:
            return
        classes = self._classes_of(first) if has_scores else self.num_classes
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or (classes is not None and high >= classes):
            raise DataError(
                f"metric 'Accuracy': labels from {low} to {high}; they must be "
                f"0 to {'the last class' if classes is None else classes - 1}"
            )
        places = places_of(first, targets) if has_scores else _places_by_index(first, targets)
        right = torch.stack([(places < k).sum() for k in self.topk]).tolist()
        images = len(targets)
        self.counts += torch.tensor([*right, images, images if has_scores else 0])
        if self.per_class:
            self._count_classes(targets, places)
        if classes is not None and classes <= MOST_CONFUSED:
            self._count_pairs(first, targets, places, classes)

    def compute(self) -> dict[str, float]:
        """Accuracies in percent.

        Returns:
            "top<k>" for each k, and "acc.<name>" for each class if asked for. What no image
            tells is nan.
        """
        *right, images, scored = self.counts.tolist()
        values = {
            f"top{k}": _percent(count, images if k == 1 or scored == images else 0)
            for k, count in zip(self.topk, right, strict=True)
        }
        if self.per_class:
            for name, counts in zip(self.names, self.class_counts.tolist(), strict=True):
                values[f"acc.{name}"] = _percent(*counts)
        return values

    def counted(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that was taken in, for `merge`."""
        return self.counts, self.class_counts, self.confusion

    def merge(self, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Hold what several have `counted` in place of what was counted here."""
        counts, class_counts, pairs = zip(*parts, strict=True)
        self.counts, self.class_counts = (
            torch.stack(counts).sum(0),
            torch.stack(class_counts).sum(0),
        )
        seen = [part for part in pairs if len(part)] or [self.confusion]
        self.confusion = torch.stack(seen).sum(0)

    def _classes_of(self, scores: Tensor) -> int:
        """How many classes a model scores."""
        classes = scores.shape[1]
        if self.num_classes is None:
            self._require_topk(classes)
            self.num_classes = classes
        if classes != self.num_classes:
            raise DataError(
                f"metric 'Accuracy': scores of {classes} classes for {self.num_classes} classes"
            )
        return classes

    def _require_topk(self, classes: int) -> None:
        if self.topk[-1] > classes:
            raise ConfigError(
                f"metric 'Accuracy': top{self.topk[-1]} of {classes} classes",
                f"set metric.topk={[k for k in self.topk if k <= classes] or [1]}",
            )

    def _count_classes(self, targets: Tensor, places: Tensor) -> None:
        labels, size = targets.long(), len(self.names)
        right = torch.bincount(labels[places == 0], minlength=size)
        self.class_counts += torch.stack([right, torch.bincount(labels, minlength=size)], 1).cpu()

    def _count_pairs(self, first: Tensor, targets: Tensor, places: Tensor, classes: int) -> None:
        if len(self.confusion) == 0:
            self.confusion = torch.zeros(classes, classes + 1, dtype=torch.int64)
        chosen = first.view(-1).long() if _is_index(first) else first.argmax(1)
        chosen = torch.where(places == 0, targets, chosen)  # of equal scores the lower class
        chosen = chosen.masked_fill((chosen < 0) | (chosen >= classes), classes)
        if not _is_index(first):
            chosen = chosen.masked_fill(places == classes, classes)
        pairs = (targets.long() * (classes + 1) + chosen).cpu()
        self.confusion.view(-1).index_add_(0, pairs, torch.ones_like(pairs))


def places_of(scores: Tensor, targets: Tensor) -> Tensor:
    """How many classes come before the true one: 0 where it is the first choice.

    Args:
        scores: (N, C) of any type.
        targets: (N,) labels of any integer type, 0 to C - 1.

    Returns:
        (N,) int64, 0 to C - 1; C where one of the scores is NaN.
    """
    own_class = targets.long()[:, None]
    own = scores.gather(1, own_class)  # (N, 1)
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (classes < own_class))
    return before.sum(1).masked_fill(scores.isnan().any(1), scores.shape[1])


def _places_by_index(indices: Tensor, targets: Tensor) -> Tensor:
    """0 where the index is right, and beyond any k where it isn't."""
    return (indices.view(-1) != targets) * torch.iinfo(torch.int64).max


def _is_index(scores: Tensor) -> bool:
    is_one_each = scores.ndim == 1 or (scores.ndim == 2 and scores.shape[1] == 1)
    return is_one_each and not scores.is_floating_point()


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which each occurs once: two of ImageNet's classes are called crane."""
    seen = Counter(names)
    return [f"{name}#{label}" if seen[name] > 1 else name for label, name in enumerate(names)]


def _percent(right: int, images: int) -> float:
    return 100 * right / images if images else math.nan
