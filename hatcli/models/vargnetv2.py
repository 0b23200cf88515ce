"""VargNetV2 for classification: group convolutions of 8 channels, wherever they stand.

After the public manual of the J6 toolkit ("vargnetv2_imagenet", 0.36 GMACs at 224x224) and Zhang
et al., "VarGNet", arXiv 1907.05653.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from hatcli.errors import ConfigError
from hatcli.models import MODELS
from hatcli.models.blocks import (
    VargNet,
    conv_bn,
    group_unit,
    init_weights,
    normalised_classifier,
)

GROUP_WIDTH = 8
CHANNELS = (32, 32, 64, 128, 256)  # of the stem, then of each stage, at width 1


@MODELS.register
def vargnetv2(num_classes: int = 1000, width: float = 1.0) -> VargNet:
    """VargNetV2: 0.360 GMACs at 224x224 and 3.63 M parameters at width 1.

    Args:
        num_classes: channels of the scores.
        width: multiplies all channels but those of the top; at least 0.25, in steps of 0.25.
    """
    return _build("vargnetv2", num_classes, width, (1, 3, 7, 4), stem_relu=False)


@MODELS.register
def tiny_vargnetv2(num_classes: int = 1000, width: float = 1.0) -> VargNet:
    """A shallower VargNetV2: 0.267 GMACs at 224x224 and 2.63 M parameters at width 1.

    Args:
        num_classes: channels of the scores.
        width: as in `vargnetv2`.
    """
    return _build("tiny_vargnetv2", num_classes, width, (1, 3, 4, 2), stem_relu=True)


class Block(nn.Module):
    """Two units beside a shortcut: (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.first = _unit(channels, channels, factor)
        self.relu1 = nn.ReLU(inplace=True)
        self.second = _unit(channels, channels, factor)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The map plus what the units make of it, no value below 0."""
        return self.relu2(x + self.second(self.relu1(self.first(x))))


class DownBlock(nn.Module):
    """The first block of a stage: (N, in, H, W) to (N, out, H', W'), H' = H / 2 rounded up.

    Args:
        merged: whether two units side by side, summed, halve the map.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int, *, merged: bool) -> None:
        super().__init__()
        self.shortcut = _unit(in_channels, out_channels, factor, 2)
        self.first = _unit(in_channels, out_channels, factor, 2)
        self.beside = _unit(in_channels, out_channels, factor, 2) if merged else None
        self.relu1 = nn.ReLU(inplace=True)
        self.second = _unit(out_channels, out_channels, factor)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The halved map, no value below 0."""
        halved = self.first(x)
        if self.beside is not None:
            halved = halved + self.beside(x)
        return self.relu2(self.shortcut(x) + self.second(self.relu1(halved)))


def _build(
    name: str, num_classes: int, width: float, repeats: Sequence[int], *, stem_relu: bool
) -> VargNet:
    channels = [width * base for base in CHANNELS]
    if width < 0.25 or any(wide % GROUP_WIDTH for wide in channels):
        raise ConfigError(
            f"model {name!r}: width {width} gives channels that aren't groups of {GROUP_WIDTH}",
            "choose a multiple of 0.25",
        )
    stem, *wides = map(int, channels)
    stages, before = [], stem
    for index, (wide, count) in enumerate(zip(wides, repeats, strict=True)):
        factor, merged = (1, False) if index == 0 else (2, True)
        blocks: list[nn.Module] = [DownBlock(before, wide, factor, merged=merged)]
        blocks += [Block(wide, factor) for _ in range(count - 1)]
        stages.append(nn.Sequential(*blocks))
        before = wide
    model = VargNet(
        conv_bn(3, stem, 3, 2, relu=stem_relu, bias=True),
        nn.Sequential(*stages),
        normalised_classifier(before, round(1024 * max(1.0, width)), num_classes, bias=True),
    )
    init_weights(model)
    return model


def _unit(in_channels: int, out_channels: int, factor: int, stride: int = 1) -> nn.Sequential:
    groups = in_channels // GROUP_WIDTH
    return group_unit(in_channels, out_channels, groups, factor, stride=stride, bias=True)
