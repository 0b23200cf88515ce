"""Mean intersection over union, counted as the official Cityscapes scripts count it."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hatcli.errors import ConfigError, DataError
from hatcli.metrics import METRICS

MAX_CLASSES = 255  # index maps are uint8 and one value stays free for "no class"


@METRICS.register
class MeanIoU:
    """IoU of each class over all labelled pixels of a dataset, and means of it.

    A prediction outside the classes on a labelled pixel is a miss of that pixel's class.
    Attribute `confusion` holds all that was counted: (C, C + 1) int64 pixels, row = label,
    column = prediction, the last column for predictions outside the classes.

    Args:
        num_classes: at most 255.
        classes: names in the order of the labels; the program passes those of the dataset.
            None names them by their numbers.
        ignore_index: label of pixels that don't count, 0 to 255.
        upsample: how scores of lower resolution meet the labels: "nearest" takes the best class
            at the scores' resolution and repeats it; "bilinear" enlarges the scores first.
    """

    best_by = "mIoU"

    def __init__(
        self,
        num_classes: int,
        classes: Sequence[str] | None = None,
        ignore_index: int = 255,
        upsample: Literal["nearest", "bilinear"] = "nearest",
    ) -> None:
        names = tuple(map(str, range(num_classes))) if classes is None else tuple(classes)
        if not 1 <= num_classes <= MAX_CLASSES or not 0 <= ignore_index <= 255:
            raise ConfigError(
                f"metric 'MeanIoU': num_classes={num_classes}, ignore_index={ignore_index}",
                f"labels are 8 bit: at most {MAX_CLASSES} classes, ignore_index 0 to 255",
            )
        if len(names) != num_classes:
            raise ConfigError(
                f"metric 'MeanIoU': num_classes is {num_classes}, "
                f"the dataset has {len(names)} classes"
            )
        self.num_classes = num_classes
        self.classes = names
        self.ignore_index = ignore_index
        self.upsample = upsample
        self.reset()

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.confusion = torch.zeros(self.num_classes, self.num_classes + 1, dtype=torch.int64)

    def update(self, scores: Tensor | tuple[Tensor, ...], targets: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            scores: as for `predictions`, with ``num_classes`` channels where they are scores;
                of several heads the finest, which comes first, is counted.
            targets: (N, H, W) labels of any integer type, 0 to 255.

        Raises:
            DataError: a label is neither a class nor ``ignore_index``, or the number of
                channels isn't the number of classes.
        """
        finest = scores if isinstance(scores, Tensor) else scores[0]
        if not _is_index_map(finest) and finest.shape[1] != self.num_classes:
            raise DataError(
                f"metric 'MeanIoU': scores of {finest.shape[1]} channels for "
                f"{self.num_classes} classes"
            )
        size = (targets.shape[1], targets.shape[2])
        predicted = predictions(finest, size, self.upsample)
        self.confusion += self._confusion_of(predicted, targets)

    def compute(self) -> dict[str, float]:
        """Scores in percent.

        Returns:
            "mIoU", the mean over the classes that were labelled or predicted anywhere;
            "mIoU_present" and "mAcc", the means of IoU and recall over the classes that were
            labelled anywhere; "aAcc", the share of pixels that are right; and "IoU.<name>" for
            each class. What would be a mean of nothing is nan.
        """
        confusion = self.confusion.double()
        hits = confusion.diagonal()  # the last column is no class and not on the diagonal
        labelled = confusion.sum(1)
        predicted = confusion[:, : self.num_classes].sum(0)
        iou = 100 * hits / (labelled + predicted - hits)  # 0 / 0 is nan
        recall = 100 * hits / labelled
        present = labelled > 0
        scores = {
            "mIoU": iou.nanmean(),
            "mIoU_present": iou[present].mean(),
            "mAcc": recall[present].mean(),
            "aAcc": 100 * hits.sum() / labelled.sum(),
        }
        scores |= {f"IoU.{name}": value for name, value in zip(self.classes, iou, strict=True)}
        return {name: float(value) for name, value in scores.items()}

    def counted(self) -> Tensor:
        """All that was taken in, for `merge`."""
        return self.confusion

    def merge(self, parts: Sequence[Tensor]) -> None:
        """Hold what several have `counted` in place of what was counted here."""
        self.confusion = torch.stack([*parts]).sum(0)

    def _confusion_of(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """(C, C + 1) int64 on the CPU, of uint8 predictions and labels of one shape."""
        # One code for each of the 65536 pairs: no mask, no copy of the labelled pixels.
        codes = _as_labels(targets).to(torch.int32)
        codes <<= 8
        codes |= predicted
        pairs = torch.bincount(codes.flatten(), minlength=256 * 256).view(256, 256).cpu()
        illegal = pairs[self.num_classes :].sum(1)
        if self.ignore_index >= self.num_classes:
            illegal[self.ignore_index - self.num_classes] = 0
        if illegal.any():
            values = (illegal.nonzero().flatten() + self.num_classes).tolist()
            raise DataError(
                f"metric 'MeanIoU': {int(illegal.sum())} pixels have labels that are neither one "
                f"of {self.num_classes} classes nor {self.ignore_index}: {values}"
            )
        counted = pairs[: self.num_classes].clone()
        if self.ignore_index < self.num_classes:
            counted[self.ignore_index] = 0
        outside = counted[:, self.num_classes :].sum(1, keepdim=True)
        return torch.cat([counted[:, : self.num_classes], outside], dim=1)


def predictions(
    scores: Tensor, size: tuple[int, int], upsample: Literal["nearest", "bilinear"] = "nearest"
) -> Tensor:
    """The best class of each pixel; of equals the lowest.

    Args:
        scores: (N, C, h, w) raw scores of at most 256 classes; or what a model with its own
            argmax returns, an integer index map (N, h, w) or (N, 1, h, w).
        size: height and width (H, W) wanted.
        upsample: "nearest" or "bilinear", as in `MeanIoU`; index maps are always repeated.

    Returns:
        (N, H, W) uint8; 255 where an index map holds a value outside 0 to 255.
    """
    if _is_index_map(scores):
        maps = scores[:, 0] if scores.ndim == 4 else scores
        if maps.dtype != torch.uint8:
            maps = maps.masked_fill((maps < 0) | (maps > 255), 255).to(torch.uint8)
        return _repeat(maps, size)
    if upsample == "bilinear" and scores.shape[2:] != size:
        return _argmax_of_enlarged(scores, size)
    # The argmax over the last dimension of a channels-last map is several times faster.
    last = scores.permute(0, 2, 3, 1).contiguous()
    return _repeat(last.argmax(-1).to(torch.uint8), size)


def _argmax_of_enlarged(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Argmax of the bilinearly enlarged scores, one class at a time: needs 3 maps, not C."""
    scores = scores.float()
    best = _enlarge(scores[:, :1], size)
    index = torch.zeros_like(best, dtype=torch.uint8)
    for number in range(1, scores.shape[1]):
        enlarged = _enlarge(scores[:, number : number + 1], size)
        index.masked_fill_(enlarged > best, number)
        torch.maximum(best, enlarged, out=best)
    return index[:, 0]


def _enlarge(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores.contiguous(), size, mode="bilinear", align_corners=False)


def _repeat(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest neighbour: pixel i of n takes cell floor(i * cells / n)."""
    for dim in (2, 1):  # columns first: rows are then copied whole, from a smaller map
        length, cells = size[dim - 1], maps.shape[dim]
        if cells != length:
            source = torch.arange(length, device=maps.device) * cells // length
            maps = maps.index_select(dim, source)
    return maps


def _is_index_map(scores: Tensor) -> bool:
    is_integer = not scores.is_floating_point()
    return is_integer and (scores.ndim == 3 or (scores.ndim == 4 and scores.shape[1] == 1))


def _as_labels(targets: Tensor) -> Tensor:
    """Labels as uint8.

    Raises:
        DataError: a label is outside 0 to 255.
    """
    if targets.dtype == torch.uint8:
        return targets
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) <= 255:
        raise DataError(
            f"metric 'MeanIoU': labels from {int(targets.min())} to {int(targets.max())}; "
            "they must be 0 to 255"
        )
    return targets.to(torch.uint8)
