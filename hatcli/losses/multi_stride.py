"""Score maps coarser than their labels, and the mean over cells."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hatcli.errors import ConfigError
from hatcli.losses.shares import mean_over_processes


def sum_over_heads(
    scores: Tensor | tuple[Tensor, ...],
    stride_weights: Sequence[float] | None,
    loss_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """The weighted sum of each head's loss, in float32 or float64 whatever autocast says.

    Args:
        scores: of one head, or of several, finest first; each (N, C, h, w) or (N, C), floating.
        stride_weights: one a head; None weighs all by 1. A single tensor has weight 1.
        loss_of: from the scores of one head, float32 or float64, to its loss, a scalar.

    Raises:
        ConfigError: there are more or fewer weights than heads.
    """
    heads = (scores,) if isinstance(scores, Tensor) else tuple(scores)
    weights = stride_weights
    if weights is None or isinstance(scores, Tensor):
        weights = [1.0] * len(heads)
    if len(weights) != len(heads):
        raise ConfigError(
            f"loss: {len(weights)} stride_weights for the {len(heads)} heads of the model"
        )
    with torch.autocast(heads[0].device.type, enabled=False):
        losses = [
            weight * loss_of(_precise(head)) for weight, head in zip(weights, heads, strict=True)
        ]
        return torch.stack(losses).sum()


def bring_together(
    scores: Tensor, targets: Tensor, match: str, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Scores and labels of one size.

    Args:
        scores: (N, C, h, w) float32; scores (N, C) of whole images stay as they are.
        targets: (N, H, W) labels of any integer type; (N,) for scores (N, C).
        match: "nearest": each cell takes the label at its centre.
            "agree": each cell takes the label that all pixels sampled there share, else
            ``ignore_index``; see `labels_where_all_agree`.
            "upsample": the scores are enlarged bilinearly to the labels.

    Returns:
        scores float32 and labels int64, equal in N and in height and width.

    Raises:
        ConfigError: the targets aren't labels but shares of classes.
    """
    if targets.is_floating_point():
        raise ConfigError(
            "loss: the targets are shares of classes, not labels",
            "set loss.type=SoftTargetCrossEntropy, or train.mix=None",
        )
    size = scores.shape[2:]
    if scores.ndim == 2 or size == targets.shape[1:]:
        return scores, targets.long()
    if match == "upsample":
        enlarged = F.interpolate(
            scores, targets.shape[1:], mode="bilinear", align_corners=False
        )  # (N, C, H, W)
        return enlarged, targets.long()
    if match == "agree":
        return scores, labels_where_all_agree(targets, (size[0], size[1]), ignore_index)
    rows, columns = (
        _centres(source, cells, targets.device)
        for source, cells in zip(targets.shape[1:], size, strict=True)
    )
    return scores, targets[:, rows][:, :, columns].long()


def label_to_ignore(scores: Tensor, ignore_index: int) -> int:
    """The label without loss; of whole images never one of the classes.

    255 marks unlabelled pixels, and is a class like any other where images have 1000.
    """
    is_class = scores.ndim == 2 and 0 <= ignore_index < scores.shape[1]
    return -1 if is_class else ignore_index


def labels_where_all_agree(labels: Tensor, size: tuple[int, int], ignore_index: int) -> Tensor:
    """The labels of coarser cells; a cell whose sampled pixels differ is ``ignore_index``.

    Sampled are the pixels that bilinear interpolation reads at the cell's centre: for an even
    stride the middle 2x2 of the cell. So a one-hot map, sampled bilinearly and cut to integers,
    has a one exactly where this gives a label.

    Args:
        labels: (N, H, W) of any integer type.
        size: (h, w) of the cells.

    Returns:
        (N, h, w) int64.
    """
    height, width = labels.shape[1:]
    rows = _neighbours(height, size[0], labels.device)
    columns = _neighbours(width, size[1], labels.device)
    samples = [labels[:, row][:, :, column].long() for row in rows for column in columns]
    agreed = samples[0] == samples[1]
    for sample in samples[2:]:
        agreed &= samples[0] == sample
    return samples[0].masked_fill(~agreed, ignore_index)


def mean_over_cells(
    losses: Tensor,
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    *,
    count_unlabelled: bool,
) -> Tensor:
    """The weighted mean of each cell's loss; 0 with a zero gradient where no cell counts.

    Of several processes each gives its share of the mean over the cells of all, so that the mean
    of their gradients is that of one process with all images.

    Args:
        losses: float32 or float64, 0 at unlabelled cells, already multiplied by the class weights.
        targets: int64 of the same shape; ``ignore_index`` marks unlabelled cells.
        class_weights: (C,) float32; None is 1 for every class.
        count_unlabelled: whether unlabelled cells enlarge the number that the sum is divided
            by, each with weight 1.
    """
    labelled = targets != ignore_index
    if class_weights is None:
        cells = losses.new_tensor(losses.numel())
        total = cells if count_unlabelled else labelled.sum().to(losses.dtype)
    else:
        weights = class_weights[targets.where(labelled, 0)]
        total = weights.where(labelled, float(count_unlabelled)).sum()
    return losses.sum() / mean_over_processes(total).clamp_min(torch.finfo(torch.float32).tiny)


def weights_of_classes(
    class_weights: Sequence[float] | str | None, class_pixels: Sequence[int] | None
) -> Tensor | None:
    """One factor a class, (C,) float32, or None where all are 1.

    Args:
        class_weights: the factors; or "inverse_sqrt": 1 / sqrt(pixels of the class), scaled so
            that the mean over all labelled pixels is 1. A class without pixels gets 0.
        class_pixels: pixels of each class in the training set, where they are known.

    Raises:
        ConfigError: the pixels are needed and not known.
    """
    if class_weights is None:
        return None
    if not isinstance(class_weights, str):
        return torch.tensor(class_weights, dtype=torch.float32)
    if not class_pixels or not any(class_pixels):
        raise ConfigError(
            f"loss: class_weights {class_weights!r} needs the number of pixels of each class, "
            "which the training set doesn't tell",
            "give a list of numbers, one a class",
        )
    pixels = torch.tensor(class_pixels, dtype=torch.float64)
    weights = pixels.rsqrt().masked_fill(pixels == 0, 0)
    return (weights * pixels.sum() / (weights * pixels).sum()).float()


def require_class_weights(class_weights: Tensor | None, scores: Tensor) -> None:
    """Refuse a list of class weights that isn't one a class.

    Raises:
        ConfigError: naming both numbers.
    """
    if class_weights is not None and len(class_weights) != scores.shape[1]:
        raise ConfigError(
            f"loss: {len(class_weights)} class_weights for the {scores.shape[1]} classes "
            "of the model"
        )


def _precise(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()


def _centres(source: int, cells: int, device: torch.device) -> Tensor:
    """The pixel at the centre of each cell (the upper one of two): (cells,) int64."""
    return _neighbours(source, cells, device)[0]


def _neighbours(source: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The two pixels that each cell's centre lies between, equal where it lies on one.

    In integers, so that no rounding can move a sample: the centre of cell i lies at
    ((2 i + 1) source - cells) / (2 cells), counted from the centre of the first pixel.
    """
    position = (2 * torch.arange(cells, device=device) + 1) * source - cells
    position = position.clamp_min(0)
    low = position // (2 * cells)
    high = low + (position % (2 * cells) != 0).long()
    return low, high.clamp_max(source - 1)
