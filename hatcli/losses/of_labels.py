"""What losses of scores and labels share: heads, class weights, and the mean over cells."""

from collections.abc import Sequence

from torch import Tensor, nn

from hatcli.losses.multi_stride import (
    bring_together,
    label_to_ignore,
    mean_over_cells,
    require_class_weights,
    sum_over_heads,
    weights_of_classes,
)


class LossOfLabels(nn.Module):
    """The mean over cells of what a subclass gives for each, summed over the heads.

    Args:
        ignore_index: label of pixels that carry no loss.
        class_weights: as in `weights_of_classes`.
        stride_weights: as in `sum_over_heads`.
        match: as in `bring_together`; with "agree", unlabelled cells count in the mean.
        class_pixels: pixels of each class in the training set.
    """

    def __init__(
        self,
        ignore_index: int,
        class_weights: Sequence[float] | str | None,
        stride_weights: Sequence[float] | None,
        match: str,
        class_pixels: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.stride_weights = stride_weights
        self.match = match
        self.class_weights: Tensor | None
        weights = weights_of_classes(class_weights, class_pixels)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, scores: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The loss, a float32 scalar (float64 of float64 scores).

        Args:
            scores: (N, C, h, w) of one head or a tuple of heads, any floating type; (N, C) for
                whole images.
            targets: (N, H, W) labels of any integer type; (N,) for whole images.
        """
        return sum_over_heads(
            scores, self.stride_weights, lambda head: self._loss_of(head, targets)
        )

    def _loss_of(self, scores: Tensor, targets: Tensor) -> Tensor:
        require_class_weights(self.class_weights, scores)
        ignore_index = label_to_ignore(scores, self.ignore_index)
        scores, targets = bring_together(scores, targets, self.match, ignore_index)
        losses = self._cell_losses(scores, targets, ignore_index)
        is_agreed = self.match == "agree"
        return mean_over_cells(
            losses, targets, self.class_weights, ignore_index, count_unlabelled=is_agreed
        )

    def _cell_losses(self, scores: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        """Each cell's loss, multiplied by its class weight; of the shape of the targets.

        Args:
            scores: (N, C, h, w) or (N, C), float32 or float64.
            targets: (N, h, w) or (N,) int64.
            ignore_index: label of the cells whose loss has to be 0.
        """
        raise NotImplementedError
