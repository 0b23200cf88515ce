"""Cross-entropy for segmentation heads of any stride, and for whole images."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from hatcli.losses import LOSSES
from hatcli.losses.of_labels import LossOfLabels


@LOSSES.register
class CrossEntropy(LossOfLabels):
    """Cross-entropy of the softmax of raw scores, summed over the heads.

    Each head's loss is the mean over its cells, weighted by class as in
    `torch.nn.CrossEntropyLoss`. Without a labelled cell it is 0 with a zero gradient.

    Args:
        ignore_index: label of pixels that carry no loss and don't count in the mean. Of whole
            images none is ignored if this is one of their classes.
        class_weights: one a class; "inverse_sqrt" takes 1 / sqrt(pixels of the class), scaled to
            a mean of 1 over all pixels; None weighs all by 1.
        stride_weights: one a head, finest first; None weighs all by 1. Where the model returns
            a single tensor, that one weighs 1.
        match: how scores and finer labels meet. "nearest" takes the label at each cell's
            centre; "agree" only where the pixels around the centre share one (other cells carry
            no loss, yet count in the mean, as unlabelled ones do then); "upsample" enlarges
            the scores bilinearly to the labels, which costs the most memory.
        label_smoothing: share of the target that is spread evenly over all classes, 0 to 1.
        class_pixels: pixels of each class in the training set; the program passes them.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        class_weights: list[float] | Literal["inverse_sqrt"] | None = None,
        stride_weights: list[float] | None = None,
        match: Literal["nearest", "agree", "upsample"] = "nearest",
        label_smoothing: float = 0.0,
        class_pixels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights, stride_weights, match, class_pixels)
        self.label_smoothing = label_smoothing

    def _cell_losses(self, scores: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        return F.cross_entropy(
            scores,
            targets,
            self.class_weights,
            ignore_index=ignore_index,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
