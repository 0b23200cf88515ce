"""Focal loss on the softmax: pixels that are right already weigh little."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hatcli.losses import LOSSES
from hatcli.losses.of_labels import LossOfLabels


@LOSSES.register
class SoftmaxFocal(LossOfLabels):
    """The focal loss -alpha (1 - p)^gamma log p of the true class, summed over the heads.

    Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, equation 5, with the
    softmax in place of the sigmoid and one alpha for all classes. Each head's loss is the mean
    over its cells; without a labelled cell it is 0 with a zero gradient.

    Args:
        alpha: factor of the whole loss.
        gamma: how strongly cells that are right already are discounted; 0 gives alpha times
            the cross-entropy.
        ignore_index: label of pixels that carry no loss. Of whole images none is ignored if
            this is one of their classes.
        class_weights: one a class; "inverse_sqrt" takes 1 / sqrt(pixels of the class), scaled to
            a mean of 1 over all pixels; None weighs all by 1.
        stride_weights: one a head, finest first; None weighs all by 1. Where the model returns
            a single tensor, that one weighs 1.
        match: how scores and finer labels meet. "agree" takes a label only where the pixels
            around the cell's centre share one (other cells carry no loss, yet count in the
            mean, as unlabelled ones do then); "nearest" takes the label at the centre;
            "upsample" enlarges the scores bilinearly to the labels. With the latter two,
            unlabelled cells don't count in the mean.
        class_pixels: pixels of each class in the training set; the program passes them.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        ignore_index: int = 255,
        class_weights: list[float] | Literal["inverse_sqrt"] | None = None,
        stride_weights: list[float] | None = None,
        match: Literal["nearest", "agree", "upsample"] = "agree",
        class_pixels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights, stride_weights, match, class_pixels)
        self.alpha = alpha
        self.gamma = gamma

    def _cell_losses(self, scores: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        surprise = F.cross_entropy(
            scores, targets, ignore_index=ignore_index, reduction="none"
        )  # -log p, 0 where ignored
        # expm1 keeps 1 - p exact near p = 1; the bound keeps its power differentiable at 0.
        missing = (-torch.expm1(-surprise)).clamp_min(torch.finfo(torch.float32).tiny)
        losses = self.alpha * missing**self.gamma * surprise
        if self.class_weights is not None:
            labelled = targets != ignore_index
            losses = losses * self.class_weights[targets.where(labelled, 0)]
        return losses
