"""Blocks that several families share: convolutions with batch normalisation, and their start."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hatcli.errors import ConfigError


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    *,
    relu: bool = True,
    bias: bool = False,
    bn_eps: float = 1e-5,
    bn_momentum: float = 0.1,
) -> nn.Sequential:
    """A convolution, its batch normalisation and, unless ``relu=False``, a ReLU.

    Maps (N, in_channels, H, W) to (N, out_channels, H', W'), where H' is H / stride rounded up;
    the border is padded with zeros.

    Args:
        kernel: side of the square kernel, odd.
        groups: number of groups of the convolution.
        bias: whether the convolution adds a bias of its own; redundant before the
            normalisation, but some published parameter counts include it.
        bn_momentum: share of the newest batch in the running statistics.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias
    )
    layers["bn"] = nn.BatchNorm2d(out_channels, eps=bn_eps, momentum=bn_momentum)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def separable(
    in_channels: int,
    out_channels: int,
    stride: int = 1,
    kernel: int = 3,
    *,
    relu: bool = True,
    bias: bool = False,
    bn_eps: float = 1e-5,
    bn_momentum: float = 0.1,
) -> nn.Sequential:
    """A depthwise convolution with ReLU, then a pointwise one: MobileNet's block.

    Howard et al., "MobileNets", arXiv 1704.04861. The stride is that of the depthwise half;
    ``relu=False`` leaves out the last ReLU only. Shapes as in `conv_bn`.
    """
    depthwise = conv_bn(
        in_channels,
        in_channels,
        kernel,
        stride,
        groups=in_channels,
        bias=bias,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
    )
    pointwise = conv_bn(
        in_channels,
        out_channels,
        relu=relu,
        bias=bias,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
    )
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def group_unit(
    in_channels: int,
    out_channels: int,
    groups: int,
    factor: int = 1,
    kernel: int = 3,
    stride: int = 1,
    *,
    bias: bool = False,
) -> nn.Sequential:
    """A group convolution with ReLU, then a pointwise one without: the unit of VarGNet.

    Zhang et al., "VarGNet", arXiv 1907.05653. The group convolution widens to ``factor`` times
    the channels of the input and carries the stride; the pointwise one mixes the groups.
    """
    wide = factor * in_channels
    group = conv_bn(in_channels, wide, kernel, stride, groups=groups, bias=bias)
    point = conv_bn(wide, out_channels, relu=False, bias=bias)
    return nn.Sequential(OrderedDict(group=group, point=point))


def normalised_classifier(
    in_channels: int, top_channels: int, num_classes: int, *, bias: bool = False
) -> nn.Sequential:
    """From a map (N, in_channels, H, W) to scores (N, num_classes), which are normalised too.

    A pointwise convolution to ``top_channels``, the average over the whole map, and a pointwise
    convolution to the classes with batch normalisation: training needs at least two images.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["top"] = conv_bn(in_channels, top_channels, bias=bias)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["scores"] = conv_bn(top_channels, num_classes, relu=False, bias=bias)
    layers["flatten"] = nn.Flatten(1)
    return nn.Sequential(layers)


class VargNet(nn.Module):
    """A stem at stride 2, stages that halve the map each, and a classifier.

    ``forward`` takes float32 images (N, 3, H, W) and returns float32 scores (N, num_classes).
    """

    def __init__(self, stem: nn.Module, stages: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = stages
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, num_classes)."""
        return self.head(self.stages(self.stem(images)))


class DropPath(nn.Module):
    """Leaves out a residual branch for a random share of the images of a batch, in training.

    Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382. What is kept is divided
    by the share that is kept, so evaluation needs nothing: there the module gives its input back,
    and a traced or exported graph doesn't hold it. It has no weights.

    Args:
        rate: share of the images whose branch is left out, 0 to below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The branch (N, C, H, W), all 0 for some of the N; their choice is torch's generator's."""
        if not self.training or self.rate == 0:
            return x
        kept = 1 - self.rate
        mask = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(kept)
        return x * mask.div_(kept)


def drop_path_rates(model: str, blocks: int, last: float) -> list[float]:
    """The rate of each residual block: from 0 in the first, rising evenly towards ``last``.

    Args:
        model: what messages call it.
        last: 0 to below 1.
    """
    if not 0 <= last < 1:
        raise ConfigError(f"model {model!r}: drop_path must be from 0 to below 1, got {last}")
    return [last * index / blocks for index in range(blocks)]


def init_weights(model: nn.Module) -> None:
    """Set the start of training in place: He et al., arXiv 1502.01852; norms are the identity.

    The draws come from torch's global generator, which the caller seeds.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # By fan-in: torch's fan-out ignores groups and is far too small for depthwise layers.
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def init_classifier(layer: nn.Module) -> None:
    """Set a last linear layer in place so that training starts from nearly equal scores."""
    assert isinstance(layer, nn.Linear)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)


def rounded_channels(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and never a tenth less than asked for.

    Sandler et al., "MobileNetV2", arXiv 1801.04381, and EfficientNet round like this.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
