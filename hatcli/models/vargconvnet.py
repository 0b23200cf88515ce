"""VargConvNet for classification: wide group convolutions, one average over the whole map.

The structure is that of the public manuals of the original toolkit: a deep stem, four stages of
residual blocks without a ReLU on the residual path, a normalised classifier. The original never
published its configuration (its manual quotes 4.53 GMACs at 224x224), and its totals don't
determine one. **This is a configuration of our own within that cost: another network of the same
family.** Groups are 64 channels wide because int8 group convolutions of 16 or 32 channels run no
faster than float ones on x86 (onnxruntime 1.31), those of 64 run 2.4 times as fast.

Zhang et al., "VarGNet", arXiv 1907.05653, is where groups of a fixed width come from.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from hatcli.errors import ConfigError
from hatcli.models import MODELS
from hatcli.models.blocks import (
    DropPath,
    VargNet,
    conv_bn,
    drop_path_rates,
    group_unit,
    init_weights,
    normalised_classifier,
)


@MODELS.register
def vargconvnet(
    num_classes: int = 1000,
    channels: Sequence[int] = (64, 64, 128, 256, 512),
    repeats: Sequence[int] = (3, 5, 7, 2),
    factors: Sequence[int] = (2, 2, 1, 1),
    group_width: int = 64,
    top_channels: int = 1024,
    deep_stem: bool = True,
    drop_path: float = 0.0,
) -> VargNet:
    """VargConvNet: 4.512 GMACs at 224x224 and 9.47 M parameters as it stands.

    Args:
        num_classes: channels of the scores.
        channels: of the stem, then of each stage.
        repeats: blocks of each stage; the first one halves the map.
        factors: how much the group convolutions of each stage widen.
        group_width: channels of one group.
        top_channels: channels that are averaged over the map.
        deep_stem: three 3x3 convolutions instead of one.
        drop_path: share of the images for which training leaves out the units of the last block;
            earlier ones less, down to none.
    """
    _require_fit(channels, repeats, factors, group_width)
    stem = _deep_stem(channels[0]) if deep_stem else conv_bn(3, channels[0], 3, 2)
    stages = [
        _stage(channels[index], channels[index + 1], repeats[index], factors[index], group_width)
        for index in range(len(repeats))
    ]
    head = normalised_classifier(channels[-1], top_channels, num_classes)
    model = VargNet(stem, nn.Sequential(*stages), head)
    rates = drop_path_rates("vargconvnet", sum(repeats), drop_path)
    blocks = [module for module in model.modules() if isinstance(module, Block | DownBlock)]
    for block, rate in zip(blocks, rates, strict=True):
        block.drop_path.rate = rate
    init_weights(model)
    return model


class Block(nn.Module):
    """Two units beside a shortcut: (N, C, H, W) to (N, C, H, W); no ReLU after the sum."""

    def __init__(self, channels: int, groups: int, factor: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_unit(channels, channels, groups, factor),
            group_unit(channels, channels, groups, factor),
        )
        self.drop_path = DropPath(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """The map plus what the units make of it."""
        return x + self.drop_path(self.body(x))


class DownBlock(nn.Module):
    """The first block of a stage: (N, in, H, W) to (N, out, H', W'), H' = H / 2 rounded up."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, factor: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            # Half as many channels come in: half as many groups keep their width.
            group_unit(in_channels, out_channels, max(1, groups // 2), factor, 5, 2),
            group_unit(out_channels, out_channels, groups, factor),
        )
        self.drop_path = DropPath(0.0)
        self.shortcut = nn.Sequential(
            OrderedDict(
                # On an odd side the last window is a half one, so that both paths agree.
                pool=nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
                point=conv_bn(in_channels, out_channels, relu=False),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """The halved map."""
        return self.shortcut(x) + self.drop_path(self.body(x))


def _deep_stem(channels: int) -> nn.Sequential:
    half = channels // 2
    return nn.Sequential(
        conv_bn(3, half, 3, 2),
        conv_bn(half, half, 3),
        conv_bn(half, channels, 3),
    )


def _stage(
    in_channels: int, out_channels: int, repeats: int, factor: int, group_width: int
) -> nn.Sequential:
    groups = out_channels // group_width
    blocks: list[nn.Module] = [DownBlock(in_channels, out_channels, groups, factor)]
    blocks += [Block(out_channels, groups, factor) for _ in range(repeats - 1)]
    return nn.Sequential(*blocks)


def _require_fit(
    channels: Sequence[int], repeats: Sequence[int], factors: Sequence[int], group_width: int
) -> None:
    """Refuse lists of different lengths, and channels that no whole groups make up."""
    if not len(channels) - 1 == len(repeats) == len(factors) > 0:
        raise ConfigError(
            f"model 'vargconvnet': {len(channels)} channels, {len(repeats)} repeats and "
            f"{len(factors)} factors",
            "give one of each a stage, and the channels of the stem before them",
        )
    if min(*channels, *repeats, *factors, group_width) < 1 or channels[0] % 2:
        raise ConfigError(
            "model 'vargconvnet': channels, repeats, factors and group_width are at least 1, "
            "the stem's channels even"
        )
    for before, after in itertools.pairwise(channels):
        groups = after // group_width
        if after % group_width or before % max(1, groups // 2):
            raise ConfigError(
                f"model 'vargconvnet': {before} and {after} channels of a stage don't divide into "
                f"groups of {group_width}"
            )
