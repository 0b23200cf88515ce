"""Cross-entropy with targets that are shares of several classes."""

import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.errors import ConfigError
from hatcli.losses import LOSSES
from hatcli.losses.multi_stride import sum_over_heads


@LOSSES.register
class SoftTargetCrossEntropy(nn.Module):
    """Cross-entropy of the softmax of raw scores with shares of classes, for whole images.

    The mean over the images, as in `torch.nn.functional.cross_entropy` with probabilities;
    summed over the heads of a model that has several.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes, 0 to 1.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ConfigError(
                "SoftTargetCrossEntropy: label_smoothing must be from 0 to 1, "
                f"got {label_smoothing}"
            )
        self.label_smoothing = label_smoothing

    def forward(self, scores: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The loss, a float32 scalar.

        Args:
            scores: (N, C) of one head or a tuple of heads, any floating type.
            targets: (N, C) shares of any floating type, or (N,) class indices of any integer
                type, which stand for a share of 1.

        Raises:
            ConfigError: scores and targets don't fit each other.
        """
        return sum_over_heads(scores, None, lambda head: self._loss_of(head, targets))

    def _loss_of(self, scores: Tensor, targets: Tensor) -> Tensor:
        has_shares = targets.is_floating_point()
        expected = scores.shape if has_shares else scores.shape[:1]
        if scores.ndim != 2 or targets.shape != expected:
            raise ConfigError(
                f"loss 'SoftTargetCrossEntropy': scores {tuple(scores.shape)} and targets "
                f"{tuple(targets.shape)}; it takes (N, C) scores with (N, C) shares or (N,) "
                "class indices",
                "set model.num_classes and train.mix.num_classes to the number of classes",
            )
        wanted = targets.float() if has_shares else targets.long()
        return F.cross_entropy(scores, wanted, label_smoothing=self.label_smoothing)
