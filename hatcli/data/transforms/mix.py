"""Mix the images of a batch with each other, and their targets in the same shares.

Each image meets the one before it in the batch, as in torchvision; a shuffled epoch makes that
any other. The loader calls a mix behind its last sample transform.
"""

import math

import numpy as np
import torch
from torch import Tensor

from hatcli.data.transforms import MIXES
from hatcli.errors import ConfigError, DataError


@MIXES.register
class Mixup:
    """Weighted means of two images each.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412: one weight for
    a batch, from a Beta distribution. Levels are rounded to the nearest.

    Args:
        num_classes: of the targets.
        alpha: both parameters of the Beta distribution, > 0; small ones leave one image strong.
        p: share of the batches that are mixed, 0 to 1.
    """

    def __init__(self, num_classes: int, alpha: float = 0.8, p: float = 1.0) -> None:
        _require("Mixup", num_classes, {"alpha": alpha}, {"p": p})
        self.num_classes = num_classes
        self.alpha = alpha
        self.p = p

    def __call__(
        self, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (N, 3, H, W) uint8.
            targets: (N,) class indices of any integer type.

        Returns:
            (N, 3, H, W) uint8 in the memory format of the input, and (N, C) float32 shares.
        """
        shares = shares_of(targets, self.num_classes)
        if rng.random() >= self.p:
            return images, shares
        weight = float(rng.beta(self.alpha, self.alpha))
        return blended_images(images, weight), blended_shares(shares, weight)


@MIXES.register
class CutMix:
    """Images in which a rectangle shows the same place of another.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features", arXiv 1905.04899: one rectangle for a batch; the targets follow its area.

    Args:
        num_classes: of the targets.
        alpha: both parameters of the Beta distribution of the area that stays, > 0.
        p: share of the batches that are mixed, 0 to 1.
    """

    def __init__(self, num_classes: int, alpha: float = 1.0, p: float = 1.0) -> None:
        _require("CutMix", num_classes, {"alpha": alpha}, {"p": p})
        self.num_classes = num_classes
        self.alpha = alpha
        self.p = p

    def __call__(
        self, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch; arguments and result as in `Mixup`."""
        shares = shares_of(targets, self.num_classes)
        if rng.random() >= self.p:
            return images, shares
        height, width = images.shape[2:]
        stays = float(rng.beta(self.alpha, self.alpha))
        centre = int(rng.integers(height)), int(rng.integers(width))
        rows, columns = rectangle(stays, centre, (height, width))
        mixed = images.clone()
        mixed[1:, :, rows, columns] = images[:-1, :, rows, columns]
        mixed[0, :, rows, columns] = images[-1, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, blended_shares(shares, 1 - area / (height * width))


@MIXES.register
class MixupOrCutMix:
    """Batches that are mixed one way or the other.

    Args:
        num_classes: of the targets.
        mixup_alpha: as ``alpha`` of `Mixup`.
        cutmix_alpha: as ``alpha`` of `CutMix`.
        switch_p: share of CutMix among the batches that are mixed, 0 to 1.
        p: share of the batches that are mixed, 0 to 1.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        switch_p: float = 0.5,
        p: float = 1.0,
    ) -> None:
        alphas = {"mixup_alpha": mixup_alpha, "cutmix_alpha": cutmix_alpha}
        _require("MixupOrCutMix", num_classes, alphas, {"switch_p": switch_p, "p": p})
        self.mixup = Mixup(num_classes, mixup_alpha, p)
        self.cutmix = CutMix(num_classes, cutmix_alpha, p)
        self.switch_p = switch_p

    def __call__(
        self, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch; arguments and result as in `Mixup`."""
        mix = self.cutmix if rng.random() < self.switch_p else self.mixup
        return mix(images, targets, rng)


def shares_of(targets: Tensor, num_classes: int) -> Tensor:
    """Class indices (N,) as shares (N, C) float32, all of them 0 or 1.

    Raises:
        DataError: the targets aren't one class index an image.
    """
    if targets.ndim != 1 or targets.is_floating_point():
        raise DataError(
            f"mix: targets of shape {tuple(targets.shape)}, {targets.dtype}; "
            "one class index an image can be mixed"
        )
    low, high = (int(bound) for bound in targets.aminmax())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"mix: class indices from {low} to {high} for num_classes={num_classes}",
            "set train.mix.num_classes to the number of classes of the training set",
        )
    return torch.zeros(len(targets), num_classes).scatter_(1, targets.long()[:, None], 1.0)


def blended_shares(shares: Tensor, weight: float) -> Tensor:
    """``weight`` of each row and the rest of the row before it; the first meets the last."""
    return shares.roll(1, 0).mul_(1 - weight).add_(shares, alpha=weight)


def blended_images(images: Tensor, weight: float) -> Tensor:
    """``weight`` of each image and the rest of the one before it, uint8, rounded.

    One image at a time, which stays in the processor's cache.
    """
    mixed = torch.empty_like(images)
    before = images[-1].float()
    for target, image in zip(mixed, images, strict=True):
        own = image.float()
        target.copy_(before.lerp_(own, weight).round_())
        before = own
    return mixed


def rectangle(stays: float, centre: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns that are exchanged, cut off at the edges of the image.

    Args:
        stays: share of the area that isn't exchanged, before anything is cut off.
        centre: row and column of the rectangle's middle.
        size: height and width of the image.
    """
    reach = 0.5 * math.sqrt(1 - stays)
    rows, columns = (
        slice(max(middle - int(reach * side), 0), min(middle + int(reach * side), side))
        for middle, side in zip(centre, size, strict=True)
    )
    return rows, columns


def _require(
    part: str, num_classes: int, alphas: dict[str, float], shares: dict[str, float]
) -> None:
    if num_classes < 1:
        raise ConfigError(f"{part}: num_classes must be at least 1, got {num_classes}")
    for name, alpha in alphas.items():
        if not 0 < alpha < math.inf:
            raise ConfigError(f"{part}: {name} must be above 0, got {alpha}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"{part}: {name} must be from 0 to 1, got {share}")
